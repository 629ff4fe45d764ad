// The list of studies, and what to annotate next.

import * as server from './server.js';
import { $, element, failed, keepFile, minutes, notice, per, remember, saved, when } from './ui.js';

const address = (image, more = {}) => `${server.root}/annotate?${new URLSearchParams({ image, ...more })}`;
const STATES = { new: 'new', 'in work': 'in work', 'to review': 'to review', finished: 'finished', unreadable: 'cannot be read' };
let all = [];

const watcher = new IntersectionObserver(entries => entries.filter(one => one.isIntersecting).forEach(({ target }) => {
  watcher.unobserve(target);
  show(target).catch(error => {
    const study = all.find(one => one.image === target.dataset.image), place = target.closest('tr');
    if (!study) return;
    if (error.status !== 422) return console.warn(error);
    Object.assign(study, { state: 'unreadable', reason: error.message });
    place?.replaceWith(row(study));
  });
}));
const pictures = new Map(); // image -> its picture, so that a search does not ask for it again
async function show(target) {
  const { image } = target.dataset;
  if (!pictures.has(image)) {
    const answer = await server.thumbnail(image);
    pictures.set(image, { modality: answer.headers.get('X-Ssmsam-Modality'), src: URL.createObjectURL(await answer.blob()) });
  }
  target.closest('tr').querySelector('.modality').textContent = pictures.get(image).modality;
  target.src = pictures.get(image).src;
}

function stateOf({ state, reason, review }) {
  const said = reason || (review?.verdict === 'send_back' && state !== 'finished' ? `Sent back by ${review.client}: ${review.note}` : '');
  return [element('span', { class: `tag ${state.replace(' ', '-')}` }, STATES[state] ?? state), ...(said ? [element('p', { class: 'reason' }, said)] : [])];
}

function row(study) {
  const labels = Object.entries(study.labels), readable = study.state !== 'unreadable', workers = study.workers ?? [];
  const picture = element('img', { class: 'thumb', alt: '', width: 56, height: 56, 'data-image': study.image });
  if (readable) watcher.observe(picture);
  const name = study.info.PatientID ? `${study.info.PatientID} ${study.info.StudyDate ?? ''}` : study.image;
  const expected = Object.entries(study.expected ?? {}).map(([label, value]) => element('div', {}, `${label} ${per(value)}`));
  const open = event => { if (readable && !event.target.closest('a')) location.href = address(study.image); };
  return element('tr', { class: readable && 'opens', onclick: open }, element('td', {}, readable ? element('a', { href: address(study.image), tabindex: -1, 'aria-hidden': 'true' }, picture) : picture),
    element('td', {}, readable ? element('a', { href: address(study.image), class: 'name' }, name) : element('span', { class: 'name' }, name),
      ...(study.info.PatientID ? [element('small', { class: 'muted' }, study.image)] : [])),
    element('td', { class: 'modality' }, study.info.Modality ?? ''), element('td', { class: 'state' }, ...stateOf(study)),
    element('td', { class: 'people' }, ...workers.slice(0, 3).map(one => element('div', { title: `last ${when(one.last)}` }, `${one.client === server.client ? 'you' : one.client}, ${minutes(one.seconds)}`))),
    element('td', {}, ...(labels.length ? labels.map(([label, n]) => element('div', {}, `${label} ${n}`)) : ['–'])),
    element('td', {}, ...(expected.length ? expected : ['–'])));
}

function draw() {
  const wanted = $('search').value.trim().toLowerCase();
  const found = all.filter(one => JSON.stringify([one.image, STATES[one.state], one.labels, one.info, one.workers]).toLowerCase().includes(wanted));
  $('rows').replaceChildren(...found.map(row));
  $('empty').hidden = found.length > 0;
  $('empty').textContent = all.length ? 'No study fits the search.' : 'There are no studies yet: put images into the folder that the server was started on, and load this page again.';
  $('intro').hidden = !all.length || all.some(one => Object.keys(one.labels).length);
  $('foot').hidden = !all.length;
  $('counts').textContent = Object.keys(STATES).map(state => [all.filter(one => one.state === state).length, STATES[state]]).filter(([count]) => count).map(pair => pair.join(' ')).join(' · ');
}

async function next() {
  const box = $('suggestion'), began = Date.now(), tell = () => { box.textContent = `Choosing the slices that are most worth annotating … ${Math.round((Date.now() - began) / 1000)} s`; };
  box.hidden = false;
  tell();
  const clock = setInterval(tell, 1000), found = await server.nextSlices().finally(() => clearInterval(clock));
  if (!found.id) return void (box.textContent = found.message ?? 'Nothing is left to annotate.');
  const why = (found.reasons ?? []).map(one => element('li', {}, `slice ${one.slice}${one.label ? `, ${one.label}` : ''}: ${one.why.replace(`slice ${one.slice}: `, '')}`));
  remember(`asked-${found.id}`, found);
  const link = element('a', { class: 'button primary', href: address(found.id) }, 'Open');
  box.replaceChildren(element('h2', {}, `Next: ${found.id}, slices ${(found.slices ?? []).join(', ')}`), element('ul', {}, ...why), link);
  return link.focus();
}

async function dataset() {
  saved('Making the dataset …');
  const { blob, name } = await server.dataset($('only').value);
  keepFile(blob, name);
  saved(`Exported: ${name}`);
}

$('search').oninput = draw;
$('next').onclick = () => next().catch(error => { $('suggestion').hidden = true; failed(error); });
$('dataset').onclick = () => dataset().catch(failed);
$('reader').value = server.client;
$('reader').onchange = () => {
  const name = $('reader').value.trim();
  if (/^[\w.-]+$/.test(name)) server.callMyself(name);
  else { notice('A name of letters, digits, dots and dashes, please.', 'error'); $('reader').value = server.client; }
};
addEventListener('keydown', event => {
  if (event.target.matches('input, select') || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === '/') { event.preventDefault(); $('search').focus(); }
  if (event.key.toLowerCase() === 'n') $('next').click();
});
server.studies().then(found => { all = found.studies; draw(); }).catch(failed);
