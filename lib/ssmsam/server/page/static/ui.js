// Small helpers of all views: elements, messages, files, what the browser keeps.

export const $ = id => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children);
  return node;
}

export function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const INFO_MS = 9000, ERROR_MS = 20000;
export function notice(text, kind = 'info') {
  if (!text) return;
  text = text.replace(/; in the browser: \S+/, ''); // here it is
  for (const one of [...$('notices').children]) if (one.firstChild.textContent === text) one.remove();
  const said = element('div', { class: `notice ${kind}`, ...(kind === 'error' && { role: 'alert' }) }, element('span', {}, text),
    element('button', { 'aria-label': 'Dismiss', onclick: () => said.remove() }, '×'));
  $('notices').prepend(said);
  while ($('notices').children.length > 2) $('notices').lastChild.remove();
  setTimeout(() => said.remove(), kind === 'error' ? ERROR_MS : INFO_MS);
}

export const sentence = text => { const said = text.trim(); return said && said[0].toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? '' : '.'); };
export const saved = text => { $('saved').textContent = text; };
export const failed = error => { if (error.name !== 'AbortError') { notice(sentence(error.message), 'error'); saved(''); console.warn(error); } };

// A question with yes and no.
export const confirmed = text => new Promise(resolve => {
  $('ask-text').textContent = text;
  $('ask').onclose = () => resolve($('ask').returnValue === 'yes');
  $('ask').returnValue = '';
  $('ask').showModal();
});

export function keepFile(blob, name) {
  const link = element('a', { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What this browser remembers under a name.
export const remembered = (name, otherwise) => { try { return JSON.parse(localStorage.getItem(`ssmsam-${name}`)) ?? otherwise; } catch { return otherwise; } };
export const remember = (name, value) => { try { localStorage.setItem(`ssmsam-${name}`, JSON.stringify(value)); } catch (error) { console.warn(error); } };

export const per = value => value.toFixed(2);
export const minutes = seconds => (seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`);
export const when = iso => String(iso ?? '').slice(0, 16).replace('T', ' ');
