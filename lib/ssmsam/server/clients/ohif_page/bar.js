// The bar below the images: buttons, the strip of slices, jobs and notices. It knows nothing of OHIF or the server.

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

export const BUTTONS = [
  ['accept', 'a', 'Accept slice', 'The mask of this slice is right'],
  ['notHere', 'e', 'Not here', 'The label is not on this slice'],
  ['takeBack', 'z', 'Take back', 'Undo my last annotation of this volume'],
  ['propose', 'f', 'Propose', 'Run the few-shot model on this volume'],
  ['next', 'n', 'Next slice', 'Go to the slice that is most worth annotating'],
  ['finish', '', 'Finish', 'Declare the labels on screen finished'],
];

export class Bar {
  constructor(actions) {
    this.label = element('span', { class: 'ssmsam-label' });
    this.slice = element('span', { class: 'ssmsam-slice' });
    this.strip = element('div', { class: 'ssmsam-strip', role: 'group', 'aria-label': 'Slices of this label' });
    this.notices = element('div', { class: 'ssmsam-notices', role: 'log', 'aria-live': 'polite' });
    this.jobs = element('div', { class: 'ssmsam-jobs', 'aria-live': 'off' });
    this.buttons = Object.fromEntries(BUTTONS.map(([name, key, title, about]) => [name, element(
      'button', { type: 'button', title: about, 'data-action': name, onclick: () => actions[name]() },
      title, ...(key ? [element('kbd', {}, key.toUpperCase())] : []),
    )]));
    const add = element('button', { type: 'button', title: 'Add a label of your own', onclick: () => this.#name(actions) },
      'New label');
    this.auto = element('input', { type: 'checkbox', checked: '' });
    const auto = element('label', { title: 'Run the chosen click model after each point' }, this.auto, 'Run after a click');
    const hide = element('button', { type: 'button', class: 'ssmsam-hide', title: 'Hide or show this bar', onclick: () =>
      this.root.classList.toggle('ssmsam-hidden') }, '–');
    this.root = element('section', { id: 'ssmsam-bar', 'aria-label': 'Annotation' }, this.notices, this.jobs,
      element('div', { class: 'ssmsam-row' }, this.label, this.slice, ...Object.values(this.buttons), add, auto, hide),
      this.strip);
    this.actions = actions;
    document.body.append(this.root);
  }

  get runsAfterClick() {
    return this.auto.checked;
  }

  // What is said stays until it is dismissed; the newest is on top, and old ones go when there are many.
  notice(text, kind = 'info') {
    if (!text) return;
    const said = element('div', { class: `ssmsam-notice ssmsam-${kind}`, ...(kind === 'error' ? { role: 'alert' } : {}) },
      element('span', {}, text),
      element('button', { type: 'button', title: 'Dismiss', onclick: () => said.remove() }, '×'));
    this.notices.prepend(said);
    while (this.notices.children.length > 4) this.notices.lastChild.remove();
  }

  // Ask for a yes; resolves to whether it was given.
  confirm(text, yes, no) {
    return new Promise(resolve => {
      const dialog = element('dialog', { class: 'ssmsam-dialog', onclose: () => { dialog.remove(); resolve(false); } },
        element('p', {}, text),
        element('button', { type: 'button', class: 'ssmsam-yes', onclick: () => { resolve(true); dialog.close(); } }, yes),
        element('button', { type: 'button', onclick: () => dialog.close() }, no));
      document.body.append(dialog);
      dialog.showModal();
    });
  }

  // Ask for a line of text; resolves to it, or to null.
  #name(actions) {
    const input = element('input', { type: 'text', maxlength: '64', 'aria-label': 'Name of the label' });
    const dialog = element('dialog', { class: 'ssmsam-dialog', onclose: () => dialog.remove() },
      element('form', { method: 'dialog', onsubmit: () => input.value.trim() && actions.addLabel(input.value.trim()) },
        element('p', {}, 'Name of the new label'), input,
        element('button', { type: 'submit', class: 'ssmsam-yes' }, 'Add')));
    document.body.append(dialog);
    dialog.showModal();
  }

  showJobs(jobs, cancel) {
    this.jobs.replaceChildren(...jobs.map(job => {
      const share = job.total ? ` ${job.done} of ${job.total}` : '';
      const left = job.eta_s === null || job.eta_s === undefined ? '' : `, ${Math.ceil(job.eta_s)} s left`;
      const stop = job.id ? [element('button', { type: 'button', onclick: () => cancel(job.id) }, 'Cancel')] : [];
      return element('div', { class: 'ssmsam-job' },
        element('span', {}, `${job.title || job.kind}: ${job.phase || job.state}${share}${left}`),
        element('progress', job.total ? { max: job.total, value: job.done } : {}), ...stop);
    }));
  }

  busy(running) {
    this.root.classList.toggle('ssmsam-busy', running);
  }

  // states: for each slice "annotated", "empty", "predicted" or "unknown"; asked: the slices asked for.
  show({ label, colour, slice, states, asked }) {
    this.label.textContent = label ?? 'choose a label';
    this.label.style.setProperty('--ssmsam-colour', colour);
    this.slice.textContent = slice === null ? '' : `slice ${slice} of 0–${states.length - 1}`;
    const drawn = JSON.stringify([label, states, [...asked]]);
    if (drawn !== this.drawn) {
      this.drawn = drawn;
      this.strip.replaceChildren(...states.map((state, index) => element('button', {
        type: 'button', tabindex: '-1', class: `ssmsam-${state}${asked.has(index) ? ' ssmsam-asked' : ''}`,
        title: `slice ${index}: ${state}${asked.has(index) ? ', asked for' : ''}`, 'data-slice': index,
        onclick: () => this.actions.goTo(index),
      })));
    }
    for (const one of this.strip.children) one.toggleAttribute('data-now', Number(one.dataset.slice) === slice);
  }
}
