// One study: clicks, boxes and strokes become masks, masks become annotated slices, and those teach the model.

import { maskFile, readMask } from './grid.js';
import * as server from './server.js';
import { Stage } from './stage.js';
import { $, element, failed, keep, notice, per, saved } from './ui.js';

const COLOURS = ['#e0655f', '#5fa8e0', '#e0b95f', '#6fcf97', '#b48be0', '#5fd3d0', '#e08bb9', '#a9c25a', '#d98c4a', '#8b9be0'];
const WINDOWS = { CT: { 'Soft tissue': [-160, 240], Liver: [-45, 165], Lung: [-1350, 150], Bone: [-650, 1350], Brain: [0, 80], Mediastinum: [-125, 225] },
  MR: { '0.5–99.5 %': [0.005, 0.995], '1–99 %': [0.01, 0.99], '2–98 %': [0.02, 0.98], '5–95 %': [0.05, 0.95], 'Full range': [0, 1] } };
const TOOLS = [['positive', 'P', 'Point in'], ['negative', 'X', 'Point out'], ['box', 'B', 'Box'], ['brush', 'D', 'Brush'], ['eraser', 'R', 'Eraser']];
const STROKE_SAVED_MS = 400, JOBS_MS = 700, MOST_UNDO = 100;

const query = new URLSearchParams(location.search), image = query.get('image') ?? '';
const stage = new Stage($('gl'), $('overlay'));
let labels = [], current = null, tool = 'positive', partial = {}, about = {}, abort = null, drawing = null, timer = 0;
let uncertain = {}, asked = [];
const prompts = new Map(); // `${label} ${slice}` -> {positive, negative, box}
const done = [], undone = [];

// --- one piece of work after the other; what goes wrong is said

let last = Promise.resolve(), waiting = 0;
function act(work) {
  waiting += 1;
  document.body.toggleAttribute('data-busy', true);
  last = last.then(work).catch(failed).finally(() => {
    waiting -= 1;
    document.body.toggleAttribute('data-busy', waiting > 0);
  });
  return last;
}

// --- labels

function labelOf(name, more = {}) {
  let label = labels.find(one => one.name.toLowerCase() === name.toLowerCase());
  if (!label) {
    const value = 1 + Math.max(0, ...labels.map(one => one.value));
    label = { name, value, colour: COLOURS[(value - 1) % COLOURS.length], visible: true, listed: false, ...more };
    labels.push(label);
  }
  return label;
}

function remember() {
  localStorage.setItem('ssmsam-labels', JSON.stringify(labels.map(({ name, colour, listed }) => ({ name, colour, listed }))));
}

function drawLabels() {
  $('labels').replaceChildren(...labels.filter(one => one.listed).map((one, n) => {
    const colour = element('input', { type: 'color', value: one.colour, 'aria-label': `Colour of ${one.name}`, oninput: event => {
      one.colour = event.target.value; remember(); stage.colours(labels);
    } });
    const eye = element('button', { class: 'icon', 'aria-pressed': String(one.visible), 'aria-label': `Show ${one.name}`, title: 'Show or hide', onclick: () => {
      one.visible = !one.visible; stage.colours(labels); drawLabels();
    } }, one.visible ? '◉' : '○');
    const pick = element('button', { class: 'name', 'aria-pressed': String(one === current), onclick: () => choose(one), ondblclick: () => rename(one) },
      one.name, ...(n < 9 ? [element('kbd', {}, String(n + 1))] : []));
    return element('li', { class: one === current ? 'current' : '' }, colour, pick, eye);
  }));
}

function choose(label) {
  current = label;
  label.listed = true;
  remember();
  drawLabels();
  showMarks();
  drawStrip();
}

// A label that is annotated keeps its name: its annotations are filed under it.
function rename(label) {
  const lists = slicesOf(label.name);
  if (lists.annotated.length || lists.empty.length) return notice(`${label.name} has annotated slices under this name: add a new label instead.`, 'error');
  const input = element('input', { value: label.name, maxlength: 64, 'aria-label': 'New name' });
  const stop = () => { const name = input.value.trim(); if (name && !labels.some(one => one !== label && one.name.toLowerCase() === name.toLowerCase())) label.name = name; remember(); drawLabels(); };
  input.onblur = stop;
  input.onkeydown = event => { if (event.key === 'Enter') input.blur(); };
  [...$('labels').children].find(li => li.querySelector('.name')?.firstChild.data === label.name)?.querySelector('.name').replaceWith(input);
  input.focus();
}

// --- what is known of slices

function slicesOf(name) {
  const plane = [partial].flat().find(one => (one?.axis ?? 2) === 2) ?? {};
  return { annotated: [], empty: [], ...plane.slices?.[name] };
}
const isKnown = (name, k) => { const lists = slicesOf(name); return lists.annotated.includes(k) || lists.empty.includes(k); };

function drawStrip() {
  const count = stage.grid?.shape[2] ?? 0, name = current?.name ?? '', { annotated, empty } = slicesOf(name);
  const drawn = drawnSlices(), unsure = new Set(uncertain[name]), wanted = new Set(asked.filter(one => !one.label || one.label === name).map(one => one.slice));
  if ($('strip').children.length !== count) $('strip').replaceChildren(...Array.from({ length: count }, () => element('i')));
  const states = Array.from({ length: count }, (_, k) => (annotated.includes(k) ? 'annotated' : empty.includes(k) ? 'empty'
    : unsure.has(k) ? 'uncertain' : drawn.has(k) ? 'predicted' : 'unknown'));
  states.forEach((state, k) => {
    const node = $('strip').children[k];
    node.className = `${state}${wanted.has(k) ? ' asked' : ''}`;
    node.title = `slice ${k}: ${state}${wanted.has(k) ? ', asked for' : ''}`;
  });
  $('strip').dataset.label = name;
}

const shown = new Map(); // label -> slices with voxels, kept in step by `put` and `paint`
const drawnSlices = () => new Set(shown.get(current?.value) ?? []);

function countSlice(k, slice) {
  const found = new Set(slice);
  for (const { value } of labels) {
    if (!shown.has(value)) shown.set(value, new Set());
    shown.get(value)[found.has(value) ? 'add' : 'delete'](k);
  }
}

function put(k, slice) {
  stage.grid.write(stage.voxels, k, slice);
  countSlice(k, slice);
  stage.refresh();
}

async function refresh() {
  partial = (await server.annotations(image)).partial;
  drawStrip();
}

// --- prompts

const promptsHere = () => {
  const key = `${current.name} ${stage.slice}`;
  if (!prompts.has(key)) prompts.set(key, { positive: [], negative: [], box: null });
  return prompts.get(key);
};

function showMarks() {
  const found = current ? prompts.get(`${current.name} ${stage.slice}`) : null;
  stage.drawMarks(!found ? [] : [...found.positive.map(ijk => ({ ijk })), ...found.negative.map(ijk => ({ ijk, negative: true })),
    ...(found.box ? [{ from: found.box[0], to: found.box[1] }] : [])]);
}

function requireLabel() {
  if (!current) throw new Error('Choose a label first, with 1 to 9 or in the list.');
  return current;
}

function segment(change) {
  requireLabel();
  const label = current, k = stage.slice, one = promptsHere(), before = structuredClone(one);
  change(one);
  showMarks();
  const wanted = structuredClone(one), pressed = performance.now();
  return act(async () => {
    try {
      const [from, to] = wanted.box ?? [], { mask } = await server.infer('sam_2d', image, { label: label.name, slice: k,
        foreground: wanted.positive, background: wanted.negative, ...(from && { roi: [from[0], to[0], from[1], to[1], k, k] }) }, { output: 'image' });
      const voxels = await readMask(mask), found = voxels.subarray(k * stage.grid.area, (k + 1) * stage.grid.area);
      replaceLabel(label, k, found, { undoes: () => { prompts.set(`${label.name} ${k}`, before); showMarks(); } });
      window.ssmsam.lastClickMs = performance.now() - pressed;
      if (isKnown(label.name, k)) await submitSlice(label, k);
      else saved(`Slice ${k}: kept by the server. Accept with A.`);
    } catch (error) {
      prompts.set(`${label.name} ${k}`, before);
      showMarks();
      throw error;
    }
  });
}

// What another label was annotated with stays.
function replaceLabel(label, k, found, { undoes = null } = {}) {
  const before = stage.grid.read(stage.voxels, k), after = before.slice();
  const kept = new Set(labels.filter(one => one !== label && isKnown(one.name, k)).map(one => one.value));
  for (let n = 0; n < after.length; n++) {
    if (after[n] === label.value) after[n] = 0;
    if (found[n] && !kept.has(after[n])) after[n] = label.value;
  }
  put(k, after);
  note({ label, k, before, after, undoes });
}

function note(change) {
  done.push(change);
  if (done.length > MOST_UNDO) done.shift();
  undone.length = 0;
  drawStrip();
}

// --- strokes: a slice that was drawn on counts as annotated as it is drawn

function disc(slice, [i, j], value) {
  const radius = Number($('brush').value) - 1, [columns, rows] = stage.grid.shape, ratio = stage.grid.spacing[0] / stage.grid.spacing[1];
  const kept = new Set(labels.filter(one => one !== current && isKnown(one.name, stage.slice)).map(one => one.value));
  const down = Math.round(radius * ratio);
  for (let y = Math.max(0, j - down); y <= Math.min(rows - 1, j + down); y++) {
    for (let x = Math.max(0, i - radius); x <= Math.min(columns - 1, i + radius); x++) {
      if ((x - i) ** 2 + ((y - j) / ratio) ** 2 > radius ** 2 + 0.25) continue;
      const n = y * columns + x;
      if (value ? !kept.has(slice[n]) : slice[n] === current.value) slice[n] = value;
    }
  }
}

function stroke(kind, ijk) {
  if (kind === 'down') {
    clearTimeout(timer);
    const before = stage.grid.read(stage.voxels, stage.slice);
    drawing = { before, after: before.slice(), last: ijk, k: stage.slice };
  }
  if (!drawing) return;
  if (ijk) {
    const steps = Math.max(1, ...[0, 1].map(a => Math.abs(ijk[a] - (drawing.last ?? ijk)[a])));
    for (let n = 0; n <= steps; n++) {
      const at = [0, 1].map(a => Math.round((drawing.last ?? ijk)[a] + (n / steps) * (ijk[a] - (drawing.last ?? ijk)[a])));
      disc(drawing.after, at, tool === 'brush' ? current.value : 0);
    }
    drawing.last = ijk;
    put(drawing.k, drawing.after);
  }
  if (kind !== 'up') return;
  const { before, after, k } = drawing, label = current;
  drawing = null;
  note({ label, k, before, after });
  saved('Saving …');
  timer = setTimeout(() => act(() => submitSlice(label, k)), STROKE_SAVED_MS);
}

let corner = null;
stage.addEventListener('pointer', ({ detail: { kind, ijk, negative } }) => {
  try {
    requireLabel();
    if (tool === 'brush' || tool === 'eraser') return stroke(kind, ijk);
    if (tool === 'box') {
      if (kind === 'down') corner = ijk;
      if (corner && ijk && kind === 'move') stage.drawMarks([{ from: corner, to: ijk }]);
      if (kind === 'up' && corner && ijk && (corner[0] !== ijk[0] || corner[1] !== ijk[1])) {
        const from = corner;
        segment(one => { one.box = [from, ijk]; });
      }
      if (kind === 'up') corner = null;
    } else if (kind === 'down' && ijk) segment(one => one[tool === 'negative' || negative ? 'negative' : 'positive'].push(ijk));
  } catch (error) { if (kind === 'down') failed(error); }
});

// --- what counts

async function submitSlice(label, k) {
  const voxels = stage.grid.read(stage.voxels, k).map(one => (one === label.value ? 1 : 0)), empty = !voxels.includes(1);
  saved('Saving …');
  const said = await server.submit(image, await maskFile(stage.grid, { [k]: voxels }), [[label.name, 1]], { [label.name]: { [empty ? 'empty' : 'annotated']: [k] } });
  partial = said.partial;
  asked = asked.filter(one => one.slice !== k || (one.label && one.label !== label.name));
  uncertain[label.name] = (uncertain[label.name] ?? []).filter(one => one !== k);
  storeHints();
  drawStrip();
  saved(`Saved: slice ${k}, ${empty ? `no ${label.name}` : label.name}`);
}

async function withdraw(label, k) {
  partial = (await server.change(image, { [label.name]: { withdraw: [k] } })).partial;
  drawStrip();
  saved(`Saved: slice ${k} of ${label.name} does not count`);
}

async function step(change, forward) {
  const { label, k, before, after, known } = change;
  if (stage.slice !== k) stage.goTo(k);
  if (before) put(k, forward ? after : before);
  if (!forward) change.undoes?.();
  if (known !== undefined && !forward) await (known ? submitSlice(label, k) : withdraw(label, k));
  else if (known !== undefined || isKnown(label.name, k)) await submitSlice(label, k);
  drawStrip();
}

const actions = {
  accept: () => {
    const label = requireLabel(), k = stage.slice, known = isKnown(label.name, k);
    if (!stage.grid.read(stage.voxels, k).includes(label.value)) throw new Error(`There is no ${label.name} drawn on slice ${k}. If it is not there, press E.`);
    return act(async () => { await submitSlice(label, k); note({ label, k, known }); });
  },
  notHere: () => {
    const label = requireLabel(), k = stage.slice, known = isKnown(label.name, k);
    return act(async () => {
      const before = stage.grid.read(stage.voxels, k), after = before.map(one => (one === label.value ? 0 : one));
      put(k, after);
      prompts.delete(`${label.name} ${k}`);
      showMarks();
      await submitSlice(label, k);
      note({ label, k, before, after, known });
    });
  },
  eraseSlice: () => {
    const label = requireLabel(), k = stage.slice;
    prompts.delete(`${label.name} ${k}`);
    showMarks();
    replaceLabel(label, k, new Uint8Array(stage.grid.area));
    if (isKnown(label.name, k)) return act(() => withdraw(label, k));
    return null;
  },
  undo: () => act(async () => { const one = done.pop(); if (!one) return saved('Nothing to undo'); undone.push(one); await step(one, false); }),
  redo: () => act(async () => { const one = undone.pop(); if (!one) return saved('Nothing to redo'); done.push(one); await step(one, true); }),
  nextAsked: () => act(nextAsked),
  adapt: () => act(adapt),
  finish: () => act(finish),
  exportNifti: () => act(async () => keep(await server.download('/datastore/label', { label: image, tag: 'partial' }), `${image}_labels.nii.gz`)),
  exportNrrd: () => act(async () => keep(await server.download('/datastore/annotations/masks', { image, client_id: server.client }), `${image}_labels.nrrd`)),
  exportSeg: () => act(async () => keep(await server.infer('fewshot', image, { adapt: false }, { output: 'dicom_seg' }), `${image}_seg.dcm`)),
  previous: () => stage.goTo(stage.slice - 1),
  next: () => stage.goTo(stage.slice + 1),
  previousAnnotated: () => jump(-1),
  nextAnnotated: () => jump(1),
  toggleMask: () => stage.setOpacity(stage.opacity, !stage.shown),
  planes: () => { stage.setPlanes(!stage.planes); $('planes').setAttribute('aria-pressed', String(stage.planes)); },
  uncertain: () => { const worst = uncertain[requireLabel().name]?.[0]; if (worst === undefined) saved('No uncertain slice is known: adapt first'); else stage.goTo(worst); },
  help: () => $('help').showModal(),
  zoomIn: () => stage.zoom(1.2),
  zoomOut: () => stage.zoom(1 / 1.2),
};

function jump(way) {
  const { annotated, empty } = slicesOf(requireLabel().name), found = [...annotated, ...empty].sort((a, b) => way * (a - b)).find(k => way * (k - stage.slice) > 0);
  if (found === undefined) saved(`No annotated slice ${way > 0 ? 'above' : 'below'}`); else stage.goTo(found);
}

function visit(one) {
  if (one.label) choose(labelOf(one.label));
  stage.goTo(one.slice);
  notice(`Slice ${one.slice}${one.label ? `, ${one.label}` : ''}: ${one.why.replace(`slice ${one.slice}: `, '')}`);
}

async function nextAsked() {
  let open = asked.find(one => !one.seen);
  if (!open) {
    const found = await server.nextSlices({ image });
    if (!found.slices?.length) return notice(found.message ?? 'Nothing is left to annotate here.');
    ask(found);
    open = asked[0];
  }
  open.seen = true;
  visit(open);
  storeHints();
  drawStrip();
  return null;
}

function ask(found) {
  asked = found.reasons?.length ? found.reasons.map(({ label, slice, why }) => ({ label, slice, why })) : (found.slices ?? []).map(slice => ({ slice, label: '', why: 'asked for' }));
}
const storeHints = () => sessionStorage.setItem(`ssmsam-hints-${image}`, JSON.stringify({ uncertain, asked }));

// --- adaptation

function paint(voxels, names) {
  const table = new Map(Object.entries(names).map(([name, value]) => [value, labelOf(name, { listed: true })]));
  const replaced = new Set([...table.values()].map(one => one.value)), { area, shape } = stage.grid;
  for (let k = 0; k < shape[2]; k++) {
    const slice = stage.grid.read(stage.voxels, k);
    for (let n = 0, at = k * area; n < area; n++, at++) {
      const label = table.get(voxels[at]);
      if (label) slice[n] = label.value;
      else if (replaced.has(slice[n])) slice[n] = 0;
    }
    stage.grid.write(stage.voxels, k, slice);
    countSlice(k, slice);
  }
  stage.colours(labels);
  stage.refresh();
  drawLabels();
  drawStrip();
}

async function adapt() {
  abort = new AbortController();
  const { signal } = abort;
  $('job').hidden = false;
  showJob(null);
  let following = true, job = null;
  (async () => {
    while (following) {
      const mine = (await server.jobs().catch(() => [])).filter(one => one.image === image && !['done', 'failed', 'cancelled'].includes(one.state));
      job = mine.at(0) ?? null;
      if (following) showJob(job);
      await new Promise(go => setTimeout(go, JOBS_MS));
    }
  })();
  $('cancel').onclick = () => { abort.abort(); if (job) server.cancelJob(job.id).catch(failed); saved('Stopped'); };
  try {
    const first = await server.infer('fewshot', image, { adapt: true }, { signal });
    paint(await readMask(first.mask), first.labels);
    estimate(first.details);
    if (!first.details.job) return notice(first.detail);
    for (;;) {
      const found = await server.call(`/jobs/${encodeURIComponent(first.details.job)}`, { signal }).then(answer => answer.json());
      if (['failed', 'cancelled'].includes(found.state)) return notice(found.detail || 'The adaptation was stopped; the proposal stays.');
      if (found.state === 'done') break;
      await new Promise(go => setTimeout(go, JOBS_MS));
    }
    const second = await server.infer('fewshot', image, { adapt: true }, { signal });
    paint(await readMask(second.mask), second.labels);
    estimate(second.details, first.details.expected_dice);
    notice(second.detail);
  } finally {
    following = false;
    $('job').hidden = true;
  }
  return null;
}

function showJob(job) {
  const share = job?.total ? ` ${job.done} of ${job.total}` : '', left = job?.eta_s == null ? '' : `, ${Math.ceil(job.eta_s)} s left`;
  $('job').querySelector('span').textContent = job ? `${job.phase || job.state}${share}${left}` : 'waits for the server';
  const bar = $('job').querySelector('progress');
  if (job?.total) { bar.max = job.total; bar.value = job.done; } else bar.removeAttribute('value');
}

function estimate(details, before = {}) {
  const far = details.expected_dice ?? {};
  uncertain = structuredClone(details.uncertain_slices ?? {});
  storeHints();
  $('estimate').replaceChildren(element('h3', {}, 'Expected Dice'), element('ul', {}, ...Object.entries(far).map(([label, value]) => {
    const change = before?.[label] !== undefined && Math.abs(value - before[label]) >= 0.005 ? ` (was ${per(before[label])})` : '';
    const first = uncertain[label] ?? [];
    return element('li', {}, `${label} ${per(value)}${change}`, ...first.map(k => element('button', { class: 'link', title: 'Look here first', onclick: () => { choose(labelOf(label)); stage.goTo(k); } }, `slice ${k}`)));
  })));
  drawStrip();
}

async function finish() {
  const ask = text => new Promise(resolve => {
    $('ask-text').textContent = text;
    $('ask').onclose = () => resolve($('ask').returnValue === 'yes');
    $('ask').returnValue = '';
    $('ask').showModal();
  });
  try {
    await server.message('finish_volume', image, {});
  } catch (error) {
    if (error.status !== 409) throw error;
    if (!await ask(error.message.replace(/\. Run finish_volume again.*$/, '.'))) return notice('Nothing was finished.');
  }
  const said = await server.message('finish_volume', image, { confirm: true });
  notice(said.detail);
  saved('Saved: the study is finished');
  return refresh();
}

// --- keys and controls

const KEYS = [['a', 'accept', 'Accept the mask of this slice'], ['e', 'notHere', 'The label is not on this slice'], ['Delete', 'eraseSlice', 'Erase the label on this slice'],
  ['z', 'undo', 'Undo'], ['y', 'redo', 'Redo'], ['ArrowUp', 'next', 'Next slice'], ['ArrowDown', 'previous', 'Previous slice'], [']', 'nextAnnotated', 'Next annotated slice'],
  ['[', 'previousAnnotated', 'Previous annotated slice'], ['n', 'nextAsked', 'Next slice to annotate, and why'], ['u', 'uncertain', 'The most uncertain slice'], ['t', 'toggleMask', 'Show or hide masks'],
  ['f', 'adapt', 'Adapt, and propose the rest'], ['v', 'planes', 'One slice or three planes'], ['+', 'zoomIn', 'Zoom in'], ['-', 'zoomOut', 'Zoom out'], ['?', 'help', 'This list']];

const run = name => { try { const found = actions[name](); found?.catch?.(failed); } catch (error) { failed(error); } };

function useTool(name) {
  tool = name;
  for (const one of $('tools').children) one.setAttribute('aria-checked', String(one.dataset.tool === name));
  $('frame').dataset.tool = name;
}

addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector('dialog[open]')) return;
  if (event.target.matches('input:not([type=range]):not([type=color]), select')) return;
  if (event.target.matches('input[type=range]') && event.key.startsWith('Arrow')) return;
  const chosen = TOOLS.find(([, key]) => key === event.key.toUpperCase()), known = KEYS.find(([key]) => key.toLowerCase() === event.key.toLowerCase());
  if (/^[1-9]$/.test(event.key)) { const label = labels.filter(one => one.listed)[Number(event.key) - 1]; if (label) choose(label); }
  else if (chosen) useTool(chosen[0]);
  else if (event.key === 'Backspace') run('eraseSlice');
  else if (known) run(known[1]);
  else return;
  event.preventDefault();
});

function controls() {
  $('tools').replaceChildren(...TOOLS.map(([name, key, title]) => element('button', { role: 'radio', 'data-tool': name, onclick: () => useTool(name) }, title, element('kbd', {}, key))));
  useTool('positive');
  document.querySelectorAll('[data-do]').forEach(button => { button.onclick = () => run(button.dataset.do); });
  $('planes').onclick = () => run('planes');
  $('help-button').onclick = () => run('help');
  $('brush').oninput = () => { $('brush-size').value = $('brush').value; };
  $('opacity').oninput = () => stage.setOpacity(Number($('opacity').value) / 100);
  $('slice').oninput = () => stage.goTo(Number($('slice').value));
  $('add-label').onsubmit = event => {
    event.preventDefault();
    const name = event.target.name.value.trim();
    if (name) { choose(labelOf(name)); stage.colours(labels); }
    event.target.reset();
    $('frame').focus();
  };
  $('keys').replaceChildren(...[...KEYS, ['1–9', '', 'Choose a label'], ...TOOLS.map(([, key, title]) => [key, '', title]), ['Shift + click', '', 'Point out'], ['Wheel', '', 'Change the slice; with Ctrl zoom']]
    .flatMap(([key, , what]) => [element('dt', {}, element('kbd', {}, key.length === 1 ? key.toUpperCase() : key)), element('dd', {}, what)]));
  stage.addEventListener('slice', () => {
    $('slice').value = stage.slice;
    $('slice').setAttribute('aria-valuetext', `slice ${stage.slice} of ${stage.grid.shape[2] - 1}`);
    $('where').value = `${stage.slice} / ${stage.grid.shape[2] - 1}`;
    showMarks();
  });
}

function windows() {
  const kind = about.modality === 'CT' ? 'CT' : 'MR', presets = Object.entries(WINDOWS[kind]);
  const use = ([, range]) => stage.window(...(kind === 'CT' ? range : stage.percentiles(range)));
  $('window').replaceChildren(...presets.map(([name], n) => element('option', { value: n }, name)));
  $('window').onchange = () => use(presets[$('window').value]);
  use(presets[0]);
}

async function start() {
  controls();
  window.ssmsam = { stage, server, labels: () => labels, partial: () => partial };
  if (!image) throw new Error('No study is named: choose one in the list.');
  if (!document.body.dataset.niivue) { $('loading').hidden = true; return; }
  const [niivue, found, info] = await Promise.all([import('./niivue.js'), server.about(image), server.info()]);
  about = found;
  $('study').textContent = `${image} · ${about.modality} · ${about.shape.join(' × ')}`;
  document.title = `${image} · ssmsam`;
  for (const one of JSON.parse(localStorage.getItem('ssmsam-labels') ?? '[]')) labelOf(one.name, { colour: one.colour, listed: one.listed });
  info.labels.slice(0, 4).forEach(name => { labelOf(name).listed = true; });
  info.labels.forEach(name => labelOf(name));
  $('add-label').name.setAttribute('list', 'known-labels');
  $('add-label').append(element('datalist', { id: 'known-labels' }, ...info.labels.map(name => element('option', { value: name }))));
  const url = `${server.root}/datastore/image?${new URLSearchParams({ image, client_id: server.client })}`;
  await stage.open(niivue, url, about.file);
  $('slice').max = stage.grid.shape[2] - 1;
  windows();
  $('loading').hidden = true;
  $('export-seg').hidden = !info.datastore?.remote && !(await server.studies()).remote;
  const hints = JSON.parse(sessionStorage.getItem(`ssmsam-hints-${image}`) ?? '{}'), offered = JSON.parse(sessionStorage.getItem(`ssmsam-asked-${image}`) ?? 'null');
  uncertain = hints.uncertain ?? {};
  asked = hints.asked ?? [];
  if (offered) { ask(offered); sessionStorage.removeItem(`ssmsam-asked-${image}`); }
  await refresh();
  const known = await server.call('/datastore/annotations/masks', { params: { image, client_id: server.client } });
  const names = JSON.parse(decodeURIComponent(known.headers.get('X-Ssmsam-Labels') || '%7B%7D'));
  paint(await readMask(await known.blob()), names);
  choose(labels.find(one => slicesOf(one.name).annotated.length) ?? labels.find(one => one.listed));
  stage.goTo(query.get('slice') ? Number(query.get('slice')) : slicesOf(current.name).annotated[0] ?? stage.slice);
  $('frame').focus();
  document.body.dataset.ready = 'yes';
}

start().catch(error => {
  $('loading').textContent = error.message;
  $('loading').classList.add('error');
  console.warn(error);
});
