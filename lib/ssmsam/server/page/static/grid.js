// The one place where the viewer's voxels (x, y, z towards right, front and head) become the stored image's (column, row,
// slice), which the server speaks, and back. And masks as files.

export class Grid {
  // permutation: for each axis of the viewer the stored axis, 1 to 3, negative where it runs backwards.
  constructor({ permutation, shape, affine, spacing }) {
    Object.assign(this, { permutation, shape, affine, spacing });
    this.dims = permutation.map(one => shape[Math.abs(one) - 1]);
    const strides = [1, this.dims[0], this.dims[0] * this.dims[1]];
    this.base = 0;
    this.steps = [0, 0, 0];
    permutation.forEach((one, axis) => {
      this.steps[Math.abs(one) - 1] = one > 0 ? strides[axis] : -strides[axis];
      if (one < 0) this.base += strides[axis] * (this.dims[axis] - 1);
    });
    this.sliceAxis = permutation.findIndex(one => Math.abs(one) === 3); // of the viewer
    this.area = shape[0] * shape[1];
  }

  toStored(xyz) {
    const ijk = [0, 0, 0];
    this.permutation.forEach((one, axis) => { ijk[Math.abs(one) - 1] = one > 0 ? xyz[axis] : this.dims[axis] - 1 - xyz[axis]; });
    return ijk;
  }

  toViewer(ijk) {
    return this.permutation.map((one, axis) => (one > 0 ? ijk[one - 1] : this.dims[axis] - 1 - ijk[-one - 1]));
  }

  // A stored slice (rows by columns) of a volume in the viewer's order.
  read(volume, k) {
    const [columns, rows] = this.shape, [si, sj, sk] = this.steps, slice = new Uint8Array(this.area);
    for (let j = 0, to = 0; j < rows; j++) {
      let from = this.base + j * sj + k * sk;
      for (let i = 0; i < columns; i++, from += si) slice[to++] = volume[from];
    }
    return slice;
  }

  write(volume, k, slice) {
    const [columns, rows] = this.shape, [si, sj, sk] = this.steps;
    for (let j = 0, from = 0; j < rows; j++) {
      let to = this.base + j * sj + k * sk;
      for (let i = 0; i < columns; i++, to += si) volume[to] = slice[from++];
    }
  }

  // One plane of the viewer, across its axis of stored slices, as a texture takes it.
  plane(volume, at) {
    const [nx, ny, nz] = this.dims, axis = this.sliceAxis;
    if (axis === 2) return volume.subarray(at * nx * ny, (at + 1) * nx * ny);
    const found = new Uint8Array(axis === 0 ? ny * nz : nx * nz);
    let to = 0;
    for (let z = 0; z < nz; z++) {
      if (axis === 1) { found.set(volume.subarray((z * ny + at) * nx, (z * ny + at + 1) * nx), z * nx); continue; }
      for (let y = 0; y < ny; y++) found[to++] = volume[(z * ny + y) * nx + at];
    }
    return found;
  }
}

export const inflate = (bytes, kind = 'deflate') => through(bytes, new DecompressionStream(kind));
const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

// The voxels of a NIfTI or NRRD mask of one byte each, in stored order.
export async function readMask(blob) {
  let bytes = new Uint8Array(await blob.arrayBuffer());
  if (bytes[0] === 0x1f && bytes[1] === 0x8b) bytes = await through(bytes, new DecompressionStream('gzip'));
  if (String.fromCharCode(...bytes.subarray(0, 4)) === 'NRRD') {
    let end = 0;
    while (bytes[end] !== 10 || bytes[end + 1] !== 10) end += 1;
    const header = new TextDecoder().decode(bytes.subarray(0, end)), data = bytes.subarray(end + 2);
    return /encoding: (gzip|gz)/.test(header) ? through(data, new DecompressionStream('gzip')) : data;
  }
  return bytes.subarray(new DataView(bytes.buffer, bytes.byteOffset).getFloat32(108, true));
}

// A gzipped NIfTI file with some stored slices of a mask: {slice: voxels}.
export async function maskFile(grid, slices) {
  const bytes = new Uint8Array(352 + grid.area * grid.shape[2]), view = new DataView(bytes.buffer);
  view.setInt32(0, 348, true);
  [3, ...grid.shape, 1, 1, 1, 1].forEach((one, n) => view.setInt16(40 + 2 * n, one, true));
  view.setInt16(70, 2, true); // unsigned bytes
  view.setInt16(72, 8, true);
  [1, ...grid.spacing].forEach((one, n) => view.setFloat32(76 + 4 * n, one, true));
  view.setFloat32(108, 352, true);
  view.setFloat32(112, 1, true);
  bytes[123] = 2; // millimetres
  view.setInt16(254, 1, true);
  grid.affine.slice(0, 3).flat().forEach((one, n) => view.setFloat32(280 + 4 * n, one, true));
  bytes.set([0x6e, 0x2b, 0x31, 0], 344); // n+1
  for (const [k, voxels] of Object.entries(slices)) bytes.set(voxels, 352 + grid.area * Number(k));
  return new Blob([await through(bytes, new CompressionStream('gzip'))]);
}
