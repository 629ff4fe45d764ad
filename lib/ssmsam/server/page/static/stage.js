// The image and its masks on screen, by NiiVue. What it tells others is in voxels of the stored image.

import { headers } from './server.js';
import { Grid } from './grid.js';

const SVG = 'http://www.w3.org/2000/svg';

export class Stage extends EventTarget {
  constructor(canvas, overlay) {
    super();
    Object.assign(this, { canvas, overlay, slice: 0, planes: false, shown: true, opacity: 0.45, marks: [] });
    overlay.addEventListener('pointerdown', event => this.#pointer('down', event));
    overlay.addEventListener('pointermove', event => this.#pointer('move', event));
    overlay.addEventListener('pointerup', event => this.#pointer('up', event));
    overlay.addEventListener('contextmenu', event => event.preventDefault());
    overlay.addEventListener('wheel', event => {
      event.preventDefault();
      if (event.ctrlKey) return this.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
      this.goTo(this.slice + Math.sign(event.deltaY));
    }, { passive: false });
    new ResizeObserver(() => requestAnimationFrame(() => this.drawMarks())).observe(canvas);
  }

  async open(module, url, name) {
    this.nv = new module.Niivue({
      backColor: [0.03, 0.04, 0.05, 1], isRadiologicalConvention: true, isForceMouseClickToVoxelCenters: true, crosshairWidth: 0,
      crosshairColor: [0.35, 0.65, 0.85, 0.6], show3Dcrosshair: false, dragAndDropEnabled: false, isColorbar: false, isNearestInterpolation: false,
      multiplanarShowRender: 0, fontColor: [0.75, 0.8, 0.85, 1], logLevel: 'error', fontMinPx: 15, isOrientationTextVisible: true, loadingText: '',
    });
    this.types = [this.nv.sliceTypeSagittal, this.nv.sliceTypeCoronal, this.nv.sliceTypeAxial];
    this.every = this.nv.sliceTypeMultiplanar;
    await this.nv.attachToCanvas(this.canvas);
    await this.nv.loadVolumes([{ url, name, headers: headers() }]);
    const volume = this.volume = this.nv.volumes[0], { dims, pixDims, affine } = volume.hdr;
    this.grid = new Grid({ permutation: [...volume.permRAS], shape: [...dims.slice(1, 4)], affine, spacing: [...pixDims.slice(1, 4)] });
    this.nv.createEmptyDrawing();
    this.nv.setDrawOpacity(this.opacity);
    this.setPlanes(false);
    this.goTo(Math.floor(this.grid.shape[2] / 2));
  }

  get voxels() { return this.nv.drawBitmap; }

  setPlanes(on) {
    this.planes = on;
    this.nv.opts.crosshairWidth = on ? 1 : 0;
    this.nv.setSliceType(on ? this.every : this.types[this.grid.sliceAxis]);
    this.drawMarks();
  }

  goTo(k, ij = null) {
    k = Math.max(0, Math.min(this.grid.shape[2] - 1, k));
    const at = this.grid.toStored([...this.nv.frac2vox(this.nv.scene.crosshairPos)]);
    const [i, j] = ij ?? at;
    this.slice = k;
    this.nv.scene.crosshairPos = this.nv.vox2frac(this.grid.toViewer([i, j, k]));
    this.nv.drawScene();
    this.drawMarks();
    this.dispatchEvent(new Event('slice'));
  }

  zoom(factor) {
    const pan = this.nv.scene.pan2Dxyzmm;
    this.nv.setPan2Dxyzmm([pan[0], pan[1], pan[2], Math.max(1, Math.min(10, pan[3] * factor))]);
    this.drawMarks();
  }

  window(low, high) {
    this.volume.cal_min = low;
    this.volume.cal_max = high;
    this.nv.updateGLVolume();
  }

  // The intensities below which a share of the voxels lies.
  percentiles(shares) {
    const { img } = this.volume, step = Math.max(1, Math.floor(img.length / 200000)), sample = [];
    const { scl_slope: slope, scl_inter: inter } = this.volume.hdr, m = slope || 1;
    for (let n = 0; n < img.length; n += step) sample.push(img[n] * m + (inter || 0));
    sample.sort((a, b) => a - b);
    return shares.map(share => sample[Math.round(share * (sample.length - 1))]);
  }

  colours(labels) {
    const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: [''] };
    for (const { value, colour, visible, name } of labels) {
      const [r, g, b] = [1, 3, 5].map(n => parseInt(colour.slice(n, n + 2), 16));
      map.R.push(r); map.G.push(g); map.B.push(b); map.A.push(visible ? 255 : 0); map.I.push(value); map.labels.push(name);
    }
    this.nv.setDrawColormap(map);
  }

  setOpacity(opacity, shown = this.shown) {
    Object.assign(this, { opacity, shown });
    this.nv.setDrawOpacity(shown ? opacity : 0);
  }

  refresh() { this.nv.refreshDrawing(true); }

  // --- places on screen

  #place(event) {
    const { left, top, width } = this.canvas.getBoundingClientRect(), dpr = this.canvas.width / width;
    const x = (event.clientX - left) * dpr, y = (event.clientY - top) * dpr, tile = this.nv.tileIndex(x, y);
    const screen = this.nv.screenSlices[tile];
    if (!screen || screen.axCorSag > 2) return null;
    const frac = this.nv.canvasPos2frac([x, y]);
    if (!frac || frac[0] < 0) return null;
    const ijk = this.grid.toStored([...this.nv.frac2vox(frac)]);
    if (ijk.some((one, axis) => one < 0 || one >= this.grid.shape[axis])) return null;
    return { ijk, ofSlices: screen.axCorSag === this.types[this.grid.sliceAxis] };
  }

  #pointer(kind, event) {
    if (!this.grid || (kind === 'move' && !event.buttons)) return;
    if (kind === 'down') this.overlay.setPointerCapture(event.pointerId);
    const place = this.#place(event);
    if (place && !place.ofSlices && kind !== 'up') return this.goTo(place.ijk[2], place.ijk);
    if (place?.ofSlices) place.ijk[2] = this.slice;
    this.dispatchEvent(new CustomEvent('pointer', { detail: { kind, ijk: place?.ofSlices ? place.ijk : null, negative: event.shiftKey || event.button === 2 || event.buttons === 2 } }));
  }

  // Where a voxel of the slice on screen is, in pixels of the page relative to the canvas.
  at(ijk) {
    const found = this.nv.frac2canvasPosWithTile(this.nv.vox2frac(this.grid.toViewer(ijk)), this.types[this.grid.sliceAxis]);
    const dpr = this.canvas.width / this.canvas.clientWidth;
    return found && [found.pos[0] / dpr, found.pos[1] / dpr];
  }

  // marks: {ijk, negative} for points, {from, to} for a box.
  drawMarks(marks = this.marks) {
    this.marks = marks;
    if (!this.nv?.screenSlices?.length) return;
    this.overlay.replaceChildren(...marks.filter(one => (one.ijk ?? one.from)[2] === this.slice).map(one => {
      if (one.ijk) {
        const node = document.createElementNS(SVG, 'circle'), [x, y] = this.at(one.ijk) ?? [-9, -9];
        for (const [name, value] of Object.entries({ cx: x, cy: y, r: 4, class: one.negative ? 'negative' : 'positive' })) node.setAttribute(name, value);
        return node;
      }
      const node = document.createElementNS(SVG, 'rect'), [a, b] = [this.at(one.from) ?? [0, 0], this.at(one.to) ?? [0, 0]];
      const box = { x: Math.min(a[0], b[0]), y: Math.min(a[1], b[1]), width: Math.abs(a[0] - b[0]), height: Math.abs(a[1] - b[1]) };
      for (const [name, value] of Object.entries(box)) node.setAttribute(name, value);
      return node;
    }));
  }
}
