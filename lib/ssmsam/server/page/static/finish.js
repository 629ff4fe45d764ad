// The end of a study: finishing, the look of a second person, files for others; and what the archive already knows.

import * as server from './server.js';
import { $, confirmed, element, keepFile, minutes, notice, per, saved, sentence, when } from './ui.js';

export async function finish(study) {
  try {
    await server.message('finish_volume', study.image, {});
  } catch (error) {
    if (error.status !== 409) throw error;
    if (!await confirmed(sentence(error.message.replace(/\. Run finish_volume again.*$/, '').replace(/^This would finish/i, 'Finish')).replace(/\.$/, '?'))) return notice('Nothing was finished.');
  }
  const said = await server.message('finish_volume', study.image, { confirm: true });
  notice(sentence(said.detail));
  study.asked = [];
  study.uncertain = study.questions = {};
  study.keepHints();
  saved('Saved: finished, to be reviewed');
  return showReview(study);
}

// What stands of a review, and its two answers.
export async function showReview(study) {
  const row = (await server.studies()).studies.find(one => one.image === study.image);
  await study.refresh();
  if (!row) return null;
  const { state, review, workers = [] } = row, box = $('review'), people = workers.map(one => `${one.client} ${minutes(one.seconds)}`).join(', ');
  box.hidden = !['to review', 'finished'].includes(state) && review?.verdict !== 'send_back';
  if (box.hidden) return row;
  const parts = [element('h2', {}, 'Review'), element('span', { class: `tag ${state.replace(' ', '-')}` }, state)];
  if (people) parts.push(element('small', { class: 'muted' }, people));
  if (review?.note) parts.push(element('p', { class: 'note' }, `${review.client}, ${when(review.when)}: ${review.note}`));
  if (state === 'to review') {
    parts.push(element('p', { class: 'note muted' }, 'Finished. Somebody else looks through it, and accepts it or sends it back.'));
    const note = element('textarea', { rows: 2, placeholder: 'What is to be mended', 'aria-label': 'Note for who annotated it' });
    const answer = verdict => study.act(async () => {
      if (verdict === 'send_back' && !note.value.trim()) { note.focus(); throw new Error('Say what is to be mended'); }
      const said = await server.review(study.image, verdict, note.value.trim());
      saved(verdict === 'accept' ? 'Saved: the review accepts it' : 'Saved: sent back');
      notice(sentence(said.detail));
      await showReview(study);
    });
    parts.push(...await agreement(study), note, element('div', { class: 'line' },
      element('button', { class: 'primary', id: 'review-accept', onclick: () => answer('accept') }, 'Accept study'), element('button', { id: 'review-back', onclick: () => answer('send_back') }, 'Send back')));
  }
  box.replaceChildren(...parts);
  return row;
}

async function agreement(study) {
  const { agreement: found } = await server.agreement(study.image);
  return found.map(one => element('p', { class: 'note' }, `${one.label}: ${one.clients.join(' and ')} agree by Dice ${per(one.dice)} on ${one.slices} slice${one.slices === 1 ? '' : 's'}`));
}

export async function download(study, format) {
  const { blob, name } = await server.exported(study.image, format);
  keepFile(blob, name);
  saved(`Exported: ${name}`);
}

// What was measured before is offered as a prompt on its slice.
export async function showMeasurements(study) {
  const { measurements } = await server.measurements(study.image);
  $('measurements').hidden = !measurements.length;
  $('measurements').replaceChildren(element('summary', {}, `Measurements of the archive (${measurements.length})`), ...measurements.map(one => element('div', { class: 'line' },
    element('button', { class: 'link grow', title: 'Go there', onclick: () => study.stage.goTo(one.slice) }, `${one.slice}: ${one.text || one.kind}`),
    element('button', { title: 'Segment from it', onclick: () => { study.stage.goTo(one.slice); study.prompt(wanted => merge(wanted, one.prompts)); } }, 'Use'))));
}

function merge(wanted, { foreground = [], background = [], roi = [], scribbles = [], lasso = [] }) {
  wanted.positive.push(...foreground);
  wanted.negative.push(...background);
  wanted.scribbles.push(...scribbles);
  wanted.lasso.push(...lasso);
  if (roi.length) wanted.box = [[roi[0], roi[2], roi[4]], [roi[1], roi[3], roi[4]]];
}
