// Calls of the server's REST interface, with the login where there is one. Nothing here knows of the page's views.

import { deflated } from './grid.js';

export const root = document.body.dataset.root;

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// Who works here: one name for each browser until its reader gives one, so that masks come back after a reload.
export const client = (() => {
  let name = localStorage.getItem('ssmsam-client');
  if (!name) localStorage.setItem('ssmsam-client', name = `page-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`);
  return name;
})();
export function callMyself(name) {
  localStorage.setItem('ssmsam-client', name);
  location.reload();
}

export const headers = () => {
  const token = sessionStorage.getItem('ssmsam-token');
  return token ? { Authorization: `Bearer ${token}` } : {};
};

let asking = null;
function logIn() {
  asking ??= new Promise(resolve => {
    const dialog = document.getElementById('login'), form = dialog.querySelector('form'), error = dialog.querySelector('.error');
    dialog.addEventListener('cancel', event => event.preventDefault());
    form.onsubmit = async event => {
      event.preventDefault();
      const body = new URLSearchParams({ ...Object.fromEntries(new FormData(form)), grant_type: 'password' });
      const answer = await fetch(`${root}/auth/token`, { method: 'POST', body });
      if (!answer.ok) return void (error.textContent = 'This user name and password are not accepted.');
      sessionStorage.setItem('ssmsam-token', (await answer.json()).access_token);
      form.password.value = error.textContent = '';
      dialog.close();
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

export async function call(path, { params = {}, ...options } = {}) {
  const query = new URLSearchParams(params).toString();
  const url = `${root}${path}${query ? `?${query}` : ''}`;
  for (;;) {
    let answer;
    try {
      answer = await fetch(url, { ...options, headers: { ...options.headers, ...headers() } });
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new Refused('the server does not answer. Nothing that was saved is lost; try again when it runs', 0);
    }
    if (answer.status === 401) { await logIn(); continue; }
    if (answer.ok) return answer;
    const text = await answer.text();
    let detail = text;
    try { detail = JSON.parse(text).detail ?? text; } catch { /* not JSON */ }
    throw new Refused(typeof detail === 'string' ? detail : JSON.stringify(detail), answer.status);
  }
}

const form = fields => {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return body;
};
const json = answer => answer.json();

export const info = () => call('/info/').then(json);
export const studies = () => call('/studies').then(json);
export const about = image => call('/studies/about', { params: { image } }).then(json);
export const thumbnail = image => call('/studies/thumbnail', { params: { image } });
export const annotations = image => call('/datastore/annotations', { params: { image } }).then(json);
export const jobs = () => call('/jobs').then(json).then(found => found.jobs);
export const job = (id, signal) => call(`/jobs/${encodeURIComponent(id)}`, { signal }).then(json);
export const cancelJob = id => call(`/jobs/${encodeURIComponent(id)}`, { method: 'DELETE' }).then(json);
export const checkpoints = () => call('/checkpoints').then(json);
export const activate = (name, pin = false) => call(`/checkpoints/${encodeURIComponent(name)}/activate`, { method: 'POST', params: { pin } });
export const cache = () => call('/cache').then(json);

export const nextSlices = (more = {}) => call('/activelearning/next_slices', {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ client_id: client, ...more }),
}).then(json);

// One label on one slice as it is drawn, a byte for each voxel: empty where it is not there.
export const submit = async (image, label, slice, voxels) => call('/datastore/annotations/slice', {
  method: 'PUT', params: { image }, headers: { 'Content-Type': 'application/json' },
  body: JSON.stringify({ label, client_id: client, mask: { axis: 2, index: slice, data: await deflated(voxels) } }),
}).then(json);
export const change = (image, slices) => call('/datastore/annotations', {
  method: 'PUT', params: { image }, body: form({ partial: JSON.stringify({ axis: 2, slices }), client_id: client }),
}).then(json);

const inferred = (model, image, options, { output = '', signal } = {}) => call(`/infer/${model}`, {
  method: 'POST', signal, params: { image, ...(output && { output }) },
  body: form({ params: JSON.stringify({ client_id: client, result_extension: '.nii.gz', ...options }) }),
});
const details = async answer => { const said = await json(answer); return said.params ?? said; };

// One slice of a label from prompts, and how unsure the server is of each of its voxels.
export const click = (image, options) => inferred('sam_2d', image, { ...options, answer: 'slice' }, { output: 'json' }).then(details);
export const message = (model, image, options) => inferred(model, image, options, { output: 'json' }).then(details);

// The rest of a volume: a mask (a gzipped NIfTI), the values of its labels, and what the server says of it.
export async function propose(image, options, signal) {
  const parts = await (await inferred('fewshot', image, options, { signal })).formData(), said = JSON.parse(parts.get('params'));
  return { mask: parts.get('image'), labels: said.label_names, detail: said.detail, details: said };
}

// How unsure the server is of every voxel of a label, in per cent, as a gzipped NIfTI.
export const uncertainty = (image, label) => inferred('uncertainty_map', image, { label }, { output: 'image' }).then(answer => answer.blob());

const header = (answer, name) => JSON.parse(decodeURIComponent(answer.headers.get(name) || '{}'));
export const masks = async image => {
  const answer = await call('/datastore/annotations/masks', { params: { image, client_id: client } });
  return { blob: await answer.blob(), names: header(answer, 'X-Ssmsam-Labels') };
};

const file = async answer => ({ blob: await answer.blob(), name: /filename="?([^";]+)/.exec(answer.headers.get('Content-Disposition') ?? '')?.[1] ?? 'export' });
export const exported = (image, format) => call('/studies/export', { params: { image, format } }).then(file);
export const dataset = only => call('/studies/dataset', { params: { only } }).then(file);
export const review = (image, verdict, note) => call('/studies/review', { method: 'POST', params: { image, verdict, client_id: client, ...(note && { note }) } }).then(json);
export const agreement = image => call('/studies/agreement', { params: { image } }).then(json);
export const measurements = image => call('/studies/measurements', { params: { image } }).then(json);
export const imageAddress = image => `${root}/studies/image?${new URLSearchParams({ image, client_id: client })}`;
export const picture = (image, slice) => call('/studies/picture', { params: { image, ...(slice && { slice }) } });
