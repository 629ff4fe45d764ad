// One study as it is worked on: labels, masks, prompts, annotated slices, and the steps back. Each change is sent at once.

import { inflate, readMask } from './grid.js';
import * as server from './server.js';
import { failed, remember, remembered, saved } from './ui.js';

const COLOURS = ['#e8635c', '#57a9ea', '#e6b84f', '#63d092', '#b98af0', '#4fd6d2', '#ee86bd', '#a9cb4e', '#e58f45', '#8c9cf2'];
const STROKE_SAVED_MS = 400, MOST_UNDO = 100;
const nothing = () => ({ positive: [], negative: [], box: null, scribbles: [], lasso: [] });
const filled = voxels => { for (let n = 0; n < voxels.length; n++) if (voxels[n]) return true; return false; };
const decoded = part => part && inflate(Uint8Array.from(atob(part.data), letter => letter.charCodeAt(0)));

export class Study extends EventTarget {
  constructor(image, stage) {
    super();
    Object.assign(this, { image, stage, labels: [], current: null, partial: {}, uncertain: {}, questions: {}, sliceDice: {}, asked: [], pending: null });
    this.touched = new Set(); // `${value of a label} ${slice}` of what was changed here since an adaptation began
    this.done = [];
    this.undone = [];
    this.drawn = new Map(); // value of a label -> slices with voxels of it
    this.unsure = new Map(); // `${label} ${slice}` -> how unsure the server is of each voxel, 0 to 255
    this.prompts = new Map(remembered(`prompts-${image}`, []));
    this.last = Promise.resolve();
    this.waiting = 0;
  }

  changed() { this.dispatchEvent(new Event('change')); }

  // One piece of work after the other; what goes wrong is said.
  act(work) {
    this.waiting += 1;
    this.#tellBusy();
    this.last = this.last.then(work).catch(failed).finally(() => {
      this.waiting -= 1;
      this.#tellBusy();
    });
    return this.last;
  }

  #tellBusy() { document.body.toggleAttribute('data-busy', this.waiting > 0 || this.pending !== null); }

  // --- labels

  label(name, more = {}) {
    let label = this.labels.find(one => one.name.toLowerCase() === name.toLowerCase());
    if (!label) {
      const value = 1 + Math.max(0, ...this.labels.map(one => one.value));
      label = { name, value, colour: COLOURS[(value - 1) % COLOURS.length], visible: true, listed: false, ...more };
      this.labels.push(label);
    }
    return label;
  }

  get listed() { return this.labels.filter(one => one.listed); }

  choose(label) {
    this.current = label;
    label.listed = true;
    this.keepLabels();
  }

  keepLabels() {
    remember('labels', this.labels.map(({ name, colour, listed }) => ({ name, colour, listed })));
    this.stage.colours(this.labels);
    this.changed();
  }

  // A label that is annotated keeps its name: its annotations are filed under it.
  rename(label, name) {
    if (!name || name === label.name) return;
    const { annotated, empty } = this.slicesOf(label.name);
    if (annotated.length || empty.length) throw new Error(`${label.name} has annotated slices under this name. Add a new label instead`);
    if (this.labels.some(one => one !== label && one.name.toLowerCase() === name.toLowerCase())) throw new Error(`There is a label ${name} already`);
    label.name = name;
    this.keepLabels();
  }

  needLabel() {
    if (!this.current) throw new Error('Choose a label first, with 1 to 9 or in the list');
    return this.current;
  }

  // --- what is known of slices: annotated, empty, or nothing yet

  slicesOf(name) {
    const plane = [this.partial].flat().find(one => (one?.axis ?? 2) === 2) ?? {};
    return { annotated: [], empty: [], ...plane.slices?.[name] };
  }

  known(name, k) {
    if (this.pending?.label.name === name && this.pending.k === k) return 'annotated';
    const { annotated, empty } = this.slicesOf(name);
    return annotated.includes(k) ? 'annotated' : empty.includes(k) ? 'empty' : '';
  }

  states() {
    const name = this.current?.name ?? '', { annotated, empty } = this.slicesOf(name), drawn = this.drawn.get(this.current?.value) ?? new Set();
    const unsure = new Set(this.uncertain[name]), count = this.stage.grid?.shape[2] ?? 0;
    const asked = new Set(this.asked.filter(one => (!one.label || one.label === name) && !this.known(name, one.slice)).map(one => one.slice));
    return Array.from({ length: count }, (_, k) => [annotated.includes(k) ? 'annotated' : empty.includes(k) ? 'empty' : unsure.has(k) ? 'uncertain'
      : drawn.has(k) ? 'predicted' : 'unknown', asked.has(k)]);
  }

  async refresh() {
    this.partial = (await server.annotations(this.image)).partial;
    this.changed();
  }

  async submit(label, k) {
    const voxels = this.read(k).map(one => (one === label.value ? 1 : 0)), empty = !voxels.includes(1), pressed = performance.now();
    saved('Saving …');
    const said = await server.submit(this.image, label.name, k, voxels);
    window.ssmsam.lastSaveMs = performance.now() - pressed;
    this.partial = said.partial;
    this.asked = this.asked.filter(one => one.slice !== k || (one.label && one.label !== label.name));
    this.uncertain[label.name] = (this.uncertain[label.name] ?? []).filter(one => one !== k);
    this.unsure.delete(`${label.name} ${k}`);
    this.keepHints();
    saved(`Saved: slice ${k}, ${empty ? `no ${label.name}` : label.name}`);
  }

  async withdraw(label, k) {
    this.partial = (await server.change(this.image, { [label.name]: { withdraw: [k] } })).partial;
    this.changed();
    saved(`Saved: slice ${k} of ${label.name} does not count`);
  }

  keepHints() {
    remember(`hints-${this.image}`, { uncertain: this.uncertain, questions: this.questions, sliceDice: this.sliceDice, asked: this.asked });
    this.changed();
  }

  // --- voxels

  read(k) { return this.stage.grid.read(this.stage.voxels, k); }

  put(k, slice) {
    this.stage.grid.write(this.stage.voxels, k, slice);
    this.#count(k, slice);
    this.stage.refreshSlice(k);
  }

  #count(k, slice) {
    const found = new Uint8Array(256);
    for (let n = 0; n < slice.length; n++) found[slice[n]] = 1;
    for (const { value } of this.labels) {
      if (!this.drawn.has(value)) this.drawn.set(value, new Set());
      this.drawn.get(value)[found[value] ? 'add' : 'delete'](k);
    }
  }

  // What another label was annotated with stays.
  protectedAt(label, k) { return new Set(this.labels.filter(one => one !== label && this.known(one.name, k)).map(one => one.value)); }

  #replace(label, k, found) {
    const slice = this.read(k), kept = this.protectedAt(label, k);
    for (let n = 0; n < slice.length; n++) {
      if (slice[n] === label.value) slice[n] = 0;
      if (found[n] && !kept.has(slice[n])) slice[n] = label.value;
    }
    this.put(k, slice);
  }

  // A whole label map of the server, but for what is ``kept``.
  paint(voxels, names, kept = new Set()) {
    const table = new Map(Object.entries(names).map(([name, value]) => [value, this.label(name, { listed: true })]));
    const { grid } = this.stage, { area, shape } = grid, values = [...table.values()].map(one => one.value), becomes = new Uint8Array(256), own = new Uint8Array(256);
    for (const [theirs, { value }] of table) becomes[theirs] = value;
    for (let k = 0; k < shape[2]; k++) {
      const incoming = voxels.subarray(k * area, (k + 1) * area);
      if (!filled(incoming) && !values.some(value => this.drawn.get(value)?.has(k))) continue;
      const slice = this.read(k);
      for (const value of values) own[value] = kept.has(`${value} ${k}`) ? 0 : 1;
      for (let n = 0; n < area; n++) {
        if (own[slice[n]]) slice[n] = 0;
        if (own[becomes[incoming[n]]]) slice[n] = becomes[incoming[n]];
      }
      grid.write(this.stage.voxels, k, slice);
      this.#count(k, slice);
    }
    for (const label of table.values()) label.listed = true;
    this.stage.refresh();
    this.keepLabels();
  }

  async load() {
    await this.refresh();
    const { blob, names } = await server.masks(this.image);
    this.paint(await readMask(blob), names);
  }

  // --- prompts

  promptsAt(label, k) { return this.prompts.get(`${label.name} ${k}`) ?? null; }

  #setPrompts(label, k, prompts) {
    if (prompts) this.prompts.set(`${label.name} ${k}`, prompts); else this.prompts.delete(`${label.name} ${k}`);
    remember(`prompts-${this.image}`, [...this.prompts]);
    this.changed();
  }

  prompt(change) {
    const label = this.needLabel(), k = this.stage.slice, pressed = performance.now(), earlier = this.promptsAt(label, k);
    const wanted = structuredClone(earlier ?? nothing());
    change(wanted);
    this.#setPrompts(label, k, wanted);
    return this.act(async () => {
      const before = { ...this.#snapshot(label, k), prompts: earlier };
      try {
        const found = await server.click(this.image, { label: label.name, slice: k, ...inWords(wanted, k) });
        const [voxels, unsure] = await Promise.all([decoded(found.slice_mask), decoded(found.uncertainty)]);
        this.#replace(label, k, voxels);
        if (unsure) this.unsure.set(`${label.name} ${k}`, unsure);
        window.ssmsam.lastClickMs = performance.now() - pressed;
        this.#record(label, k, before);
      } catch (error) {
        this.#setPrompts(label, k, earlier);
        throw error;
      }
      if (this.known(label.name, k)) await this.submit(label, k);
      else saved(`Slice ${k}: accept with A`);
    });
  }

  // --- steps, and back

  #snapshot(label, k) { return { voxels: this.read(k), prompts: structuredClone(this.promptsAt(label, k)), known: this.known(label.name, k) }; }

  #record(label, k, before) {
    this.touched.add(`${label.value} ${k}`);
    this.done.push({ label, k, before, after: this.#snapshot(label, k) });
    if (this.done.length > MOST_UNDO) this.done.shift();
    this.undone.length = 0;
    this.changed();
  }

  async #restore({ label, k }, side) {
    if (this.stage.slice !== k) this.stage.goTo(k);
    this.put(k, side.voxels);
    this.unsure.delete(`${label.name} ${k}`);
    this.#setPrompts(label, k, structuredClone(side.prompts));
    if (side.known) await this.submit(label, k);
    else if (this.known(label.name, k)) await this.withdraw(label, k);
    else saved(`Slice ${k}: taken back`);
  }

  undo() {
    this.#forgetPending();
    return this.act(async () => { const one = this.done.pop(); if (!one) return saved('Nothing to undo'); this.undone.push(one); return this.#restore(one, one.before); });
  }

  redo() {
    return this.act(async () => { const one = this.undone.pop(); if (!one) return saved('Nothing to redo'); this.done.push(one); return this.#restore(one, one.after); });
  }

  // ``work`` changes voxels or what is known; both are taken back together.
  #step(label, k, work) {
    return this.act(async () => { const before = this.#snapshot(label, k); await work(); this.#record(label, k, before); });
  }

  accept() {
    const label = this.needLabel(), k = this.stage.slice;
    if (!this.read(k).includes(label.value) && !this.waiting) throw new Error(`There is no ${label.name} drawn on slice ${k}. Click on it; or press E if it is not there`);
    return this.#step(label, k, () => this.submit(label, k));
  }

  notHere() {
    const label = this.needLabel(), k = this.stage.slice;
    return this.#step(label, k, () => { this.#clear(label, k); return this.submit(label, k); });
  }

  erase() {
    const label = this.needLabel(), k = this.stage.slice;
    return this.#step(label, k, async () => {
      this.#clear(label, k);
      if (this.known(label.name, k)) await this.withdraw(label, k); else saved(`Slice ${k}: ${label.name} erased`);
    });
  }

  #clear(label, k) {
    this.#replace(label, k, new Uint8Array(this.stage.grid.area));
    this.unsure.delete(`${label.name} ${k}`);
    this.#setPrompts(label, k, null);
  }

  // A slice that was drawn on counts as annotated as it is drawn.
  stroked(label, k, before) {
    const earlier = { ...this.#snapshot(label, k), voxels: before };
    if (this.pending && (this.pending.k !== k || this.pending.label !== label)) this.#flush();
    clearTimeout(this.pending?.timer);
    this.pending = { label, k, timer: setTimeout(() => this.#flush(), STROKE_SAVED_MS) };
    this.#tellBusy();
    this.#record(label, k, earlier);
    saved('Saving …');
  }

  #flush() {
    const { label, k } = this.pending;
    this.act(() => this.submit(label, k));
    this.#forgetPending();
  }

  #forgetPending() {
    clearTimeout(this.pending?.timer);
    this.pending = null;
    this.#tellBusy();
  }
}

// Prompts as the server names them.
function inWords({ positive, negative, box, scribbles, lasso }, k) {
  const span = axis => [box[0][axis], box[1][axis]].sort((a, b) => a - b);
  return { foreground: positive, background: negative, ...(box && { roi: [...span(0), ...span(1), k, k] }),
    ...(scribbles.length && { scribbles }), ...(lasso.length && { lasso }) };
}
