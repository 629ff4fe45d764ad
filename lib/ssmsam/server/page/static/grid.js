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

// Bytes as text, packed as the server packs slices.
export const deflated = async bytes => btoa(Array.from(await through(bytes, new CompressionStream('deflate')), one => String.fromCharCode(one)).join(''));
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
