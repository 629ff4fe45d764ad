// A small line plot of Dice, in SVG: one line for each label.

import { per, remembered, shape } from './ui.js';

const WIDTH = 520, HEIGHT = 190, LEFT = 34, RIGHT = 110, TOP = 10, BOTTOM = 34;
const COLOURS = ['#e8635c', '#57a9ea', '#e6b84f', '#63d092', '#b98af0', '#4fd6d2', '#ee86bd', '#a9cb4e', '#e58f45', '#8c9cf2'];

// lines: {label: [[x, dice], ...]} with x ascending; ``said`` puts an x into words.
export function plot(title, lines, said) {
  const every = Object.values(lines).flat(), xs = every.map(([x]) => x), [from, to] = [Math.min(...xs), Math.max(...xs)];
  const low = Math.max(0, Math.floor(10 * Math.min(...every.map(([, y]) => y)) - 0.5) / 10), right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  const x = value => (to > from ? LEFT + ((right - LEFT) * (value - from)) / (to - from) : (LEFT + right) / 2), y = value => bottom - ((bottom - TOP) * (value - low)) / (1 - low);
  const text = (words, at) => shape('text', at, words), picture = shape('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: 'plot', role: 'img' });
  picture.append(shape('title', {}, `${title}: ${Object.entries(lines).map(([label, points]) => `${label} ${points.map(([, value]) => per(value)).join(', ')}`).join('; ')}`));
  for (const dice of [low, (1 + low) / 2, 1]) picture.append(shape('line', { x1: LEFT, x2: right, y1: y(dice), y2: y(dice), class: dice === low ? 'axis' : 'grid' }), text(per(dice), { x: 2, y: y(dice) + 4 }));
  picture.append(text(said(from), { x: LEFT, y: bottom + 16 }), ...(to > from ? [text(said(to), { x: right, y: bottom + 16, 'text-anchor': 'end' })] : []), text(title, { x: LEFT, y: HEIGHT - 3 }));
  const ends = Object.entries(lines).map(([label, points], n) => ({ label, points, n, y: y(points.at(-1)[1]) })).sort((a, b) => a.y - b.y);
  const chosen = new Map(remembered('labels', []).map(({ name, colour }) => [name, colour])); // as the labels look in a study
  let free = TOP;
  for (const { label, points, n, y: end } of ends) {
    const stroke = chosen.get(label) ?? COLOURS[n % COLOURS.length], place = Math.max(end, free);
    free = place + 14;
    picture.append(shape('polyline', { points: points.map(one => `${x(one[0])},${y(one[1])}`).join(' '), stroke }),
      ...points.map(one => shape('circle', { cx: x(one[0]), cy: y(one[1]), r: 3, fill: stroke })), shape('text', { x: right + 8, y: place + 4, class: 'key', fill: stroke }, `${label} ${per(points.at(-1)[1])}`));
  }
  return picture;
}
