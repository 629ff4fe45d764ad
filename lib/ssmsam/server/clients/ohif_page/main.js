// Mends OHIF's MONAI Label panel from outside: says which label and slice a request is about, shows what the server
// answers, and adds what the panel has no button for. Where OHIF is not as expected it leaves the page alone.

import { Bar, BUTTONS } from './bar.js';
import * as server from './server.js';
import { Viewer } from './viewer.js';

const LOOK_EVERY_MS = 400, JOBS_EVERY_MS = 1000;
const GIVE_UP_MS = 30000; // with the panel on the page but not as expected; a guess, OHIF takes a second or two
const COLOURED_MS = 1200; // the panel gives its segments their colours a second after it connected
const MESSAGES = ['accept_slice', 'empty_slice', 'withdraw_slice', 'undo', 'finish_volume'];
const viewer = new Viewer();
let known = { partial: {} }, drawnOn = new Map();
let asked = []; // {label, slice, why, seen}, the most useful first
const following = new Set(); // jobs that were seen to run
let openImage = null, running = Promise.resolve(), waiting = 0, mended = null, connected = null, watched = null;
let drawnInto = null, coloured = null;

const actions = {
  accept: () => onSlice('accept_slice'),
  notHere: () => onSlice('empty_slice'),
  takeBack: () => act(undo),
  propose: () => act(propose, 'fewshot proposes masks'),
  next: () => act(nextSlice, 'the next slice is chosen'),
  finish: () => act(finish),
  goTo: slice => viewer.goTo(slice),
  addLabel: name => act(async () => {
    const same = viewer.labels.find(one => one.toLowerCase() === name.toLowerCase());
    if (!same) viewer.addSegment(name);
    viewer.chooseLabel(same ?? name);
    bar.notice(same ? `there is a label ${same} already: it is chosen` : `new label: ${name}`);
  }),
};
const bar = new Bar(actions);

// One action after the other; what goes wrong is said.
function act(work, title = '') {
  waiting += 1;
  bar.busy(true);
  running = running.then(async () => {
    const image = viewer.image;
    if (!viewer.ready || !image) throw new Error('connect the MONAI Label panel first (the button beside its address)');
    if (title) bar.showJobs([{ title, phase: 'waits for the server' }], () => {});
    await work(image);
    await look();
  }).catch(error => {
    bar.notice(error.message, 'error');
    if (!(error instanceof server.Refused)) console.warn('ssmsam:', error);
  }).finally(() => {
    waiting -= 1;
    bar.busy(waiting > 0);
    if (!waiting) bar.showJobs([], () => {});
  });
  return running;
}

function chosenLabel() {
  const label = viewer.label;
  if (!label) throw new Error('choose a label first: in the list of Point Prompts');
  return label;
}

function onSlice(model) {
  const slice = viewer.slice;  // where the user is now, not when it is this action's turn
  return act(image => tell(model, image, slice));
}

// A message about the highlighted label on a slice.
async function tell(model, image, slice) {
  const label = chosenLabel();
  const said = await server.message(model, image, { label, slice });
  if (model === 'empty_slice') viewer.paint({ [label]: 1 }, null, slice);
  viewer.clearClicks();
  asked = asked.filter(one => one.label !== label || one.slice !== slice);
  bar.notice(said.detail);
}

async function undo(image) {
  const said = await server.message('undo', image, {});
  await restore(image);
  bar.notice(said.detail);
}

async function propose(image) {
  const { mask, labels, detail } = await server.masks('fewshot', image, viewer.options('fewshot'));
  viewer.paint(labels, mask);
  bar.notice(detail || `proposed: ${Object.keys(labels).join(', ')}`);
}

// Through the slices that were asked for, one by one; then the server is asked for more.
async function nextSlice(image) {
  const open = asked.find(one => !one.seen && (!viewer.label || one.label === viewer.label));
  if (open) return visit(open);
  const found = await server.nextSlices(image, viewer.label ? [viewer.label] : [])
    .catch(error => { if (error.status === 422) return server.nextSlices(image, []); throw error; });
  if (!found.slices?.length) return bar.notice(found.message ?? 'nothing is left to annotate');
  asked = found.reasons?.length ? found.reasons.map(({ label, slice, why }) => ({ label, slice, why, seen: false }))
    : found.slices.map(slice => ({ label: viewer.label, slice, why: 'asked for', seen: false }));
  visit(asked[0]);
}

function visit(one) {
  one.seen = true;
  if (one.label && viewer.labels.includes(one.label)) viewer.chooseLabel(one.label);
  viewer.goTo(one.slice);
  bar.notice(`${one.label}: ${one.why}`);
}

async function finish(image) {
  let said;
  try {
    said = await server.message('finish_volume', image, {});
  } catch (error) {
    if (error.status !== 409) throw error;
    const question = error.message.replace(/\. Run finish_volume again.*$/, '');
    const yes = await bar.confirm(`${question[0].toUpperCase()}${question.slice(1)}.`, 'Finish', 'Not yet');
    if (!yes) return bar.notice('nothing was finished');
    said = await server.message('finish_volume', image, { confirm: true });
  }
  await refreshInfo();
  bar.notice(said.detail, 'success');
}

// What Run under Point Prompts does instead: it cannot get stuck, and says which label it is about.
async function runPoints(model) {
  return act(async image => {
    if (MESSAGES.includes(model)) return runMessage(model, image);
    const label = chosenLabel(), { foreground, background } = viewer.clicks, flat = viewer.modelInfo(model)?.dimension === 2;
    const newest = foreground.at(-1) ?? background.at(-1);
    if (!newest) throw new Error(`place a point on the ${label} first, then run ${model}`);
    const slice = flat ? (viewer.points.state.currentLabel === 'background' ? background.at(-1) ?? newest : newest)[2] : null;
    const here = flat ? points => points.filter(one => one[2] === slice) : points => points;
    const { mask } = await server.masks(model, image, {
      ...viewer.options(model), label, foreground: here(foreground), background: here(background), for_label: undefined,
    });
    viewer.paint({ [label]: 1 }, mask, slice);
    if (slice !== null && viewer.slice !== slice) {
      viewer.goTo(slice);
      bar.notice(`the newest point of ${label} is on slice ${slice}: it was segmented there`);
    }
  });
}

async function runMessage(model, image) {
  if (model === 'finish_volume') return finish(image);
  if (model === 'undo') return undo(image);
  const { foreground, background } = viewer.clicks;
  const slice = (foreground.at(-1) ?? background.at(-1))?.[2] ?? viewer.slice;
  await tell(model, image, slice);
  if (viewer.slice !== slice) viewer.goTo(slice);
}

// The masks that the server knows of, after a reload or when something was taken back.
async function restore(image) {
  const { mask, labels } = await server.known(image);
  const everything = { ...Object.fromEntries(viewer.labels.map(label => [label, 255])), ...labels };
  viewer.paint(everything, mask);
}

async function refreshInfo() {
  const data = await server.info(), panel = viewer.panel;
  panel.setState({ info: { ...panel.state.info, data: { ...panel.state.info.data, datastore: data.datastore } } });
}

// --- what the panel itself gets wrong

function mendPanel() {
  const panel = viewer.panel, points = viewer.points;
  if (!points || mended === points) return;
  mended = points;
  const choose = points.onSelectModel;
  points.onSelectModel = model => { // choosing a model keeps the label
    const label = points.state.currentLabel;
    choose(model);
    if (label) setTimeout(() => points.onChangeLabel(label));
  };
  points.onRunInference = () => runPoints(viewer.model);
  points.forceUpdate();
  const learning = panel.actions.activelearning?.current;
  if (learning?.props.info.data.strategies?.next_slices) {
    learning.setState({ strategy: 'next_slices' });
    const choice = [...document.querySelectorAll('.monaiLabelPanel select')].find(one =>
      one.classList.contains('actionInput') && [...one.options].some(option => option.value === 'next_slices'));
    if (choice) choice.value = 'next_slices';
  }
  const tab = document.querySelector('.monaiLabelPanel input[value=pointprompts]');
  if (tab && !tab.checked) tab.click(); // the labels are there, and the tool that places points
}

// The panel connects by itself once the images are drawn.
function connect() {
  const panel = viewer.panel;
  if (!panel) return;
  watchConnection(panel);
  if (connected === panel || panel.state.isDataReady || !viewer.drawn) return;
  connected = panel;
  panel.onInfo(panel.settings?.current?.state?.url ?? `${location.origin}/`);
}

// Two connections at a time would load everything twice: the next waits for the one before.
function watchConnection(panel) {
  if (watched === panel) return;
  watched = panel;
  const stock = panel.onInfo;
  let last = Promise.resolve();
  panel.onInfo = url => {
    connected = panel;
    last = last.then(() => stock(url)).then(async () => {
      for (let i = 0; i < 50 && panel.state.isDataReady && !viewer.ready; i++) await new Promise(go => setTimeout(go, 100));
    }).catch(error => console.warn('ssmsam: the panel did not connect', error));
    return last;
  };
  if (panel.settings?.current) panel.settings.current.onInfo = panel.onInfo; // what its button calls
}

// Each connection begins with segments in the panel's colours, and with empty masks where it made new ones.
function noticeNewSegments() {
  const { labelmap, segmentSettings } = viewer;
  if (labelmap !== drawnInto) openImage = null;
  if (segmentSettings !== coloured) {
    viewer.tellColoursApart();
    setTimeout(guarded(() => viewer.tellColoursApart()), COLOURED_MS);
  }
  drawnInto = labelmap;
  coloured = segmentSettings;
}

// A Run that died inside the panel stays disabled: it is freed when nothing runs.
function reviveRun() {
  for (const tab of Object.values(viewer.panel?.actions ?? {})) {
    const selector = tab.current?.modelSelector?.current;
    if (!selector?.state?.buttonDisabled) selector && delete selector.ssmsamSince;
    else if (!inFlight) {
      selector.ssmsamSince ??= Date.now();
      if (Date.now() - selector.ssmsamSince > 1500) selector.setState({ buttonDisabled: false });
    }
  }
}
let inFlight = 0;

function listenToClicks() {
  const { eventTarget } = window.cornerstone, { Events } = window.cornerstoneTools.Enums;
  eventTarget.addEventListener(Events.ANNOTATION_COMPLETED, event => {
    const probe = event.detail?.annotation?.metadata?.toolName === 'ProbeMONAILabel';
    if (probe && bar.runsAfterClick && viewer.label && !MESSAGES.includes(viewer.model)) runPoints(viewer.model);
  });
}

// --- what is looked at again and again

async function look() {
  const image = viewer.image;
  if (!image) return;
  known = await server.annotations(image);
  drawnOn = new Map(viewer.labels.map(label => [label, null]));
}

function states(label) {
  const planes = [known.partial].flat(), stored = planes.find(one => (one?.axis ?? 2) === 2) ?? {};
  const lists = stored.slices?.[label] ?? {};
  const annotated = new Set(lists.annotated), empty = new Set(lists.empty);
  if (label && !drawnOn.get(label)) drawnOn.set(label, viewer.slicesWith(label));
  const drawn = drawnOn.get(label) ?? new Set();
  return Array.from({ length: viewer.sliceCount }, (_, k) =>
    annotated.has(k) ? 'annotated' : empty.has(k) ? 'empty' : drawn.has(k) ? 'predicted' : 'unknown');
}

function draw() {
  if (!viewer.ready) {
    bar.root.classList.remove('ssmsam-ready');
    bar.makeRoomIn(null);
    return connect();
  }
  bar.root.classList.add('ssmsam-ready');
  bar.makeRoomIn(viewer.room);
  mendPanel();
  reviveRun();
  noticeNewSegments();
  const image = viewer.image;
  if (image !== openImage) {
    openImage = image;
    asked = [];
    act(async () => {
      await server.opened(image);
      await restore(image);
    });
  }
  const label = viewer.label;
  const now = states(label), open = one => one.label === label && !['annotated', 'empty'].includes(now[one.slice]);
  bar.show({ label, colour: viewer.cssColour(label), slice: viewer.slice, states: now,
    asked: new Set(asked.filter(open).map(one => one.slice)) });
}

async function showJobs() {
  if (!viewer.ready || document.hidden) return;
  const all = (await server.jobs()).filter(job => !job.owner || job.owner === server.client);
  const mine = all.filter(job => ['running', 'queued'].includes(job.state));
  for (const job of all) {
    if (mine.includes(job)) following.add(job.id);
    else if (following.delete(job.id)) bar.ended(job); // how it ended is said once
  }
  if (mine.length || !waiting) bar.showJobs(mine, id => server.cancelJob(id).catch(error => bar.notice(error.message, 'error')));
}

function onKey(event) {
  const typing = event.target.closest?.('input:not([type=checkbox]):not([type=radio]), textarea, select, dialog, [contenteditable]');
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !viewer.ready) return;
  const pressed = BUTTONS.find(([, key]) => key && key === event.key.toLowerCase());
  if (!pressed) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // OHIF has its own meanings for some of these keys
  actions[pressed[0]]();
}

// A failure here must never spoil the viewer: it is said once in the console.
function guarded(work) {
  let said = false;
  return (...args) => Promise.resolve().then(() => work(...args)).catch(error => {
    if (!said) console.warn('ssmsam: the panel is not as expected', error);
    said = true;
  });
}

// One notice where the panel is there but is not the one that this script knows; the page stays as it is.
let strangeSince = null;
function watchOut() {
  const there = document.querySelector('.monaiLabelPanel');
  const asExpected = window.services?.segmentationService && window.cornerstone && window.cornerstoneTools && viewer.panel;
  if (!there || asExpected) return void (strangeSince = null);
  strangeSince ??= Date.now();
  if (Date.now() - strangeSince < GIVE_UP_MS) return;
  clearInterval(watching);
  bar.root.classList.add('ssmsam-only-said');
  bar.notice('This OHIF is not the one that the annotation bar knows: the panel works as it comes, without its keys.', 'error');
}
const watching = setInterval(guarded(watchOut), LOOK_EVERY_MS);

server.amendRequests({ label: () => viewer.label, onError: detail => bar.notice(detail, 'error'), onFlight: change => { inFlight += change; } });
window.addEventListener('keydown', onKey, true);
setInterval(guarded(draw), LOOK_EVERY_MS);
setInterval(guarded(showJobs), JOBS_EVERY_MS);
const started = setInterval(guarded(() => {
  if (!window.cornerstoneTools || !window.cornerstone) return;
  clearInterval(started);
  listenToClicks();
}), LOOK_EVERY_MS);
