// The image and its masks on screen, by NiiVue. What it tells others is in voxels of the stored image.

import { headers } from './server.js';
import { Grid } from './grid.js';
import { shape } from './ui.js';

export const VIEWS = ['slice', 'planes', '3d'];
const RIM = 0.95; // opacity of a mask's outline: it is seen where the fill is faint
const MOST_ZOOM = 12;
const MOST_SMOOTHED = 4e7; // voxels: a guess at what is smoothed within a second or two where there is no graphics card

export class Stage extends EventTarget {
  constructor(canvas, overlay) {
    super();
    Object.assign(this, { canvas, overlay, slice: 0, view: 'slice', shown: true, opacity: 0.3, marks: [], unsure: null });
    overlay.addEventListener('pointerdown', event => this.#pointer('down', event));
    overlay.addEventListener('pointermove', event => this.#pointer('move', event));
    overlay.addEventListener('pointerup', event => this.#pointer('up', event));
    overlay.addEventListener('pointerleave', () => this.#hover(null));
    overlay.addEventListener('contextmenu', event => event.preventDefault());
    overlay.addEventListener('wheel', event => {
      event.preventDefault();
      if (event.ctrlKey) return this.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, this.#pixel(event));
      this.goTo(this.slice + Math.sign(event.deltaY));
    }, { passive: false });
    new ResizeObserver(() => requestAnimationFrame(() => this.drawMarks())).observe(canvas);
  }

  // ``range``: the lowest and highest intensity to show, where it is known before.
  async open(module, url, range = null) {
    this.nv = new module.Niivue({
      backColor: [0.03, 0.04, 0.05, 1], isRadiologicalConvention: true, isForceMouseClickToVoxelCenters: true, crosshairWidth: 0,
      crosshairColor: [0.35, 0.65, 0.85, 0.6], show3Dcrosshair: false, dragAndDropEnabled: false, isColorbar: false, isNearestInterpolation: false,
      multiplanarShowRender: 1, multiplanarLayout: 2, multiplanarPadPixels: 6, crosshairWidthUnit: 'mm', fontColor: [0.85, 0.88, 0.92, 1], logLevel: 'error', fontMinPx: 16, isOrientationTextVisible: true,
      showAllOrientationMarkers: true, loadingText: '',
    });
    const { nv } = this;
    this.types = [nv.sliceTypeSagittal, nv.sliceTypeCoronal, nv.sliceTypeAxial];
    await nv.attachToCanvas(this.canvas);
    await nv.loadVolumes([{ url, name: 'image.nii', headers: headers(), ...(range && { cal_min: range[0], cal_max: range[1] }) }]);
    const volume = this.volume = nv.volumes[0], { dims, pixDims, affine } = volume.hdr;
    this.grid = new Grid({ permutation: [...volume.permRAS], shape: [...dims.slice(1, 4)], affine, spacing: [...pixDims.slice(1, 4)] });
    nv.createEmptyDrawing();
    nv.setRenderAzimuthElevation(160, 10); // from the front
    this.setOpacity(this.opacity);
    this.setView('slice');
    this.goTo(Math.floor(this.grid.shape[2] / 2));
  }

  get voxels() { return this.nv.drawBitmap; }

  setView(view) {
    const { nv } = this, all = { slice: this.types[this.grid.sliceAxis], planes: nv.sliceTypeMultiplanar, '3d': nv.sliceTypeRender };
    const faint = view === '3d' ? 0 : 1; // the body would hide the masks
    this.view = view;
    nv.opts.crosshairWidth = view === 'planes' ? 1 : 0;
    nv.opts.isOrientCube = view === '3d';
    if (this.volume.opacity !== faint) { this.volume.opacity = faint; nv.updateGLVolume(); }
    const smooth = view === '3d' && this.voxels.length < MOST_SMOOTHED ? 1 : 0; // the surface of masks, not their cubes
    if (nv.opts.smoothDrawing !== smooth) { nv.opts.smoothDrawing = smooth; nv.refreshDrawing(false); }
    nv.setSliceType(all[view]);
    this.drawMarks();
  }

  goTo(k, ij = null) {
    k = Math.max(0, Math.min(this.grid.shape[2] - 1, k));
    const [i, j] = ij ?? this.grid.toStored([...this.nv.frac2vox(this.nv.scene.crosshairPos)]);
    this.slice = k;
    this.nv.scene.crosshairPos = this.nv.vox2frac(this.grid.toViewer([i, j, k]));
    this.nv.drawScene();
    this.dispatchEvent(new Event('slice')); // marks are drawn then
  }

  // --- zoom and pan: what is under the mouse stays there

  zoom(factor, pixel = [this.canvas.width / 2, this.canvas.height / 2]) {
    if (this.view === '3d') { this.nv.setScale(this.nv.scene.volScaleMultiplier * factor); return; }
    const frac = this.nv.canvasPos2frac(pixel), pan = [...this.nv.scene.pan2Dxyzmm];
    pan[3] = Math.max(1, Math.min(MOST_ZOOM, pan[3] * factor));
    this.nv.setPan2Dxyzmm(pan[3] === 1 ? [0, 0, 0, 1] : pan);
    if (frac[0] >= 0 && pan[3] > 1) this.#hold(frac, pixel);
    this.drawMarks();
  }

  #hold(frac, pixel) {
    const now = this.nv.canvasPos2frac(pixel);
    if (now[0] < 0) return;
    const [a, b] = [this.nv.frac2mm(frac), this.nv.frac2mm(now)], pan = [...this.nv.scene.pan2Dxyzmm];
    for (let axis = 0; axis < 3; axis++) pan[axis] += pan[3] * (b[axis] - a[axis]);
    this.nv.setPan2Dxyzmm(pan);
  }

  window(low, high) {
    this.volume.cal_min = low;
    this.volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  // The intensities below which a share of the voxels lies.
  percentiles(shares) {
    const { img } = this.volume, step = Math.max(1, Math.floor(img.length / 200000)), sample = [];
    for (let n = 0; n < img.length; n += step) sample.push(this.#intensity(img[n]));
    sample.sort((a, b) => a - b);
    return shares.map(share => sample[Math.round(share * (sample.length - 1))]);
  }

  #intensity(raw) {
    const { scl_slope: slope, scl_inter: inter } = this.volume.hdr;
    return raw * (slope || 1) + (inter || 0);
  }

  intensityAt(ijk) {
    const [columns, rows] = this.grid.shape;
    return this.#intensity(this.volume.img[(ijk[2] * rows + ijk[1]) * columns + ijk[0]]);
  }

  // --- masks

  colours(labels) {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [''] };
    for (const { value, colour, visible, name } of labels) {
      const [r, g, b] = [1, 3, 5].map(n => parseInt(colour.slice(n, n + 2), 16));
      map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(visible ? 255 : 0); map.I.push(value); map.labels.push(name);
    }
    this.nv.setDrawColormap(map);
    this.nv.drawScene();
  }

  setOpacity(opacity, shown = this.shown) {
    Object.assign(this, { opacity, shown });
    this.nv.drawRimOpacity = shown ? RIM : 0;
    this.nv.setDrawOpacity(shown ? Math.max(0.01, opacity) : 0);
  }

  refresh() { this.#upload([0, 0, 0], this.grid.dims, this.voxels); }

  // One stored slice to the screen: a whole volume takes too long for every stroke.
  refreshSlice(k) {
    const { dims, sliceAxis: axis } = this.grid, plane = [...dims], from = [0, 0, 0];
    from[axis] = this.grid.toViewer([0, 0, k])[axis];
    plane[axis] = 1;
    this.#upload(from, plane, this.grid.plane(this.voxels, from[axis]));
  }

  #upload(from, size, voxels) {
    if (this.view === '3d') { this.nv.refreshDrawing(); return; }
    const { gl, drawTexture } = this.nv;
    gl.activeTexture(gl.TEXTURE7); // where NiiVue keeps the drawing
    gl.bindTexture(gl.TEXTURE_3D, drawTexture);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texSubImage3D(gl.TEXTURE_3D, 0, ...from, ...size, gl.RED, gl.UNSIGNED_BYTE, voxels);
    this.nv.drawScene();
  }

  // --- places on screen

  #pixel(event) {
    const { left, top, width } = this.canvas.getBoundingClientRect(), dpr = this.canvas.width / width;
    return [(event.clientX - left) * dpr, (event.clientY - top) * dpr];
  }

  #place(event) {
    const pixel = this.#pixel(event), screen = this.nv.screenSlices[this.nv.tileIndex(...pixel)];
    if (!screen || screen.axCorSag > 2) return null;
    const frac = this.nv.canvasPos2frac(pixel);
    if (!frac || frac[0] < 0) return null;
    const ijk = this.grid.toStored([...this.nv.frac2vox(frac)]);
    if (ijk.some((one, axis) => one < 0 || one >= this.grid.shape[axis])) return null;
    return { ijk, ofSlices: screen.axCorSag === this.types[this.grid.sliceAxis] };
  }

  #pointer(kind, event) {
    if (!this.grid) return;
    if (kind === 'down') this.overlay.setPointerCapture(event.pointerId);
    if (this.view === '3d') return this.#turn(event);
    if (event.button === 1 || event.buttons === 4) return this.#pan(kind, event);
    const place = this.#place(event);
    if (place && !place.ofSlices && kind !== 'up' && event.buttons) return this.goTo(place.ijk[2], place.ijk);
    if (place?.ofSlices) place.ijk[2] = this.slice;
    const ijk = place?.ofSlices ? place.ijk : null;
    if (kind === 'move') this.#hover(ijk);
    if (kind === 'move' && !event.buttons) return;
    this.dispatchEvent(new CustomEvent('pointer', { detail: { kind, ijk, negative: event.shiftKey || event.button === 2 || event.buttons === 2 } }));
  }

  #pan(kind, event) {
    event.preventDefault();
    const pixel = this.#pixel(event);
    if (kind === 'down') this.held = this.nv.canvasPos2frac(pixel);
    else if (kind === 'move' && this.held?.[0] >= 0) { this.#hold(this.held, pixel); this.drawMarks(); }
  }

  #turn(event) {
    if (event.buttons !== 1) return;
    const { renderAzimuth: a, renderElevation: e } = this.nv.scene;
    this.nv.setRenderAzimuthElevation(a - event.movementX, Math.max(-90, Math.min(90, e + event.movementY)));
  }

  #hover(ijk) { this.dispatchEvent(new CustomEvent('hover', { detail: ijk })); }

  // Where a voxel of the slice on screen is, in pixels of the page relative to the canvas; outside of it too.
  at(ijk) {
    const type = this.types[this.grid.sliceAxis], tile = this.nv.screenSlices.find(one => one.axCorSag === type);
    if (!tile) return null;
    const mm = this.nv.frac2mm(this.nv.vox2frac(this.grid.toViewer(ijk))), axes = [0, 1, 2].filter(axis => axis !== this.grid.sliceAxis);
    const [x, y] = axes.map((axis, n) => (mm[axis] - tile.leftTopMM[n]) / tile.fovMM[n]), [left, top, width, height] = tile.leftTopWidthHeight;
    const dpr = this.canvas.width / this.canvas.clientWidth; // a negative width stands for a mirrored slice
    return [(left + x * width) / dpr, (top + (1 - y) * height) / dpr];
  }

  // marks: {kind: point | cursor | disc | box | line | area, points: [[i, j, k], ...], negative, radius}. ``unsure`` is a
  // picture of the slice, by rows and columns, that is laid over it.
  drawMarks(marks = this.marks, unsure = this.unsure) {
    Object.assign(this, { marks, unsure });
    if (!this.nv?.screenSlices?.length) return;
    const own = this.view === '3d' ? [] : marks.filter(one => one.points.length && one.points[0][2] === this.slice);
    const picture = unsure && this.view !== '3d' && unsure.slice === this.slice ? [this.#laid(unsure)] : [];
    this.overlay.replaceChildren(...picture, ...own.map(one => this.#mark(one)));
  }

  #laid({ url, slice }) {
    const [columns, rows] = this.grid.shape, at = (i, j) => this.at([i - 0.5, j - 0.5, slice]) ?? [0, 0];
    const [o, x, y] = [at(0, 0), at(columns, 0), at(0, rows)];
    const matrix = [(x[0] - o[0]) / columns, (x[1] - o[1]) / columns, (y[0] - o[0]) / rows, (y[1] - o[1]) / rows, ...o];
    return shape('image', { href: url, width: columns, height: rows, preserveAspectRatio: 'none', transform: `matrix(${matrix})`, class: 'unsure' });
  }

  #mark({ kind, points, negative, radius }) {
    const [a, b] = points.map(one => this.at(one) ?? [-99, -99]), tone = negative ? 'negative' : 'positive';
    if (kind === 'point') return shape('circle', { cx: a[0], cy: a[1], r: 5, class: tone });
    if (kind === 'disc') {
      const beside = this.at([points[0][0] + radius, points[0][1], points[0][2]]) ?? a;
      return shape('circle', { cx: a[0], cy: a[1], r: Math.max(2, Math.hypot(beside[0] - a[0], beside[1] - a[1])), class: 'disc' });
    }
    if (kind === 'cursor') return shape('path', { d: `M${a[0] - 9} ${a[1]}h18M${a[0]} ${a[1] - 9}v18`, class: 'cursor' });
    if (kind === 'box') return shape('rect', { x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]), width: Math.abs(a[0] - b[0]), height: Math.abs(a[1] - b[1]) });
    return shape(kind === 'area' ? 'polygon' : 'polyline', { points: points.map(one => this.at(one)).join(' '), class: `${kind} ${tone}` });
  }
}
