// The list of studies, and what to annotate next.

import * as server from './server.js';
import { $, element, estimates, failed, per } from './ui.js';

const address = (image, more = {}) => `${server.root}/annotate?${new URLSearchParams({ image, ...more })}`;
let all = [], expected = new Map();

const watcher = new IntersectionObserver(entries => entries.filter(one => one.isIntersecting).forEach(({ target }) => {
  watcher.unobserve(target);
  show(target).catch(error => {
    const row = target.closest('tr');
    row.querySelector('.state').replaceChildren(stateOf({ state: 'unreadable', reason: error.message }));
  });
}));
async function show(picture) {
  const answer = await server.thumbnail(picture.dataset.image);
  picture.closest('tr').querySelector('.modality').textContent = answer.headers.get('X-Ssmsam-Modality');
  picture.src = URL.createObjectURL(await answer.blob());
}

function stateOf(study) {
  return element('div', {}, element('span', { class: `tag ${study.state.replace(' ', '-')}` },
    study.state === 'unreadable' ? 'cannot be read' : study.state), ...(study.reason ? [element('p', { class: 'reason' }, study.reason)] : []));
}

function row(study) {
  const labels = Object.entries(study.labels), readable = study.state !== 'unreadable';
  const picture = element('img', { class: 'thumb', alt: '', width: 56, height: 56, 'data-image': study.image });
  if (readable) watcher.observe(picture);
  const name = study.info.PatientID ? `${study.info.PatientID} ${study.info.StudyDate ?? ''}` : study.image;
  const dice = labels.filter(([label]) => expected.has(label)).map(([label]) => `${label} ${per(expected.get(label))}`).join(', ');
  return element('tr', {}, element('td', {}, picture),
    element('td', {}, readable ? element('a', { href: address(study.image), class: 'name' }, name) : element('span', { class: 'name' }, name),
      ...(study.info.PatientID ? [element('small', { class: 'muted' }, study.image)] : [])),
    element('td', { class: 'modality' }, study.info.Modality ?? ''), element('td', { class: 'state' }, stateOf(study)),
    element('td', {}, labels.length ? labels.map(([label, n]) => `${label} ${n}`).join(', ') : '–'),
    element('td', {}, dice || '–'));
}

function draw() {
  const wanted = $('search').value.trim().toLowerCase();
  const found = all.filter(one => JSON.stringify([one.image, one.state, one.labels, one.info]).toLowerCase().includes(wanted));
  $('rows').replaceChildren(...found.map(row));
  $('empty').hidden = found.length > 0;
  $('empty').textContent = all.length ? 'No study fits the search.' : 'There are no studies yet: put images into the folder that the server was started on.';
}

async function next() {
  const box = $('suggestion');
  box.hidden = false;
  box.textContent = 'Choosing the slices that are most worth annotating …';
  const found = await server.nextSlices();
  if (!found.id) return void (box.textContent = found.message ?? 'Nothing is left to annotate.');
  const why = (found.reasons ?? []).map(one => element('li', {}, `slice ${one.slice}${one.label ? `, ${one.label}` : ''}: ${one.why.replace(`slice ${one.slice}: `, '')}`));
  sessionStorage.setItem(`ssmsam-asked-${found.id}`, JSON.stringify(found));
  const link = element('a', { class: 'button primary', href: address(found.id, { slice: found.slices?.[0] ?? '' }) }, 'Open');
  box.replaceChildren(element('h2', {}, `Next: ${found.id}, slices ${(found.slices ?? []).join(', ')}`), element('ul', {}, ...why), link);
  link.focus();
}

$('search').oninput = draw;
$('next').onclick = () => next().catch(error => { $('suggestion').hidden = true; failed(error); });
addEventListener('keydown', event => {
  if (event.target.matches('input') || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === '/') { event.preventDefault(); $('search').focus(); }
  if (event.key === 'n') $('next').click();
});
Promise.all([server.studies(), server.checkpoints().catch(() => ({ heads: {} }))]).then(([found, known]) => {
  all = found.studies;
  expected = new Map(estimates((known.heads ?? known.checkpoints ?? {})[known.active]));
  draw();
}).catch(failed);
