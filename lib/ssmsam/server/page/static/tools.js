// What a pointer, or the keyboard's cursor, does on the slice.

import { failed } from './ui.js';

export const TOOLS = [['positive', 'P', 'Point in'], ['negative', 'X', 'Point out'], ['box', 'B', 'Box'], ['scribble', 'S', 'Scribble'], ['lasso', 'L', 'Lasso'],
  ['brush', 'D', 'Brush'], ['eraser', 'R', 'Eraser']];
const PAINTS = ['brush', 'eraser'], STEP = 2; // voxels between two points of a line that is drawn by hand

export class Tools {
  constructor(study, stage) {
    Object.assign(this, { study, stage, name: 'positive', radius: 6, trail: null, cursor: null, mouse: null, penDown: false });
    stage.addEventListener('pointer', ({ detail }) => this.#pointer(detail));
    stage.addEventListener('hover', ({ detail }) => { this.mouse = detail; if (PAINTS.includes(this.name)) this.draw(); });
  }

  use(name) {
    Object.assign(this, { name, trail: null, penDown: false });
    this.draw();
  }

  // --- by keyboard: Shift and arrows move a cursor, Enter puts it down; for lines, down and up

  moveCursor(di, dj) {
    const { stage } = this, [columns, rows] = stage.grid.shape, [i, j] = this.cursor ?? [columns >> 1, rows >> 1];
    const at = stage.at([i, j, stage.slice]), right = stage.at([i + 1, j, stage.slice]), down = stage.at([i, j + 1, stage.slice]);
    const turned = Math.abs(right[0] - at[0]) < Math.abs(right[1] - at[1]);
    const way = turned ? [dj * Math.sign(right[1] - at[1]), di * Math.sign(down[0] - at[0])] : [di * Math.sign(right[0] - at[0]), dj * Math.sign(down[1] - at[1])];
    this.cursor = [Math.max(0, Math.min(columns - 1, i + STEP * way[0])), Math.max(0, Math.min(rows - 1, j + STEP * way[1])), stage.slice];
    if (this.penDown) this.#pointer({ kind: 'move', ijk: this.cursor });
    this.draw();
  }

  pressCursor() {
    if (!this.cursor) this.moveCursor(0, 0);
    const ijk = [this.cursor[0], this.cursor[1], this.stage.slice], line = !['positive', 'negative'].includes(this.name);
    if (!this.penDown) this.#pointer({ kind: 'down', ijk });
    if (!line || this.penDown) this.#pointer({ kind: 'up', ijk });
    this.penDown = line && !this.penDown;
  }

  // --- by mouse

  #pointer({ kind, ijk, negative = false }) {
    try {
      this.study.needLabel();
      if (kind === 'down' && ijk) this.trail = { k: this.stage.slice, points: [ijk], negative, before: this.study.read(this.stage.slice) };
      if (!this.trail) return;
      const { points } = this.trail, last = points.at(-1);
      if (kind === 'move' && ijk && (PAINTS.includes(this.name) || this.name === 'box' || Math.hypot(ijk[0] - last[0], ijk[1] - last[1]) >= STEP)) points.push(ijk);
      if (PAINTS.includes(this.name) && kind !== 'up') this.#paint();
      if (kind === 'up') this.#finish(ijk);
      this.draw();
    } catch (error) { if (kind === 'down') failed(error); }
  }

  #finish(ijk) {
    const { points, negative, before, k } = this.trail, { study, name } = this;
    this.trail = null;
    if (ijk && name !== 'positive' && name !== 'negative') points.push(ijk);
    if (k !== this.stage.slice) return;
    if (PAINTS.includes(name)) study.stroked(study.current, k, before);
    else if (name === 'positive' || name === 'negative') study.prompt(one => one[name === 'negative' || negative ? 'negative' : 'positive'].push(points[0]));
    else if (name === 'scribble') study.prompt(one => one.scribbles.push({ points, negative }));
    else if (name === 'lasso' && points.length > 3) study.prompt(one => one.lasso.push({ points }));
    else if (name === 'box' && (points[0][0] !== points.at(-1)[0] || points[0][1] !== points.at(-1)[1])) study.prompt(one => { one.box = [points[0], points.at(-1)]; });
  }

  #paint() {
    const { points, k } = this.trail, [from, to] = [points.at(-2) ?? points[0], points.at(-1)], slice = this.study.read(k);
    const steps = Math.max(1, ...[0, 1].map(axis => Math.abs(to[axis] - from[axis])));
    for (let n = 0; n <= steps; n++) this.#disc(slice, [0, 1].map(axis => Math.round(from[axis] + (n / steps) * (to[axis] - from[axis]))), k);
    this.study.put(k, slice);
  }

  #disc(slice, [i, j], k) {
    const { study, radius } = this, [columns, rows] = this.stage.grid.shape, ratio = this.stage.grid.spacing[0] / this.stage.grid.spacing[1];
    const own = study.current.value, value = this.name === 'brush' ? own : 0, kept = study.protectedAt(study.current, k), reach = radius - 1, high = Math.round(reach * ratio);
    for (let y = Math.max(0, j - high); y <= Math.min(rows - 1, j + high); y++) {
      for (let x = Math.max(0, i - reach); x <= Math.min(columns - 1, i + reach); x++) {
        if ((x - i) ** 2 + ((y - j) / ratio) ** 2 > (reach + 0.5) ** 2) continue;
        const n = y * columns + x;
        if (value ? !kept.has(slice[n]) : slice[n] === own) slice[n] = value;
      }
    }
  }

  // --- marks

  draw() {
    const { study, stage, trail } = this, found = study.current && study.promptsAt(study.current, stage.slice), marks = [];
    if (found) {
      marks.push(...found.lasso.map(one => ({ kind: 'area', points: one.points })), ...found.scribbles.map(one => ({ kind: 'line', ...one })));
      if (found.box) marks.push({ kind: 'box', points: found.box });
      for (const side of ['positive', 'negative']) marks.push(...found[side].map(ijk => ({ kind: 'point', points: [ijk], negative: side === 'negative' })));
    }
    if (trail && this.name === 'box' && trail.points.length > 1) marks.push({ kind: 'box', points: [trail.points[0], trail.points.at(-1)] });
    if (trail && ['scribble', 'lasso'].includes(this.name)) marks.push({ kind: this.name === 'lasso' ? 'area' : 'line', points: trail.points, negative: trail.negative });
    if (this.mouse && PAINTS.includes(this.name)) marks.push({ kind: 'disc', points: [this.mouse], radius: this.radius - 0.5 });
    if (this.cursor) marks.push({ kind: 'cursor', points: [[this.cursor[0], this.cursor[1], stage.slice]] });
    stage.drawMarks(marks);
  }
}
