"""Distances between surfaces in millimetres, through MONAI.

The rule for empty masks: both empty is 0 mm; one of them empty is the diagonal of the volume, the worst there is.
"""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance


def surface_distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: tuple[float, float, float]
) -> dict[str, float]:
    """``assd_mm``, the average symmetric surface distance, and ``hd95_mm``, the 95 % Hausdorff distance.

    The latter is the larger one of the 95 % percentiles of the two directions.

    Masks (slices, rows, columns) of one shape, ``spacing`` in mm along the same axes. Raises ValueError when the
    shapes differ.
    """
    a, b = np.asarray(prediction) != 0, np.asarray(truth) != 0
    if a.shape != b.shape:
        raise ValueError(f"the masks must have one shape, got {a.shape} and {b.shape}")
    if not a.any() or not b.any():
        worst = float(np.linalg.norm(np.multiply(a.shape, spacing)))
        distance = 0.0 if not a.any() and not b.any() else worst
        return {"assd_mm": distance, "hd95_mm": distance}
    box = _box(a | b)  # the rest costs time and changes nothing
    ours, theirs = (torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (a, b))
    mm = list(spacing)
    assd = compute_average_surface_distance(ours, theirs, include_background=True, symmetric=True, spacing=mm)
    hd95 = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=mm)
    return {"assd_mm": float(assd), "hd95_mm": float(hd95)}


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box that holds a mask that is not empty."""
    axes = range(mask.ndim)
    places = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)
