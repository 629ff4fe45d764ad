// What the page reads of OHIF and changes in it. OHIF leaves its services on the window; the MONAI Label panel is a React
// component, found by way of the element that it drew. Whatever is not as expected gives null or throws `NotReady`.

const SEGMENTATION = '1'; // the panel's one segmentation
const PROBE = 'ProbeMONAILabel';
const NEGATIVE = 'background';
const ALIKE = 60, HUE_STEP = 75; // RGB distance below which colours are mistaken for each other, and degrees: guesses

export class NotReady extends Error {}

function expect(value, what) {
  if (value === undefined || value === null) throw new NotReady(`${what} is not there yet`);
  return value;
}

const difference = (a, b) => a.map((value, axis) => value - b[axis]);
const dot = (a, b) => a.reduce((sum, value, axis) => sum + value * b[axis], 0);

export class Viewer {
  lastOrgan = null;

  get panel() {
    const node = document.querySelector('.monaiLabelPanel');
    const key = node && Object.keys(node).find(name => name.startsWith('__reactFiber$'));
    let fibre = key && node[key];
    while (fibre && !fibre.stateNode?.updateView) fibre = fibre.return;
    return fibre?.stateNode ?? null;
  }

  get points() {
    return this.panel?.actions?.pointprompts?.current ?? null;
  }

  // Whether a study is open, the panel connected, and its segmentation there.
  get ready() {
    try {
      return Boolean(this.panel?.state.isDataReady && this.image && this.labelmap && this.axial);
    } catch {
      return false;
    }
  }

  get image() {
    return this.panel?.getActiveViewportInfo()?.displaySet?.SeriesInstanceUID ?? null;
  }

  // The model chosen under Point Prompts.
  get model() {
    return this.points?.getSelectedModel() ?? null;
  }

  // What /info/ said of a model.
  modelInfo(name) {
    return this.panel?.state.info?.data?.models?.[name] ?? null;
  }

  // The options that a user changed for a model.
  options(name) {
    return { ...(this.panel?.onOptionsConfig()?.infer?.[name] ?? {}) };
  }

  // The highlighted label; while negative points are placed, or another tab is open, the one before.
  get label() {
    const now = this.points?.state.currentLabel;
    if (now && now !== NEGATIVE) this.lastOrgan = now;
    return this.lastOrgan;
  }

  chooseLabel(name) {
    const points = expect(this.points, 'the panel');
    if (points.state.currentLabel !== name) points.onChangeLabel(name);
    this.lastOrgan = name;
  }

  get labels() {
    return this.panel?.state.info?.labels ?? [];
  }

  // The viewport whose slices are the stored ones, {id, viewport, data}; null where none is open.
  get axial() {
    const { viewportGridService, cornerstoneViewportService } = window.services;
    for (const id of viewportGridService.getState().viewports.keys()) {
      const viewport = cornerstoneViewportService.getCornerstoneViewport(id);
      const data = viewport?.getImageData?.()?.imageData;
      if (!data) continue;
      const along = difference(data.indexToWorld([0, 0, 1]), data.indexToWorld([0, 0, 0]));
      const length = Math.hypot(...along);
      if (length && Math.abs(dot(along, viewport.getCamera().viewPlaneNormal)) / length > 0.9) {
        return { id, viewport, data };
      }
    }
    return null;
  }

  // The part of the page that holds the views and the panel.
  get room() {
    let part = document.querySelector('.monaiLabelPanel');
    while (part && !part.querySelector('.cornerstone-canvas')) part = part.parentElement;
    return part;
  }

  // Whether the images are drawn, so that the panel can be connected.
  get drawn() {
    try {
      return this.sliceCount > 1;
    } catch {
      return false;
    }
  }

  get sliceCount() {
    return this.axial?.data.getDimensions()[2] ?? 0;
  }

  // The stored slice on screen, counted from 0.
  get slice() {
    const axial = this.axial;
    return axial ? Math.round(axial.data.worldToIndex(axial.viewport.getCamera().focalPoint)[2]) : null;
  }

  goTo(slice) {
    const { viewport, data } = expect(this.axial, 'the axial view');
    const camera = viewport.getCamera(), normal = camera.viewPlaneNormal;
    const index = data.worldToIndex(camera.focalPoint);
    const ahead = dot(difference(data.indexToWorld([index[0], index[1], slice]), camera.focalPoint), normal);
    const moved = place => place.map((value, axis) => value + normal[axis] * ahead);
    viewport.setCamera({ focalPoint: moved(camera.focalPoint), position: moved(camera.position) });
    viewport.render();
  }

  // The clicks as voxels [i, j, k] of the stored image: {foreground, background} of the highlighted label.
  get clicks() {
    const points = expect(this.points, 'the panel');
    const { data } = expect(this.axial, 'the axial view');
    const kept = name => Object.values(points.state.clickPoints[name] ?? {}).flatMap(one => one[PROBE] ?? []);
    const shown = window.cornerstoneTools.annotation.state
      .getAllAnnotations().filter(one => one.metadata?.toolName === PROBE);
    const of = name => (name === points.state.currentLabel ? shown : kept(name))
      .map(one => Array.from(data.worldToIndex(one.data.handles.points[0])).map(Math.round));
    return { foreground: this.label ? of(this.label) : [], background: of(NEGATIVE) };
  }

  clearClicks() {
    this.points?.clearAllPoints();
  }

  // --- masks

  get labelmap() {
    return window.services.segmentationService.getLabelmapVolume(SEGMENTATION) ?? null;
  }

  get voxels() {
    return expect(this.labelmap, 'the segmentation').voxelManager.getCompleteScalarDataArray();
  }

  get segments() {
    const found = window.services.segmentationService.getSegmentation(SEGMENTATION)?.segments ?? {};
    return Object.fromEntries(Object.values(found).filter(Boolean).map(one => [one.label, one.segmentIndex]));
  }

  // Replace a label's mask by the voxels of `mask` that have `value`, on one stored slice or on all. Other labels stay.
  paint(layers, mask, slice = null) {
    const voxels = Uint8Array.from(this.voxels), segments = this.segments;
    const [columns, rows, slices] = expect(this.axial, 'the axial view').data.getDimensions();
    if (mask && mask.length !== voxels.length) throw new Error('the mask is not on the grid of this image');
    const size = columns * rows;
    const [begin, end] = slice === null ? [0, size * slices] : [size * slice, size * (slice + 1)];
    const target = new Uint8Array(256), replaced = new Uint8Array(256);
    for (const [label, value] of Object.entries(layers)) {
      const index = segments[label] ?? this.addSegment(label);
      target[value] = index;
      replaced[index] = 1;
    }
    for (let i = begin; i < end; i++) {
      const wanted = mask ? target[mask[i]] : 0;
      if (replaced[voxels[i]]) voxels[i] = wanted;
      else if (wanted && voxels[i] === 0) voxels[i] = wanted;
    }
    this.show(voxels);
  }

  show(voxels) {
    expect(this.labelmap, 'the segmentation').voxelManager.setCompleteScalarDataArray(voxels);
    window.cornerstone.triggerEvent(
      window.cornerstone.eventTarget, window.cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED,
      { segmentationId: SEGMENTATION },
    );
    console.log("updated the segmentation's voxels");
  }

  // The stored slices on which a label has voxels on screen.
  slicesWith(label) {
    const index = this.segments[label], found = new Set();
    if (!index) return found;
    const voxels = this.voxels, [columns, rows, slices] = this.axial.data.getDimensions(), size = columns * rows;
    for (let k = 0; k < slices; k++) {
      if (voxels.subarray(k * size, (k + 1) * size).includes(index)) found.add(k);
    }
    return found;
  }

  // A label of the user's own: a segment, and a row among the panel's labels.
  addSegment(label) {
    const { segmentationService } = window.services, used = new Set(Object.values(this.segments));
    let index = 1;
    while (used.has(index)) index++;
    if (index > 255) throw new Error('there is no room for another label');
    const color = [...freshColour(index), 255];
    segmentationService.addSegment(SEGMENTATION, { segmentIndex: index, label, color });
    const settings = segmentationService.getSegmentations()[0]?.config?.segments;
    if (settings) settings[index] = { segmentIndex: index, label, active: false, locked: false, color };
    const info = this.panel.state.info;
    if (!info.labels.includes(label)) info.labels = [...info.labels, label].sort();
    this.panel.setState({ info });
    this.tellColoursApart();
    return index;
  }

  colour(index, color) {
    for (const id of window.services.viewportGridService.getState().viewports.keys()) {
      try {
        window.cornerstoneTools.segmentation.config.color.setSegmentIndexColor(id, SEGMENTATION, index, color);
      } catch { /* a view that does not show the masks */ }
    }
  }

  // The panel's own record of its segments, by index: {label, color}.
  get segmentSettings() {
    return window.services.segmentationService.getSegmentation(SEGMENTATION)?.config?.segments ?? null;
  }

  // The panel gives left and right organs one colour, and many organs one that looks the same: later ones get another hue.
  tellColoursApart() {
    const settings = this.segmentSettings ?? {};
    const taken = [];
    for (const segment of Object.values(settings)) {
      let color = Array.from(segment.color ?? freshColour(segment.segmentIndex)).slice(0, 3);
      const done = segment.apart === color.join();
      for (let tries = 0; !done && tries < 8 && taken.some(one => Math.hypot(...difference(one, color)) < ALIKE); tries++) {
        color = hueTurned(color, HUE_STEP);
      }
      taken.push(color);
      segment.color = [...color, 255];
      segment.apart = color.join(); // done once: a label keeps its colour
      this.colour(segment.segmentIndex, segment.color);
    }
    this.panel.forceUpdate();
  }

  cssColour(label) {
    const settings = this.segmentSettings ?? {};
    const segment = Object.values(settings).find(one => one.label === label);
    return segment ? `rgb(${Array.from(segment.color).slice(0, 3).join()})` : '#888';
  }
}

// A colour of another hue, bright and saturated enough to be seen on grey.
function hueTurned(color, degrees) {
  const [r, g, b] = color.map(value => value / 255), high = Math.max(r, g, b), span = high - Math.min(r, g, b);
  let hue = 0;
  if (span) hue = high === r ? (g - b) / span : high === g ? 2 + (b - r) / span : 4 + (r - g) / span;
  const value = Math.max(high, 0.7), saturation = Math.max(high ? span / high : 0, 0.55);
  return [5, 3, 1].map(shift => {
    const at = (((shift + hue + degrees / 60) % 6) + 6) % 6;
    return Math.round(255 * value * (1 - saturation * Math.max(0, Math.min(at, 4 - at, 1))));
  });
}

function freshColour(index) {
  const part = shift => Math.round(140 + 110 * Math.sin(index * 2.4 + shift));
  return [part(0), part(2.1), part(4.2)];
}
