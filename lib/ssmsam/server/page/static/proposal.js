// Adapting to the annotated slices: how far it is, what came of it, what changed, and where to look first.

import { readMask } from './grid.js';
import * as server from './server.js';
import { $, element, failed, notice, per, saved, sentence } from './ui.js';

const JOBS_MS = 700, MOST_LISTED = 3, OVER = ['done', 'failed', 'cancelled'];

export class Proposal {
  constructor(study) {
    Object.assign(this, { study, expected: {}, before: null, drawnBefore: new Map(), maps: new Map(), now: null, abort: null });
  }

  // Goes on beside: who annotates meanwhile is not kept waiting, and what was drawn since then stays.
  async adapt() {
    this.abort?.abort();
    const { study } = this, abort = this.abort = new AbortController(), { signal } = abort, was = this.expected;
    const follower = this.#follow(abort);
    this.before = study.stage.voxels.slice();
    this.drawnBefore = new Map([...study.drawn].map(([value, slices]) => [value, [...slices]]));
    study.touched.clear();
    try {
      const first = await this.#propose(signal, was);
      if (first.job) {
        saved('Proposed. It goes on adapting');
        const { state, detail } = await this.#ended(first.job, signal);
        if (state !== 'done') return notice(sentence(detail || 'the adaptation was stopped; the proposal stays'));
        await this.#propose(signal, was);
      }
      saved('Proposed. Look at the uncertain slices first: U');
    } finally {
      if (this.abort === abort) { this.abort = null; $('job').hidden = true; }
      clearInterval(follower);
    }
    return null;
  }

  async #propose(signal, was) {
    const { study } = this, { mask, labels, details } = await server.propose(study.image, { adapt: true }, signal), voxels = await readMask(mask);
    await study.act(() => { this.showBefore(false); study.paint(voxels, labels, study.touched); });
    this.#show(details, was);
    if (!details.job) notice(sentence(details.detail));
    return details;
  }

  async #ended(job, signal) {
    for (;;) {
      const found = await server.job(job, signal);
      if (OVER.includes(found.state)) return found;
      await new Promise(go => setTimeout(go, JOBS_MS));
    }
  }

  #follow(abort) {
    const { image } = this.study;
    let job = null;
    $('job').hidden = false;
    this.#showJob(null);
    $('cancel').onclick = () => { abort.abort(); if (job) server.cancelJob(job.id).catch(failed); saved('Stopped. What was accepted stays'); };
    return setInterval(async () => {
      job = (await server.jobs().catch(() => [])).find(one => one.image === image && !OVER.includes(one.state)) ?? null;
      if (this.abort === abort) this.#showJob(job);
    }, JOBS_MS);
  }

  #showJob(job) {
    const share = job?.total ? ` ${job.done} of ${job.total}` : '', left = job?.eta_s == null ? '' : `, ${Math.ceil(job.eta_s)} s left`;
    $('job').querySelector('span').textContent = job ? `${job.phase || job.state}${share}${left}` : 'the server begins';
    const bar = $('job').querySelector('progress');
    if (job?.total) { bar.max = job.total; bar.value = job.done; } else bar.removeAttribute('value');
  }

  #show(details, was) {
    const { study } = this, asked = details.asked_slices ?? {}, unsure = details.uncertain_slices ?? {};
    study.uncertain = Object.fromEntries(Object.keys({ ...asked, ...unsure }).map(label => [label, [...new Set([...(asked[label] ?? []), ...(unsure[label] ?? [])])]]));
    study.questions = asked;
    study.sliceDice = details.slice_dice ?? {};
    this.maps.clear();
    study.keepHints();
    this.show(details.expected_dice ?? {}, was);
  }

  show(expected, was = {}) {
    const { study } = this;
    this.expected = expected;
    if (!Object.keys(expected).length) return;
    const jump = (label, k, title) => element('button', { class: 'link', title, onclick: () => { study.choose(study.label(label)); study.stage.goTo(k); this.where(study.current)?.catch(failed); } }, String(k));
    $('estimate').replaceChildren(element('h3', {}, 'Expected Dice'), ...Object.entries(expected).map(([label, value]) => {
      const { slices: changes, dice: same } = this.#changes(study.label(label)), most = Object.entries(changes).sort((a, b) => b[1] - a[1]).slice(0, MOST_LISTED).map(([k]) => Number(k));
      const earlier = was[label] !== undefined && Math.abs(value - was[label]) >= 0.005 ? ` was ${per(was[label])}` : '';
      const places = (word, slices, title) => (slices?.length ? [element('div', {}, element('span', { class: 'muted' }, word), ...slices.map(k => jump(label, k, title)))] : []);
      return element('div', { class: 'found' }, element('b', {}, label), ` ${per(value)}`, element('small', { class: 'muted' }, earlier),
        ...places('look at', study.uncertain[label], 'The model is least sure of this slice'),
        ...(same === null ? [] : [element('div', { class: 'muted', title: 'How far the former proposal and this one agree' }, same > 0.9995 ? 'as before' : `Dice ${per(same)} to before`)]),
        ...places('changed', most, 'The mask changed most on this slice'));
    }), element('button', { id: 'earlier', hidden: !this.before, title: 'Hold to see the masks as they were before (O)' }, 'Hold: before ', element('kbd', {}, 'O')));
    $('earlier').onpointerdown = () => this.showBefore(true);
    $('earlier').onpointerup = $('earlier').onpointerleave = () => this.showBefore(false);
  }

  // Against the former proposal of a label, where there was one: slice -> number of voxels that changed, and the Dice.
  #changes({ value, name }) {
    const { grid, voxels } = this.study.stage, slices = {}, earlier = this.drawnBefore.get(value) ?? [];
    let both = 0, sum = 0;
    if (!this.before || !earlier.some(k => !this.study.known(name, k))) return { slices, dice: null };
    for (const k of new Set([...earlier, ...this.study.drawn.get(value) ?? []])) {
      const one = grid.read(this.before, k), other = grid.read(voxels, k);
      let count = 0;
      for (let n = 0; n < one.length; n++) {
        const was = one[n] === value, is = other[n] === value;
        both += was && is;
        sum += was + is;
        count += was !== is;
      }
      if (count) slices[k] = count;
    }
    return { slices, dice: sum ? (2 * both) / sum : null };
  }

  // Where on its slices the proposal of a label is uncertain: asked for once, when somebody looks.
  where(label) {
    if (this.maps.has(label) || !this.study.sliceDice[label.name]) return null;
    const { maps, study } = this;
    maps.set(label, null);
    return server.uncertainty(study.image, label.name).then(readMask).then(found => { maps.set(label, found); study.changed(); })
      .catch(error => { maps.delete(label); throw error; });
  }

  #slices = new WeakMap(); // of a map: slice -> how unsure, 0 to 255
  unsureOn(label, k) {
    const found = this.maps.get(label), { area } = this.study.stage.grid;
    if (!found || this.study.known(label.name, k)) return null;
    if (!this.#slices.has(found)) this.#slices.set(found, new Map());
    const kept = this.#slices.get(found);
    if (!kept.has(k)) kept.set(k, found.slice(k * area, (k + 1) * area).map(per100 => 2.55 * per100));
    return kept.get(k);
  }

  showBefore(on) {
    const { stage } = this.study;
    if (!this.before || Boolean(this.now) === on) return;
    if (on) { this.now = stage.voxels.slice(); stage.voxels.set(this.before); } else { stage.voxels.set(this.now); this.now = null; }
    $('frame').toggleAttribute('data-before', on);
    stage.refresh();
  }
}
