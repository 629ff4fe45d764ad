"""Agreement between two masks, and how sure a mean of it is.

Distances between surfaces in millimetres, through MONAI.

The rule for empty masks: both empty is 0 mm; one of them empty is the diagonal of the volume, the worst there is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

from ssmsam import ops
from ssmsam.report import Summary


def dice(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Dice in per cent of two masks of one shape; any non-zero element is inside.

    Both empty is a full agreement, 100; one of them empty is 0. Raises ValueError when the shapes differ.
    """
    return float(ops.dice(*_masks(prediction, truth), scale=100.0))


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union in per cent, with the same rule for empty masks as :func:`dice`."""
    a, b = _masks(prediction, truth)
    union = int(np.count_nonzero(a | b))
    return 100.0 if union == 0 else 100.0 * int(np.count_nonzero(a & b)) / union


def iou_of_dice(dice: float) -> float:
    """The IoU of the two masks that have this Dice, both in per cent. One follows from the other, empty masks too."""
    return 100.0 * dice / (200.0 - dice)


def _masks(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(prediction), np.asarray(truth)
    if a.shape != b.shape:
        raise ValueError(f"the masks must have one shape, got {a.shape} and {b.shape}")
    return a != 0, b != 0


def summarise_labels(scores: Mapping[str, Mapping[str, float]], *, seed: int = 0, resamples: int = 2000) -> Summary:
    """The mean over labels of means over cases, and its 95 % percentile bootstrap interval over cases.

    ``scores`` maps label -> case -> value. Whole cases are drawn again, with all their labels; a label that none of the
    drawn cases holds does not count in that draw. Raises ValueError for no values.
    """
    cases = sorted({case for found in scores.values() for case in found})
    if not cases:
        raise ValueError("an interval needs at least one value")
    table = np.array([[found.get(case, np.nan) for found in scores.values()] for case in cases], dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, len(cases), size=(resamples, len(cases)))
    held = ~np.isnan(table)
    counts, sums = held[picks].sum(axis=1), np.where(held, table, 0.0)[picks].sum(axis=1)
    drawn = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0).sum(axis=1) / (counts > 0).sum(axis=1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Summary(float(np.nanmean(table, axis=0).mean()), (float(low), float(high)), len(cases))


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
