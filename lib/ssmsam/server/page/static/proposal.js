// Adapting to the annotated slices: how far it is, what came of it, what changed, and where to look first.

import { readMask } from './grid.js';
import * as server from './server.js';
import { $, element, failed, notice, per, saved, sentence } from './ui.js';

const JOBS_MS = 700, MOST_LISTED = 3, OVER = ['done', 'failed', 'cancelled'];

export class Proposal {
  constructor(study) {
    Object.assign(this, { study, expected: {}, before: null });
  }

  async adapt() {
    const { study } = this, abort = new AbortController(), { signal } = abort, before = study.stage.voxels.slice(), was = this.expected;
    let following = true, job = null;
    $('job').hidden = false;
    this.#showJob(null);
    const follow = async () => {
      while (following) {
        const mine = (await server.jobs().catch(() => [])).filter(one => one.image === study.image && !OVER.includes(one.state));
        job = mine.at(0) ?? null;
        if (following) this.#showJob(job);
        await new Promise(go => setTimeout(go, JOBS_MS));
      }
    };
    follow();
    $('cancel').onclick = () => { abort.abort(); if (job) server.cancelJob(job.id).catch(failed); saved('Stopped. What was accepted stays'); };
    try {
      for (let beat = 0; beat < 2; beat++) {
        const found = await server.propose(study.image, { adapt: true }, signal);
        study.paint(await readMask(found.mask), found.labels);
        this.#show(found.details, was, before);
        if (beat || !found.details.job) { notice(sentence(found.detail)); break; }
        saved('Proposed. It goes on adapting');
        for (;;) {
          const { state, detail } = await server.job(found.details.job, signal);
          if (state === 'failed' || state === 'cancelled') return notice(sentence(detail || 'the adaptation was stopped; the proposal stays'));
          if (state === 'done') break;
          await new Promise(go => setTimeout(go, JOBS_MS));
        }
      }
      saved('Proposed. Look at the uncertain slices first: U');
    } finally {
      following = false;
      $('job').hidden = true;
    }
    return null;
  }

  #showJob(job) {
    const share = job?.total ? ` ${job.done} of ${job.total}` : '', left = job?.eta_s == null ? '' : `, ${Math.ceil(job.eta_s)} s left`;
    $('job').querySelector('span').textContent = job ? `${job.phase || job.state}${share}${left}` : 'the server begins';
    const bar = $('job').querySelector('progress');
    if (job?.total) { bar.max = job.total; bar.value = job.done; } else bar.removeAttribute('value');
  }

  #show(details, was, before) {
    const { study } = this, asked = details.asked_slices ?? {}, unsure = details.uncertain_slices ?? {};
    this.expected = details.expected_dice ?? {};
    this.before = before;
    study.uncertain = Object.fromEntries(Object.keys({ ...asked, ...unsure }).map(label => [label, [...new Set([...(asked[label] ?? []), ...(unsure[label] ?? [])])]]));
    study.keepHints();
    const jump = (label, k, title) => element('button', { class: 'link', title, onclick: () => { study.choose(study.label(label)); study.stage.goTo(k); } }, String(k));
    $('estimate').replaceChildren(element('h3', {}, 'Expected Dice'), ...Object.entries(this.expected).map(([label, value]) => {
      const changes = this.#changes(study.label(label).value), most = Object.entries(changes).sort((a, b) => b[1] - a[1]).slice(0, MOST_LISTED).map(([k]) => Number(k));
      const before = was[label] !== undefined && Math.abs(value - was[label]) >= 0.005 ? ` was ${per(was[label])}` : '';
      const places = (word, slices, title) => (slices?.length ? [element('div', {}, element('span', { class: 'muted' }, word), ...slices.map(k => jump(label, k, title)))] : []);
      return element('div', { class: 'found' }, element('b', {}, label), ` ${per(value)}`, element('small', { class: 'muted' }, before),
        ...places('look at', study.uncertain[label], 'The model is least sure of this slice'), ...places('changed', most, 'The mask changed most on this slice'));
    }), element('button', { id: 'earlier', title: 'Hold to see the masks as they were before (O)' }, 'Hold: before ', element('kbd', {}, 'O')));
    $('earlier').onpointerdown = () => this.showBefore(true);
    $('earlier').onpointerup = $('earlier').onpointerleave = () => this.showBefore(false);
  }

  // Slice -> number of voxels of a label that are not as before.
  #changes(value) {
    const { grid, voxels } = this.study.stage, found = {};
    for (let k = 0; k < grid.shape[2]; k++) {
      const one = grid.read(this.before, k), other = grid.read(voxels, k);
      let count = 0;
      for (let n = 0; n < one.length; n++) if ((one[n] === value) !== (other[n] === value)) count += 1;
      if (count) found[k] = count;
    }
    return found;
  }

  showBefore(on) {
    const { stage } = this.study;
    if (!this.before || Boolean(this.now) === on) return;
    if (on) { this.now = stage.voxels.slice(); stage.voxels.set(this.before); } else { stage.voxels.set(this.now); this.now = null; }
    $('frame').toggleAttribute('data-before', on);
    stage.refresh();
  }
}
