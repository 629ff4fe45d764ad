"""Volumes to files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ssmsam.volume.geometry import RAS_LPS
from ssmsam.volume.volume import Volume

WRITING = ".writing-"
"""How the names of files and folders begin that are being written."""
DAMAGED = ".damaged-"
"""What the names of files and folders hold that were put aside."""


def write_volume(volume: Volume, path: str | os.PathLike[str], *, compress: bool = True) -> None:
    """Write a .nii, .nii.gz or .nrrd file on the volume's own grid, keeping the type of its voxels.

    The file appears whole or not at all. ``compress`` chooses gzip or raw NRRD; NIfTI says it by its suffix.
    The same volume always makes the same bytes. Raises ValueError for another suffix.
    """
    path = Path(path)
    for suffix in (".nii.gz", ".nii", ".nrrd"):
        if path.name.lower().endswith(suffix):
            break
    else:
        raise ValueError(f"cannot write {path.name}: the name has to end in .nii, .nii.gz or .nrrd")
    with whole_file(path, suffix) as partial:
        if suffix == ".nrrd":
            sitk.WriteImage(_itk_image(volume), str(partial), compress, compressionLevel=1)
        else:
            nib.save(_nifti_image(volume), partial)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one. Only its owner may read it (mode 0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = NamedTemporaryFile(dir=path.parent, prefix=WRITING, delete=False)  # noqa: SIM115
    partial = Path(file.name)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # closed by now: Windows renames no open file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def private_folder(path: Path) -> Path:
    """A folder that only its owner may look into (mode 0700), made where it is missing: for what shows patients."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def put_aside(path: Path) -> str:
    """Give a damaged file or folder another name beside it, so that it is kept; the new name. Raises OSError."""
    stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")
    return path.rename(path.with_name(f"{path.name}{DAMAGED}{stamp}")).name


@contextmanager
def whole_file(path: Path, suffix: str) -> Iterator[Path]:
    """A place to write that becomes ``path`` in one step at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=WRITING, dir=path.parent) as folder:
        partial = Path(folder) / f"whole{suffix}"
        yield partial
        os.replace(partial, path)


def _storable(array: np.ndarray) -> np.ndarray:
    """The array in a type that both formats know."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _nifti_image(volume: Volume) -> nib.Nifti1Image:
    array = _storable(volume.array)
    affine = RAS_LPS @ volume.affine
    image = nib.Nifti1Image(array.T, affine, dtype=array.dtype)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    return image


def _itk_image(volume: Volume) -> sitk.Image:
    image = sitk.GetImageFromArray(_storable(volume.array))
    spacing = np.array(volume.spacing[::-1])
    image.SetSpacing(spacing.tolist())
    image.SetDirection((volume.affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(volume.affine[:3, 3].tolist())
    return image
