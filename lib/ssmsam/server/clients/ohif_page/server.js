// The requests to the server that the page came from.

const base = new URL('../../', import.meta.url); // the script lies in /ohif/ssmsam/
const SHARED = 'ssmsam-client-id';

// Who asks: one name for each browser tab, kept while the tab lives, so that two readers are told apart.
export const client = (() => {
  const known = sessionStorage.getItem(SHARED) ?? `ohif-${crypto.getRandomValues(new Uint32Array(2)).join('-')}`;
  sessionStorage.setItem(SHARED, known);
  return known;
})();

export class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

// The detail of an error answer, or a sentence with its status.
export function detailOf(status, text) {
  try {
    const detail = JSON.parse(text).detail;
    if (typeof detail === 'string') return detail;
    if (detail) return JSON.stringify(detail);
  } catch { /* not JSON */ }
  return status ? `the server answered ${status}` : 'the server cannot be reached';
}

async function ask(path, query = {}, options = {}) {
  const url = new URL(path, base);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  let answer;
  try {
    answer = await fetch(url, { credentials: 'same-origin', ...options });
  } catch {
    throw new Refused(0, detailOf(0, ''));
  }
  if (!answer.ok) throw new Refused(answer.status, detailOf(answer.status, await answer.text()));
  return answer;
}

export const headerJson = (answer, name) => {
  const text = answer.headers.get(name);
  return text ? JSON.parse(decodeURIComponent(text)) : null;
};

function form(params) {
  const body = new FormData();
  body.append('params', JSON.stringify({ client_id: client, viewer: 'ohif', ...params }));
  return { method: 'POST', body };
}

// A message model: its details.
export async function message(model, image, params) {
  return (await ask(`infer/${model}`, { image, output: 'json' }, form(params))).json();
}

// A model that draws: {mask (Uint8Array, columns run fastest), labels (name -> value), detail}.
export async function masks(model, image, params) {
  const wanted = { result_extension: '.nrrd', result_dtype: 'uint8', result_compress: false };
  return drawn(await ask(`infer/${model}`, { image, output: 'image' }, form({ ...wanted, ...params })));
}

// All masks that are known, to be shown again.
export async function known(image) {
  return drawn(await ask('datastore/annotations/masks', { image, client_id: client, compress: false }));
}

async function drawn(answer) {
  return {
    mask: nrrd(new Uint8Array(await answer.arrayBuffer())),
    labels: headerJson(answer, 'X-Ssmsam-Labels') ?? {},
    detail: headerJson(answer, 'X-Ssmsam-Detail') ?? '',
  };
}

// The voxels of an uncompressed NRRD file of bytes.
export function nrrd(file) {
  for (let i = 0; i + 1 < file.length && i < 65536; i++) {
    if (file[i] === 10 && file[i + 1] === 10) {
      const head = new TextDecoder().decode(file.subarray(0, i));
      if (!/^encoding: raw$/m.test(head)) throw new Error('the mask came compressed');
      return file.subarray(i + 2);
    }
  }
  throw new Error('the mask cannot be read');
}

export const opened = image =>
  ask('datastore/annotations/opened', { image, client_id: client }, { method: 'POST' });
export const annotations = async image => (await ask('datastore/annotations', { image })).json();
export const info = async () => (await ask('info/')).json();
export const jobs = async () => (await (await ask('jobs')).json()).jobs;
export const cancelJob = id => ask(`jobs/${id}`, {}, { method: 'DELETE' });

export async function nextSlices(image, labels) {
  const body = JSON.stringify({ image, client_id: client, viewer: 'ohif', ...(labels.length ? { labels } : {}) });
  const headers = { 'Content-Type': 'application/json' };
  return (await ask('activelearning/next_slices', {}, { method: 'POST', body, headers })).json();
}

// Add to the panel's own requests who asks and which label is highlighted, and hear of their errors.
export function amendRequests({ label, onError, onFlight }) {
  const { open, send } = XMLHttpRequest.prototype;
  XMLHttpRequest.prototype.open = function (method, url, ...rest) {
    this.ssmsam = { method, path: new URL(url, location.href).pathname };
    return open.call(this, method, url, ...rest);
  };
  XMLHttpRequest.prototype.send = function (body) {
    try {
      body = amended(this.ssmsam, body, label);
      if (/\/(infer|activelearning|train)\//.test(this.ssmsam.path)) listen(this, onError, onFlight);
    } catch (error) {
      console.warn('ssmsam: a request went as it was', error);
    }
    return send.call(this, body);
  };
}

function amended({ method, path }, body, label) {
  if (method.toUpperCase() !== 'POST') return body;
  if (/\/infer\//.test(path) && body instanceof FormData && body.has('params')) {
    const params = JSON.parse(body.get('params'));
    const point = params.foreground !== undefined || params.points !== undefined;
    body.set('params', JSON.stringify({
      ...params, client_id: client, viewer: 'ohif', ...(point && label() ? { label: label() } : {}),
    }));
  } else if (/\/activelearning\//.test(path) && (typeof body === 'string' || !body)) {
    return JSON.stringify({ ...JSON.parse(body || '{}'), client_id: client, viewer: 'ohif' });
  }
  return body;
}

function listen(request, onError, onFlight) {
  onFlight(1);
  request.addEventListener('loadend', () => {
    onFlight(-1);
    if (request.status && request.status < 400) return;
    if (request.ssmsam.path.endsWith('/train/') && request.ssmsam.method.toUpperCase() === 'GET') return;
    const answer = request.response;
    const text = answer instanceof ArrayBuffer ? new TextDecoder().decode(answer)
      : typeof answer === 'string' ? answer : JSON.stringify(answer ?? '');
    onError(detailOf(request.status, text));
  });
}
