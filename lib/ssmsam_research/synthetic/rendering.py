"""What a scanner would show of a tissue map: CT in Hounsfield units, MR with two kinds of contrast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ssmsam_research.synthetic.anatomy import Tissue
from ssmsam_research.synthetic.shapes import smooth_field

Triple = tuple[int, int, int]
Spacing = tuple[float, float, float]

PORTAL_VENOUS_HU = {
    Tissue.OUTSIDE: -1000, Tissue.LIVER: 105, Tissue.SPLEEN: 122, Tissue.RIGHT_CORTEX: 178, Tissue.LEFT_CORTEX: 178,
    Tissue.AORTA: 152, Tissue.LESION: 62, Tissue.LIVER_VESSEL: 150, Tissue.RIGHT_MEDULLA: 158,
    Tissue.LEFT_MEDULLA: 158, Tissue.SKIN: 20, Tissue.FAT: -104, Tissue.MUSCLE: 58, Tissue.COMPACT_BONE: 560,
    Tissue.SPONGY_BONE: 210, Tissue.CARTILAGE: 92, Tissue.CEREBROSPINAL_FLUID: 18, Tissue.CORD: 42,
    Tissue.LUNG: -840, Tissue.LUNG_VESSEL: -80, Tissue.HEART: 130, Tissue.ARTERY: 150, Tissue.VEIN: 148,
    Tissue.BILE: 9, Tissue.GUT_WALL: 74, Tissue.GUT_FLUID: 24, Tissue.GAS: -920, Tissue.STOOL: 22,
    Tissue.PANCREAS: 92, Tissue.URINE: 25, Tissue.TABLE: -320,
}  # fmt: skip
"""Hounsfield units some 70 s after contrast medium."""

T2_FAT_SUPPRESSED = {
    Tissue.OUTSIDE: 0, Tissue.LIVER: 250, Tissue.SPLEEN: 520, Tissue.RIGHT_CORTEX: 500, Tissue.LEFT_CORTEX: 500,
    Tissue.AORTA: 60, Tissue.LESION: 560, Tissue.LIVER_VESSEL: 120, Tissue.RIGHT_MEDULLA: 690,
    Tissue.LEFT_MEDULLA: 690, Tissue.SKIN: 150, Tissue.FAT: 95, Tissue.MUSCLE: 150, Tissue.COMPACT_BONE: 30,
    Tissue.SPONGY_BONE: 190, Tissue.CARTILAGE: 260, Tissue.CEREBROSPINAL_FLUID: 980, Tissue.CORD: 380,
    Tissue.LUNG: 18, Tissue.LUNG_VESSEL: 70, Tissue.HEART: 180, Tissue.ARTERY: 60, Tissue.VEIN: 170,
    Tissue.BILE: 1000, Tissue.GUT_WALL: 300, Tissue.GUT_FLUID: 560, Tissue.GAS: 6, Tissue.STOOL: 340,
    Tissue.PANCREAS: 330, Tissue.URINE: 990, Tissue.TABLE: 0,
}  # fmt: skip

T1 = {
    Tissue.OUTSIDE: 0, Tissue.LIVER: 520, Tissue.SPLEEN: 330, Tissue.RIGHT_CORTEX: 420, Tissue.LEFT_CORTEX: 420,
    Tissue.AORTA: 130, Tissue.LESION: 290, Tissue.LIVER_VESSEL: 240, Tissue.RIGHT_MEDULLA: 290,
    Tissue.LEFT_MEDULLA: 290, Tissue.SKIN: 300, Tissue.FAT: 880, Tissue.MUSCLE: 330, Tissue.COMPACT_BONE: 40,
    Tissue.SPONGY_BONE: 520, Tissue.CARTILAGE: 280, Tissue.CEREBROSPINAL_FLUID: 110, Tissue.CORD: 370,
    Tissue.LUNG: 20, Tissue.LUNG_VESSEL: 90, Tissue.HEART: 300, Tissue.ARTERY: 140, Tissue.VEIN: 220,
    Tissue.BILE: 180, Tissue.GUT_WALL: 320, Tissue.GUT_FLUID: 190, Tissue.GAS: 8, Tissue.STOOL: 430,
    Tissue.PANCREAS: 540, Tissue.URINE: 120, Tissue.TABLE: 0,
}  # fmt: skip

ROUGH = frozenset({Tissue.STOOL, Tissue.SPONGY_BONE, Tissue.LUNG, Tissue.GUT_FLUID, Tissue.PANCREAS, Tissue.LESION})
"""Tissues with a coarser texture than the even ones."""


@dataclass(frozen=True)
class Scan:
    """How a tissue map was drawn, and how many of its voxels (slice, row, column) make one voxel of the image.

    Drawing finely and merging voxels gives borders the mixed values that thick slices show (partial volume).
    """

    spacing_mm: tuple[float, float, float]
    merge: Triple = (1, 1, 1)


def render_ct(tissue: np.ndarray, *, seed: int, scan: Scan) -> np.ndarray:
    """Tissue map (slices, rows, columns) -> int16 Hounsfield units, merged by ``scan.merge``."""
    rng = np.random.default_rng([seed, 1])
    means = _means(rng, PORTAL_VENOUS_HU, spread=9.0)
    fine = _textured(rng, tissue, means, scan.spacing_mm, even=5.0, rough=0.0)
    fine += _roughness(rng, tissue, scan.spacing_mm) * np.float32(22)
    image = _merged(fine, scan.merge)
    image = ndimage.gaussian_filter(image, (0.25, 0.55, 0.55))
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape), (0.2, 0.7, 0.7)) * rng.uniform(24, 34)
    noise *= np.where(image < -700, 0.45, 1.0)
    return np.clip(np.rint(image + noise), -1024, 3071).astype(np.int16)


def render_mr(tissue: np.ndarray, *, seed: int, scan: Scan, contrast: str = "T2") -> np.ndarray:
    """Tissue map (slices, rows, columns) -> int16 in arbitrary units; ``contrast`` "T2" (fat suppressed) or "T1"."""
    tables = {"T2": T2_FAT_SUPPRESSED, "T1": T1}
    if contrast not in tables:
        raise ValueError(f"contrast is one of {', '.join(tables)}, got {contrast!r}")
    rng = np.random.default_rng([seed, 2])
    means = _means(rng, tables[contrast], spread=0.0) * rng.uniform(0.9, 1.1, len(Tissue)).astype(np.float32)
    fine = _textured(rng, tissue, means, scan.spacing_mm, even=0.0, rough=0.045)
    fine *= 1 + _roughness(rng, tissue, scan.spacing_mm) * np.float32(0.16)
    image = ndimage.gaussian_filter(_merged(fine, scan.merge), (0.25, 0.6, 0.6)).astype(np.float64)
    spacing: Spacing = tuple(mm * n for mm, n in zip(scan.spacing_mm, scan.merge, strict=True))  # type: ignore[assignment]
    image *= np.exp(0.20 * smooth_field(rng, image.shape, spacing, 170).astype(np.float64))  # the coils' sensitivity
    level = rng.uniform(13, 20)
    real = image + level * rng.standard_normal(image.shape)
    imaginary = level * rng.standard_normal(image.shape)
    return np.clip(np.rint(rng.uniform(0.8, 1.6) * np.sqrt(real**2 + imaginary**2)), 0, 4095).astype(np.int16)


def _means(rng: np.random.Generator, table: dict[Tissue, int], *, spread: float) -> np.ndarray:
    """(tissues,) float32 mean intensities of this patient: the table, moved a little for soft tissue."""
    means = np.array([table[t] for t in Tissue], np.float32)
    moved = rng.uniform(-spread, spread, len(means)).astype(np.float32)
    moved[Tissue.LEFT_CORTEX], moved[Tissue.LEFT_MEDULLA] = moved[Tissue.RIGHT_CORTEX], moved[Tissue.RIGHT_MEDULLA]
    moved[Tissue.ARTERY] = moved[Tissue.AORTA]
    return np.where(np.abs(means) < 400, means + moved, means).astype(np.float32)


def _textured(
    rng: np.random.Generator,
    tissue: np.ndarray,
    means: np.ndarray,
    spacing_mm: tuple[float, float, float],
    *,
    even: float,
    rough: float,
) -> np.ndarray:
    """Mean intensities with a texture of small clumps: ``even`` in units, ``rough`` as a share of the mean."""
    shape: Triple = tissue.shape  # type: ignore[assignment]
    clumps = 0.7 * smooth_field(rng, shape, spacing_mm, 5) + 0.7 * smooth_field(rng, shape, spacing_mm, 12)
    image = means[tissue]
    return image + clumps * (np.float32(even) + np.float32(rough) * np.abs(image))


def _roughness(rng: np.random.Generator, tissue: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """A stronger texture where the tissue is one of :data:`ROUGH`, 0 elsewhere."""
    shape: Triple = tissue.shape  # type: ignore[assignment]
    return np.where(np.isin(tissue, list(ROUGH)), smooth_field(rng, shape, spacing_mm, 7), np.float32(0))


def _merged(image: np.ndarray, merge: Triple) -> np.ndarray:
    """Mean over blocks of ``merge`` voxels."""
    (a, n), (b, m), (c, k) = ((size // by, by) for size, by in zip(image.shape, merge, strict=True))
    return image.reshape(a, n, b, m, c, k).mean(axis=(1, 3, 5))
