// Small helpers of all views: elements, messages, files.

export const $ = id => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children);
  return node;
}

export function notice(text, kind = 'info') {
  if (!text) return;
  const said = element('div', { class: `notice ${kind}`, ...(kind === 'error' && { role: 'alert' }) }, element('span', {}, text),
    element('button', { 'aria-label': 'Dismiss', onclick: () => said.remove() }, '×'));
  $('notices').prepend(said);
  while ($('notices').children.length > 3) $('notices').lastChild.remove();
  if (kind !== 'error') setTimeout(() => said.remove(), 9000);
}

export const saved = text => { $('saved').textContent = text; };
export const failed = error => { if (error.name !== 'AbortError') { notice(error.message, 'error'); console.warn(error); } };

export function keep(blob, name) {
  const link = element('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Dice estimates of a checkpoint's card, by label.
export const estimates = card => Object.entries(card?.dice_estimate ?? {}).map(([label, one]) =>
  [label, typeof one === 'number' ? one : one.adapted ?? one.prompted ?? one.mean ?? Object.values(one).find(v => typeof v === 'number')])
  .filter(([, value]) => typeof value === 'number');
export const per = value => value.toFixed(2);
