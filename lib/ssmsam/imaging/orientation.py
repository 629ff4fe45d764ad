"""The same anatomy in another storage order."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from nibabel import orientations

from ssmsam.imaging.geometry import RAS_LPS
from ssmsam.imaging.volume import Grid, Volume


def axis_codes(volume: Volume | Grid) -> str:
    """Where the column, row and slice index grow to, as in "LPS": patient's left, posterior, superior."""
    return "".join(nib.aff2axcodes(RAS_LPS @ volume.affine))


def reoriented(volume: Volume, codes: str) -> Volume:
    """The same voxels at the same places, stored so that (column, row, slice) grow towards ``codes``, "RAS" say.

    Axes are flipped and swapped, never resampled. Raises ValueError for codes that are not three directions.
    """
    pairs = ("LR", "AP", "SI")
    if len(codes) != 3 or any(sum(c in pair for c in codes) != 1 for pair in pairs):
        raise ValueError(f"an orientation names three directions such as LPS or RAS, got {codes!r}")
    affine = RAS_LPS @ volume.affine
    change = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt(tuple(codes)))
    ijk = volume.array.T
    turned = orientations.apply_orientation(ijk, change)
    moved = RAS_LPS @ affine @ orientations.inv_ornt_aff(change, ijk.shape)
    return Volume(
        np.ascontiguousarray(turned.T), moved, volume.modality, volume.series_uid, volume.frame_of_reference_uid
    )
