// The view of one study: its controls and keys.

import * as parts from './finish.js';
import { Proposal } from './proposal.js';
import * as server from './server.js';
import { Stage, VIEWS } from './stage.js';
import { Study } from './study.js';
import { TOOLS, Tools } from './tools.js';
import { $, element, failed, notice, per, remembered, saved, sentence } from './ui.js';

const WINDOWS = { CT: { 'Soft tissue': [-160, 240], Liver: [-45, 165], Lung: [-1350, 150], Bone: [-650, 1350], Brain: [0, 80], Mediastinum: [-125, 225] },
  MR: { '1–99 %': [0.01, 0.99], '2–98 %': [0.02, 0.98], '0.5–99.5 %': [0.005, 0.995], '5–95 %': [0.05, 0.95], 'Full range': [0, 1] } };
const SURE = 0.95, UNSURE = 0.6; // the expected Dice that the strip shows as blue, and as orange: guesses
const NAMES = { slice: 'Slice', planes: 'Planes', '3d': '3-D' };

const query = new URLSearchParams(location.search), image = query.get('image') ?? '';
const stage = new Stage($('gl'), $('overlay')), study = new Study(image, stage), tools = new Tools(study, stage), proposal = new Proposal(study);
let about = {}, unsureShown = true;

// --- what is on screen

function drawLabels() {
  $('labels').replaceChildren(...study.listed.map((one, n) => {
    const colour = element('input', { type: 'color', value: one.colour, 'aria-label': `Colour of ${one.name}`, onchange: event => { one.colour = event.target.value; study.keepLabels(); } });
    const pick = element('button', { class: 'name', 'aria-pressed': String(one === study.current), onclick: () => study.choose(one), ondblclick: () => rename(one) },
      element('span', {}, one.name), ...(n < 9 ? [element('kbd', {}, String(n + 1))] : []));
    const pen = element('button', { class: 'icon', title: `Rename ${one.name}`, 'aria-label': `Rename ${one.name}`, onclick: () => rename(one) }, '✎');
    const eye = element('button', { class: 'icon', title: one.visible ? `Hide ${one.name}` : `Show ${one.name}`, 'aria-label': `Show ${one.name}`, 'aria-pressed': String(one.visible),
      onclick: () => { one.visible = !one.visible; study.keepLabels(); } }, one.visible ? '◉' : '○');
    return element('li', { class: one === study.current ? 'current' : '' }, colour, pick, pen, eye);
  }));
}

function rename(label) {
  const item = $('labels').children[study.listed.indexOf(label)], input = element('input', { value: label.name, maxlength: 64, 'aria-label': `New name of ${label.name}` });
  let over = false;
  const stop = keep => {
    if (over) return;
    over = true;
    try { if (keep) study.rename(label, input.value.trim()); } catch (error) { failed(error); }
    drawLabels();
    $('frame').focus();
  };
  input.onblur = () => stop(true);
  input.onkeydown = event => { if (event.key === 'Enter') stop(true); if (event.key === 'Escape') stop(false); };
  item.querySelector('.name').replaceWith(input);
  input.select();
}

function drawStrip() {
  const states = study.states(), strip = $('strip'), expected = study.sliceDice[study.current?.name];
  if (strip.children.length !== states.length) strip.replaceChildren(...states.map(() => element('i')));
  strip.classList.toggle('few', states.length < 120);
  states.forEach(([state, asked], k) => {
    const node = strip.children[k], dice = state === 'predicted' || state === 'uncertain' ? expected?.[k] : undefined, now = `${state}${asked ? ' asked' : ''}`;
    const unsure = dice === undefined ? '0%' : `${Math.round(100 * Math.max(0, Math.min(1, (SURE - dice) / (SURE - UNSURE))))}%`, said = dice === undefined ? '' : `, expected Dice ${per(dice)}`;
    if (node.className === now && node.style.getPropertyValue('--unsure') === unsure) return;
    node.className = now;
    node.title = `slice ${k}: ${state === 'empty' ? 'not here' : state}${asked ? ', asked for' : ''}${said}`;
    node.style.setProperty('--unsure', unsure);
  });
}

const pictures = new WeakMap(); // what is uncertain, as a picture
function drawUnsure() {
  const values = unsureShown && study.current && (study.unsure.get(`${study.current.name} ${stage.slice}`) ?? proposal.unsureOn(study.current, stage.slice));
  if (values && !pictures.has(values)) {
    const [width, height] = stage.grid.shape, canvas = element('canvas', { width, height }), context = canvas.getContext('2d'), pixels = context.createImageData(width, height);
    values.forEach((value, n) => pixels.data.set([255, 190, 60, value * 0.5], 4 * n));
    context.putImageData(pixels, 0, 0);
    pictures.set(values, canvas.toDataURL());
  }
  stage.unsure = values ? { url: pictures.get(values), slice: stage.slice } : null;
  tools.draw();
}

// What to do here, in a sentence, and the action that does it: an open question of the model, or the next step.
function guide() {
  const { name, value } = study.current, k = stage.slice, known = study.known(name, k), drawn = study.drawn.get(value) ?? new Set();
  if (study.questions[name]?.includes(k) && !known) return [`Is there still ${name} here? Click on it, or press E if not.`, 'notHere'];
  const count = study.slicesOf(name).annotated.length, asked = study.asked.find(one => one.slice === k && (!one.label || one.label === name)), dice = study.sliceDice[name]?.[k];
  if (!known && drawn.has(k)) {
    const sure = dice === undefined ? '' : ` (expected Dice ${per(dice)} here)`;
    return [study.promptsAt(study.current, k) ? 'A click adds, a right click takes away. Press A to accept the slice.' : `Proposed${sure}: correct it by clicks, or press A to accept it.`, 'accept'];
  }
  if (!known && asked) return [`Asked for: ${asked.why.replace(`slice ${k}: `, '')}. Click on the ${name}, or press E if it is not here.`, ''];
  if (count === 0) return [drawn.size ? '' : `Click on the ${name}, or choose another label on the left. Wheel or ↑ ↓ change the slice.`, ''];
  if (count === 1 && drawn.size < 2) return [`One slice of ${name} is annotated. Go some slices on (wheel, ↑ ↓) and click on it again.`, ''];
  return drawn.size <= count && study.states().some(([state]) => state === 'unknown') && !proposal.abort ? [`${count} slices of ${name} are annotated. Press F: the others are proposed.`, 'adapt'] : ['', ''];
}

function drawHint() {
  const [text, next] = study.current && document.body.dataset.ready && stage.view !== '3d' ? guide() : ['', ''];
  $('hint').hidden = !text;
  $('hint').textContent = text;
  for (const name of ['accept', 'notHere', 'adapt']) document.querySelector(`[data-do=${name}]`).classList.toggle('primary', name === next);
}

function drawSlice() {
  const last = stage.grid.shape[2] - 1;
  $('slice').value = stage.slice;
  $('slice').setAttribute('aria-valuetext', `slice ${stage.slice} of ${last}`);
  $('where').value = `${stage.slice} / ${last}`;
  drawUnsure();
  drawHint();
}

study.addEventListener('change', () => { drawLabels(); if (stage.grid) { drawStrip(); drawUnsure(); drawHint(); } });
stage.addEventListener('slice', drawSlice);
stage.addEventListener('hover', ({ detail }) => { $('value').value = detail ? `${Math.round(stage.intensityAt(detail) * 10) / 10}${about.modality === 'CT' ? ' HU' : ''}` : ''; });

function setView(view) {
  stage.setView(view);
  drawHint();
  for (const one of $('views').children) one.setAttribute('aria-checked', String(one.dataset.view === view));
}

function useTool(name) {
  tools.use(name);
  for (const one of $('tools').children) one.setAttribute('aria-checked', String(one.dataset.tool === name));
}

// --- actions

function jump(way) {
  const { annotated, empty } = study.slicesOf(study.needLabel().name), found = [...annotated, ...empty].sort((a, b) => way * (a - b)).find(k => way * (k - stage.slice) > 0);
  if (found === undefined) saved(`No annotated slice ${way > 0 ? 'above' : 'below'}`); else stage.goTo(found);
}

function ask(found) {
  study.asked = found.reasons?.length ? found.reasons.map(({ label, slice, why }) => ({ label, slice, why })) : (found.slices ?? []).map(slice => ({ slice, label: '', why: 'asked for' }));
}

async function nextAsked() {
  let open = study.asked.find(one => !one.seen);
  if (!open) {
    saved('Choosing slices …');
    const found = await server.nextSlices({ image });
    saved('');
    if (!found.slices?.length) return notice(found.message ?? 'Nothing is left to annotate here.');
    ask(found);
    open = study.asked[0];
  }
  open.seen = true;
  if (open.label) study.choose(study.label(open.label));
  stage.goTo(open.slice);
  drawHint();
  return study.keepHints();
}

function nextUncertain() {
  const slices = study.uncertain[study.needLabel().name] ?? [], at = slices.indexOf(stage.slice);
  if (!slices.length) return saved('No uncertain slice is known: press F first');
  stage.goTo(slices[(at + 1) % slices.length]);
  return proposal.where(study.current);
}

const exporting = format => () => study.act(() => parts.download(study, format));
const actions = {
  accept: () => study.accept(), notHere: () => study.notHere(), erase: () => study.erase(), undo: () => study.undo(), redo: () => study.redo(),
  nextAsked: () => study.act(nextAsked), uncertain: nextUncertain, adapt: () => proposal.adapt(), finish: () => study.act(() => parts.finish(study)),
  nifti: exporting('nifti'), nrrd: exporting('nrrd'), dicom_seg: exporting('dicom_seg'), rtstruct: exporting('rtstruct'),
  previous: () => stage.goTo(stage.slice - 1), next: () => stage.goTo(stage.slice + 1), back10: () => stage.goTo(stage.slice - 10), on10: () => stage.goTo(stage.slice + 10),
  previousAnnotated: () => jump(-1), nextAnnotated: () => jump(1),
  toggleMask: () => { stage.setOpacity(stage.opacity, !stage.shown); $('masks').setAttribute('aria-pressed', String(stage.shown)); },
  toggleUnsure: () => { unsureShown = !unsureShown; $('unsure').setAttribute('aria-pressed', String(unsureShown)); drawUnsure(); },
  window: () => { const list = $('window'); list.selectedIndex = (list.selectedIndex + 1) % list.length; list.onchange(); },
  view: () => setView(VIEWS[(VIEWS.indexOf(stage.view) + 1) % VIEWS.length]), before: () => proposal.showBefore(true),
  zoomIn: () => stage.zoom(1.2), zoomOut: () => stage.zoom(1 / 1.2), press: () => tools.pressCursor(), help: () => $('help').showModal(),
};

const KEYS = [['a', 'accept', 'Accept the mask of this slice'], ['e', 'notHere', 'The label is not on this slice'], ['Delete', 'erase', 'Erase the label on this slice'],
  ['z', 'undo', 'Undo'], ['y', 'redo', 'Redo'], ['ArrowUp', 'next', 'Next slice'], ['ArrowDown', 'previous', 'Previous slice'], ['PageUp', 'on10', 'Ten slices on'],
  ['PageDown', 'back10', 'Ten slices back'], [']', 'nextAnnotated', 'Next annotated slice'], ['[', 'previousAnnotated', 'Previous annotated slice'],
  ['n', 'nextAsked', 'Next slice to annotate, and why'], ['f', 'adapt', 'Adapt, and propose the rest'], ['u', 'uncertain', 'Next uncertain slice, and where'],
  ['o', 'before', 'Held: the masks before the adaptation'], ['t', 'toggleMask', 'Show or hide masks'], ['q', 'toggleUnsure', 'Show or hide what is uncertain'],
  ['w', 'window', 'Next window'], ['v', 'view', 'Slice, planes, 3-D'], ['+', 'zoomIn', 'Zoom in'], ['-', 'zoomOut', 'Zoom out'], ['Enter', 'press', 'Put the cursor down'], ['?', 'help', 'This list']];
const MORE = [['1–9', 'Choose a label'], ...TOOLS.map(([, key, title]) => [key, title]), ['Shift+arrows', 'Move the cursor'], ['Right click', 'Point out'],
  ['Wheel', 'Change the slice'], ['Ctrl+wheel', 'Zoom'], ['Middle drag', 'Move the image']];
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

const run = name => { try { actions[name]()?.catch?.(failed); } catch (error) { failed(error); } };

function key(event) {
  if (!stage.grid || event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  const { target } = event;
  if (target.matches('input:not([type=range]):not([type=color]), select, textarea')) return;
  if (target.matches('input[type=range]') && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  if (target.matches('button, summary, a, input') && ['Enter', ' '].includes(event.key)) return;
  const name = event.key === 'Backspace' ? 'Delete' : event.key, tool = TOOLS.find(([, one]) => one === name.toUpperCase()), known = KEYS.find(([one]) => one.toLowerCase() === name.toLowerCase());
  if (event.shiftKey && ARROWS[name]) tools.moveCursor(...ARROWS[name]);
  else if (/^[1-9]$/.test(name)) { const label = study.listed[Number(name) - 1]; if (label) study.choose(label); }
  else if (tool) useTool(tool[0]);
  else if (known) run(known[1]);
  else return;
  event.preventDefault();
}

function radios(place, of, chosen, choose) {
  place.replaceChildren(...of.map(([name, title, more]) => element('button', { role: 'radio', 'aria-checked': String(name === chosen), ...more, onclick: () => choose(name) }, ...title)));
}

function controls() {
  radios($('tools'), TOOLS.map(([name, letter, title]) => [name, [title, element('kbd', {}, letter)], { 'data-tool': name }]), 'positive', useTool);
  radios($('views'), VIEWS.map(name => [name, [NAMES[name]], { 'data-view': name, title: `${NAMES[name]} (V)` }]), 'slice', setView);
  document.querySelectorAll('[data-do]').forEach(button => { button.onclick = () => run(button.dataset.do); });
  $('help-button').onclick = () => run('help');
  $('brush').oninput = () => { $('brush-size').value = $('brush').value; tools.radius = Number($('brush').value); };
  $('opacity').oninput = () => stage.setOpacity(Number($('opacity').value) / 100);
  $('slice').oninput = () => stage.goTo(Number($('slice').value));
  $('add-label').onsubmit = event => {
    event.preventDefault();
    const name = event.target.name.value.trim();
    if (name) study.choose(study.label(name));
    event.target.reset();
    $('frame').focus();
  };
  const short = { ArrowUp: '↑', ArrowDown: '↓', Delete: 'Del' };
  $('keys').replaceChildren(...[...KEYS.map(([one, , what]) => [short[one] ?? (one.length === 1 ? one.toUpperCase() : one), what]), ...MORE]
    .map(([one, what]) => element('div', {}, element('dt', {}, element('kbd', {}, one)), element('dd', {}, what))));
  addEventListener('keydown', key);
  addEventListener('keyup', event => { if (event.key.toLowerCase() === 'o') proposal.showBefore(false); });
  addEventListener('blur', () => proposal.showBefore(false));
  addEventListener('beforeunload', event => { if (document.body.hasAttribute('data-busy')) event.preventDefault(); });
}

function windows(kind) {
  const presets = Object.entries(WINDOWS[kind]), use = ([, range]) => stage.window(...(kind === 'CT' ? range : stage.percentiles(range)));
  $('window').replaceChildren(...presets.map(([name], n) => element('option', { value: n }, name)));
  $('window').onchange = () => use(presets[$('window').value]);
  if (kind !== 'CT') use(presets[0]); // a CT was opened with its first window
}

// --- opening

function labels(offered) {
  for (const one of remembered('labels', [])) study.label(one.name, { colour: one.colour, listed: one.listed });
  if (!study.listed.length) offered.slice(0, 4).forEach(name => { study.label(name).listed = true; });
  offered.forEach(name => study.label(name));
  $('add-label').name.setAttribute('list', 'known-labels');
  $('add-label').append(element('datalist', { id: 'known-labels' }, ...offered.map(name => element('option', { value: name }))));
}

// The middle slice is there before the volume is.
async function firstPicture() {
  const answer = await server.picture(image), towards = answer.headers.get('X-Ssmsam-Towards')?.split(' ') ?? [], [row, column] = (answer.headers.get('X-Ssmsam-Spacing') ?? '1 1').split(' ').map(Number);
  const first = $('first');
  first.src = URL.createObjectURL(await answer.blob());
  await first.decode();
  const tall = first.naturalHeight * row, wide = first.naturalWidth * column, scale = Math.min(first.parentNode.clientWidth / wide, first.parentNode.clientHeight / tall);
  Object.assign(first.style, { width: `${wide * scale}px`, height: `${tall * scale}px`, transform: `scale(${towards[1] === 'R' ? -1 : 1}, ${['A', 'S'].includes(towards[0]) ? -1 : 1})` });
  first.hidden = false;
  window.ssmsam.firstImageMs = performance.now();
}

async function start() {
  controls();
  window.ssmsam = { stage, server, study, tools, proposal, labels: () => study.labels, partial: () => study.partial };
  if (!image) throw new Error('No study is named: choose one in the list');
  if (!document.body.dataset.niivue) { $('loading').hidden = true; return; }
  firstPicture().catch(() => {}); // what is wrong with the image is said below
  const [niivue, found, info] = await Promise.all([import('./niivue.js'), server.about(image), server.info()]);
  about = found;
  $('study').textContent = `${image} · ${about.modality} · ${about.shape.join(' × ')}`;
  $('study').title = `${about.spacing.join(' × ')} mm`;
  document.title = `${image} · ssmsam`;
  labels(info.labels);
  const kind = about.modality === 'CT' ? 'CT' : 'MR';
  for (const button of document.querySelectorAll('[data-do=dicom_seg], [data-do=rtstruct]')) {
    button.disabled = !about.formats.includes(button.dataset.do);
    if (button.disabled) button.title = 'Only where the image is stored as DICOM';
  }
  await stage.open(niivue, server.imageAddress(image), kind === 'CT' ? Object.values(WINDOWS.CT)[0] : null);
  $('slice').max = stage.grid.shape[2] - 1;
  windows(kind);
  window.ssmsam.openedMs = performance.now();
  $('loading').hidden = true;
  const hints = remembered(`hints-${image}`, {}), offered = remembered(`asked-${image}`, null);
  study.uncertain = hints.uncertain ?? {};
  study.questions = hints.questions ?? {};
  study.sliceDice = hints.sliceDice ?? {};
  study.asked = hints.asked ?? [];
  if (offered) { ask(offered); localStorage.removeItem(`ssmsam-asked-${image}`); }
  const first = offered && study.asked[0];
  if (first) first.seen = true;
  await study.load();
  study.choose(first?.label ? study.label(first.label) : study.labels.find(one => study.slicesOf(one.name).annotated.length) ?? study.listed[0]);
  stage.goTo(query.get('slice') ? Number(query.get('slice')) : first?.slice ?? study.slicesOf(study.current.name).annotated[0] ?? stage.slice);
  $('frame').focus();
  document.body.dataset.ready = 'yes';
  drawHint();
  parts.showReview(study).then(row => proposal.show(row?.expected ?? {})).catch(failed);
  parts.showMeasurements(study).catch(failed);
}

start().catch(error => {
  $('first').hidden = true;
  $('loading').hidden = false;
  $('loading').querySelector('span').textContent = sentence(error.message);
  $('loading').classList.add('error');
  console.warn(error);
});
