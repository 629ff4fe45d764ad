// Calls of the server's REST interface, with the login where there is one. Nothing here knows of the page's views.

export const root = document.body.dataset.root;

export class Refused extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

// Who works here: one name for each browser, so that its masks come back after a reload.
export const client = (() => {
  let name = localStorage.getItem('ssmsam-client');
  if (!name) localStorage.setItem('ssmsam-client', name = `page-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`);
  return name;
})();

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
  for (const [name, value] of Object.entries(fields)) body.append(name, value, ...(value instanceof Blob ? ['mask.nii.gz'] : []));
  return body;
};
const json = answer => answer.json();

export const info = () => call('/info/').then(json);
export const studies = () => call('/studies').then(json);
export const about = image => call('/studies/about', { params: { image } }).then(json);
export const thumbnail = image => call('/studies/thumbnail', { params: { image } });
export const annotations = image => call('/datastore/annotations', { params: { image } }).then(json);
export const jobs = () => call('/jobs').then(json).then(found => found.jobs);
export const cancelJob = id => call(`/jobs/${encodeURIComponent(id)}`, { method: 'DELETE' }).then(json);
export const checkpoints = () => call('/checkpoints').then(json);
export const activate = (name, pin = false) => call(`/checkpoints/${encodeURIComponent(name)}/activate`, { method: 'POST', params: { pin } });
export const cache = () => call('/cache').then(json);

export const nextSlices = (more = {}) => call('/activelearning/next_slices', {
  method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ client_id: client, ...more }),
}).then(json);

// Slices of one label that a mask shows as they are: {annotated, empty, withdraw} by label.
export const submit = (image, mask, names, slices) => call('/datastore/label', {
  method: 'PUT', params: { image, tag: 'partial' }, body: form({ label: mask, params: JSON.stringify({
    client_id: client, partial: { axis: 2, slices }, label_info: names.map(([name, idx]) => ({ name, idx })),
  }) }),
}).then(json);
export const change = (image, slices) => call('/datastore/annotations', {
  method: 'PUT', params: { image }, body: form({ partial: JSON.stringify({ axis: 2, slices }), client_id: client }),
}).then(json);

// A model's mask (a gzipped NIfTI) and what the server says of it.
export async function infer(model, image, options, { output = '', signal } = {}) {
  const params = { client_id: client, result_extension: '.nii.gz', ...options };
  const answer = await call(`/infer/${model}`, {
    method: 'POST', signal, params: { image, ...(output && { output }) }, body: form({ params: JSON.stringify(params) }),
  });
  if (output === 'image') {
    const header = name => JSON.parse(decodeURIComponent(answer.headers.get(name) || 'null'));
    return { mask: await answer.blob(), labels: header('X-Ssmsam-Labels') ?? {}, detail: header('X-Ssmsam-Detail') ?? '' };
  }
  if (output) return answer.blob();
  const parts = await answer.formData(), details = JSON.parse(parts.get('params'));
  return { mask: parts.get('image'), labels: details.label_names, detail: details.detail, details };
}
export const message = (model, image, options) => infer(model, image, options, { output: 'json' }).then(async blob => {
  const said = JSON.parse(await blob.text());
  return said.params ?? said;
});
export const download = (path, params) => call(path, { params }).then(answer => answer.blob());
