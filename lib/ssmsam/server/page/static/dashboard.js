// The state of the server: jobs, checkpoints and what they expect, what cannot be read, how to connect.

import { plot } from './plot.js';
import * as server from './server.js';
import { $, element, failed, notice, per, sentence, when } from './ui.js';

const EVERY_MS = 2000, MOST_CHECKPOINTS = 12;
const fill = (list, pairs) => list.replaceChildren(...pairs.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, String(value))]));
const none = (text, columns) => element('tr', {}, element('td', { colspan: columns, class: 'muted' }, text));
const size = bytes => (bytes > 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);

const here = `${location.origin}${server.root}`;
$('slicer-address').textContent = here;
$('ohif-address').textContent = `${here}/ohif/`;
document.querySelectorAll('[data-copy]').forEach(button => button.addEventListener('click', () =>
  navigator.clipboard.writeText($(button.dataset.copy).textContent).then(() => { button.textContent = 'Copied'; }, () => {
    getSelection().selectAllChildren($(button.dataset.copy)); // over plain http browsers keep the clipboard closed
    notice('The address is selected: copy it with Ctrl+C.');
  })));

function job(one) {
  const left = one.eta_s == null ? '' : `, ${Math.ceil(one.eta_s)} s left`, runs = ['running', 'queued', 'waiting'].includes(one.state);
  return element('tr', {}, element('td', {}, one.title || one.kind, ...(one.image ? [element('small', { class: 'muted' }, one.image)] : [])),
    element('td', {}, runs ? `${one.phase || one.state}${one.total ? ` ${one.done} of ${one.total}` : ''}${left}` : one.state),
    element('td', {}, runs ? element('progress', { 'aria-label': 'Progress', ...(one.total && { max: one.total, value: one.done }) }) : one.detail ?? ''),
    element('td', {}, ...(runs ? [element('button', { 'aria-label': `Stop ${one.title || one.kind}`, onclick: () => server.cancelJob(one.id).then(draw).catch(failed) }, 'Stop')] : [])));
}

const estimates = card => Object.entries(card.dice_estimate ?? {}).filter(([, one]) => typeof one?.after === 'number');

function checkpoint([name, card], known) {
  const slices = label => card.learned_from?.[label] ?? 0, found = Object.fromEntries(estimates(card).map(([label, one]) => [label, ` ${per(one.after)}`]));
  const use = () => server.activate(name).then(draw).then(() => notice(`${name} answers now.`)).catch(failed);
  const labels = (card.labels ?? []).map(label => element('div', {}, `${label}, ${slices(label)} ${slices(label) === 1 ? 'slice' : 'slices'}${found[label] ? `, Dice${found[label]}` : ''}`));
  return element('tr', {}, element('td', {}, when(card.created)), element('td', {}, ...labels), element('td', { class: 'people' }, name, ...(card.adapted ? [] : [element('div', {}, 'decoder as shipped, shown the slices')])),
    element('td', {}, name === known.active ? element('span', { class: 'tag finished' }, 'in use') : element('button', { 'aria-label': `Use checkpoint ${name}`, onclick: use }, 'Use this')));
}

function plots(cards) {
  const time = {}, slices = {};
  for (const [, card] of cards) {
    for (const [label, one] of estimates(card)) {
      (time[label] ??= []).push([Date.parse(card.created), one.after]);
      (slices[label] ??= []).push([card.learned_from?.[label] ?? one.slices, one.after]);
    }
  }
  if (!Object.keys(time).length) return $('plots').replaceChildren(element('p', { class: 'muted' }, 'Nothing yet: an estimate is made each time the model adapts to annotated slices.'));
  for (const lines of [time, slices]) for (const points of Object.values(lines)) points.sort((a, b) => a[0] - b[0]);
  return $('plots').replaceChildren(plot('Dice estimate over time', time, ms => when(new Date(ms).toISOString()).slice(5)), plot('Dice estimate by annotated slices', slices, n => `${n} slices`));
}

let shown = '';
async function draw() {
  const [info, jobs, known] = await Promise.all([server.info(), server.jobs(), server.checkpoints()]), own = info.ssmsam, { embedding } = own;
  fill($('server'), [['Version', info.version], ['Encoder', own.encoder], ['Device', own.device], ['Ready', own.warm ? 'yes' : 'warming up'],
    ...(embedding?.phase ? [['Preparing', `${embedding.image} ${embedding.done} of ${embedding.total}`]] : []), ['Memory', size(own.memory_bytes)],
    ['Studies', info.datastore?.total ?? ''], ['Finished', info.datastore?.finished ?? '']]);
  const state = JSON.stringify([jobs, known, own.set_aside]);
  if (state === shown) return; // what is in the reader's hands stays
  shown = state;
  $('jobs').replaceChildren(...(jobs.length ? jobs.map(job) : [none('Nothing runs.', 4)]));
  const cards = Object.entries(known.heads ?? known.checkpoints ?? {}).reverse(), more = cards.length - MOST_CHECKPOINTS;
  plots(cards);
  $('checkpoints').replaceChildren(...(cards.length ? cards.slice(0, MOST_CHECKPOINTS).map(one => checkpoint(one, known)) : [none('None yet: one is made when the model adapts.', 4)]),
    ...(more > 0 ? [none(`and ${more} older ones`, 4)] : []));
  $('aside').replaceChildren(...(own.set_aside.length ? own.set_aside.map(one => element('li', {}, sentence(one.reason ?? String(one.image)))) : [element('li', { class: 'muted' }, 'Nothing, as far as was tried.')]));
}
const again = () => draw().catch(failed).finally(() => setTimeout(again, EVERY_MS));
again();
server.studies().then(({ remote }) => { $('ohif').hidden = !remote; $('no-ohif').hidden = remote; }).catch(failed);
server.cache().then(found => { const used = found.places.filter(one => one.bytes); fill($('store'), used.length ? used.map(one => [one.what ?? one.name, size(one.bytes)]) : [['nothing yet', '']]); })
  .catch(() => fill($('store'), [['', 'for administrators']]));
