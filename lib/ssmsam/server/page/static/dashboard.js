// The state of the server: jobs, checkpoints, what cannot be read, how to connect.

import * as server from './server.js';
import { $, element, estimates, failed, notice, per } from './ui.js';

const EVERY_MS = 2000;
const fill = (list, pairs) => list.replaceChildren(...pairs.flatMap(([name, value]) => [element('dt', {}, name), element('dd', {}, String(value))]));
const none = (text, columns) => element('tr', {}, element('td', { colspan: columns, class: 'muted' }, text));
const size = bytes => bytes > 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`;

const here = `${location.origin}${server.root}`;
$('slicer-address').textContent = here;
$('ohif-address').textContent = `${here}/ohif/`;
document.querySelectorAll('[data-copy]').forEach(button => button.addEventListener('click', () =>
  navigator.clipboard.writeText($(button.dataset.copy).textContent).then(() => notice('Copied.'), () => notice('The browser does not allow copying here: select the address.', 'error'))));

function job(one) {
  const left = one.eta_s == null ? '' : `, ${Math.ceil(one.eta_s)} s left`;
  const running = one.state === 'running' || one.state === 'queued' || one.state === 'waiting';
  return element('tr', {}, element('td', {}, one.title || one.kind), element('td', {}, running ? `${one.phase || one.state}${left}` : one.state),
    element('td', {}, running ? element('progress', { 'aria-label': 'Progress', ...(one.total && { max: one.total, value: one.done }) }) : one.detail),
    element('td', {}, ...(running ? [element('button', { onclick: () => server.cancelJob(one.id).then(draw).catch(failed) }, 'Stop')] : [])));
}

function checkpoint([name, card], known) {
  const active = name === known.active;
  const found = estimates(card).map(([label, value]) => `${label} ${per(value)}`).join(', ') || (card.labels ?? []).join(', ');
  const use = () => server.activate(name).then(draw).then(() => notice(`${name} answers now.`)).catch(failed);
  return element('tr', {}, element('td', {}, name), element('td', {}, String(card.created ?? '').slice(0, 16).replace('T', ' ')), element('td', {}, found),
    element('td', {}, active ? element('span', { class: 'tag finished' }, 'in use') : element('button', { onclick: use }, 'Use this')));
}

async function draw() {
  const [info, jobs, known] = await Promise.all([server.info(), server.jobs(), server.checkpoints()]);
  const own = info.ssmsam;
  fill($('server'), [['Version', info.version], ['Encoder', own.encoder], ['Device', own.device], ['Ready', own.warm ? 'yes' : 'warming up'],
    ['Slices embedded since start', own.encoded_slices], ['Studies', info.datastore?.total ?? ''], ['Finished', info.datastore?.finished ?? '']]);
  $('jobs').replaceChildren(...(jobs.length ? jobs.map(job) : [none('Nothing runs.', 4)]));
  const cards = Object.entries(known.heads ?? known.checkpoints ?? {}).reverse();
  $('checkpoints').replaceChildren(...(cards.length ? cards.map(one => checkpoint(one, known)) : [none('None yet: one is made when the model adapts.', 4)]));
  $('aside').replaceChildren(...(own.set_aside.length ? own.set_aside.map(one => element('li', {}, element('b', {}, `${one.image ?? ''} `), one.reason ?? String(one))) : [element('li', { class: 'muted' }, 'Nothing, as far as was tried.')]));
}
const again = () => draw().catch(failed).finally(() => setTimeout(again, EVERY_MS));
again();
server.cache().then(found => fill($('store'), found.places.map(one => [one.what ?? one.name, size(one.bytes ?? 0)]))).catch(() => fill($('store'), [['', 'for administrators']]));
