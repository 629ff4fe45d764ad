"""What labelled volumes let one expect of the target in another: how large it is, how long, and where along the body.

What merely looks like the target is often of another size or lies elsewhere. Ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ssmsam.fewshot.bank import Bank

_SCALES = (0.85, 0.92, 1.0, 1.08, 1.17)
"""How much longer or shorter another body may be."""
_SCALE_COST = 0.13
"""What likeness a scale must gain for each unit of its logarithm."""
_STEP_MM = 5.0
_LEAST_SLICES = 6
"""Volumes of which fewer slices are known are not laid beside another."""
_CUT_OFF = 0.3
"""Share of its largest cross-section from which a target on a volume's outermost slice goes on beyond it."""
_LEAST_OVERLAP = 0.5
"""Share of the known slices that must lie in the other volume, or of what of them can."""


@dataclass(frozen=True)
class ExpectationConfig:
    """How far from the expected a target may be: standard deviations, of logarithms but for ``along_mm``."""

    candidates: int = 5
    area: float = 0.8
    length: float = 0.85
    along_mm: float = 70.0


@dataclass(frozen=True, eq=False)
class Expectation:
    """``area_mm2`` of a cross-section (0: unknown), ``length_mm`` along the slices (0: unknown), and ``middles_mm``
    where its middle is expected in the query, by each labelled volume that could be laid beside it."""

    area_mm2: float
    length_mm: float
    middles_mm: tuple[float, ...] = ()
    config: ExpectationConfig = field(default_factory=ExpectationConfig)

    def plausibility(self, mask: np.ndarray, positions: np.ndarray, cell_mm: float) -> float:
        """Logarithm of how plausible an object (n, S, S) is that is not empty; 0 is entirely as expected.

        ``positions`` (n,) in mm, as :meth:`~ssmsam.encoders.volume_embeddings.VolumeEmbeddings.position_mm` counts.
        """
        areas = mask.sum(axis=(1, 2)) * cell_mm**2
        there = areas > 0
        where = positions[there]
        deviations = []
        if self.area_mm2:
            deviations.append(np.log(areas[there].mean() / self.area_mm2) / self.config.area)
        if self.length_mm and len(positions) > 1:
            length = there.sum() * abs(positions[1] - positions[0])
            deviations.append(np.log(length / self.length_mm) / self.config.length)
        loss = sum(one**2 for one in deviations)
        if self.middles_mm:
            loss += (
                float(np.mean([(where.mean() - middle) ** 2 for middle in self.middles_mm])) / self.config.along_mm**2
            )
        return -0.5 * float(loss)


def expected(bank: Bank, looks: np.ndarray | None, positions: np.ndarray, config: ExpectationConfig) -> Expectation:
    """What a bank lets one expect of a volume with ``looks`` (n, D) of all its slices at ``positions`` (n,); without
    looks nothing is known of where."""
    drawn = np.flatnonzero(bank.shows & ~bank.completed)
    areas = [(bank.distances[k] > 0).sum() * bank.cell_mm[k] ** 2 for k in drawn]
    lengths, middles = [], []
    for volume in dict.fromkeys(bank.volumes[k] for k in drawn):
        seen = bank.positions[[k for k in drawn if bank.volumes[k] == volume]]
        rows = [k for k in range(len(bank)) if bank.volumes[k] == volume]
        length = _length(bank, rows)
        lengths += [length] if length else []
        if looks is not None and len(rows) >= _LEAST_SLICES:
            beside = laid_beside(bank.positions[rows], bank.looks[rows].cpu().numpy(), positions, looks)
            if beside is not None:
                middles.append(beside[0] * (seen.min() + seen.max()) / 2 + beside[1])
    return Expectation(
        area_mm2=float(np.mean(areas)) if areas else 0.0,
        length_mm=float(np.exp(np.mean(np.log(lengths)))) if lengths and min(lengths) > 0 else 0.0,
        middles_mm=tuple(middles),
        config=config,
    )


def _length(bank: Bank, rows: list[int]) -> float:
    """How long (mm) the target is in the volume of these rows of a bank, some of which show it; 0 where it is unknown.

    It ends half-way to the next slice that does not show it. Where no slice is known beyond, it goes on by half of what
    its slices are apart, as slices in the middles of equal parts leave over; but a completed volume is known to its
    ends, and a target that is cut off by one is longer than what is seen of it.
    """
    order = sorted(rows, key=lambda k: bank.positions[k])
    shown = [n for n, k in enumerate(order) if bank.shows[k]]
    if len(order) < 2:
        return 0.0
    areas = [int((bank.distances[k] > 0).sum()) for k in order]
    cut_off = max(areas[0], areas[-1]) > _CUT_OFF * max(areas)
    if bank.completed[rows].any() and cut_off:
        return 0.0
    places = bank.positions[order]
    low, high = places[shown[0]], places[shown[-1]]
    gap = (high - low) / max(len(shown) - 1, 1)
    before = (low - places[shown[0] - 1]) / 2 if shown[0] else gap / 2
    after = (places[shown[-1] + 1] - high) / 2 if shown[-1] + 1 < len(places) else gap / 2
    return float(high - low + before + after)


def laid_beside(
    places: np.ndarray, looks: np.ndarray, other_places: np.ndarray, other_looks: np.ndarray
) -> tuple[float, float] | None:
    """Scale and offset (mm) that take ``places`` (k,) of slices along one body to those (n,) along another, by how
    alike the slices look, ``looks`` (k, D) and (n, D). None where the two share too little."""
    order = np.argsort(other_places)
    along = other_places[order]
    alike = _centred(looks) @ _centred(other_looks[order]).T
    reach = min(1.0, np.ptp(along) / max(np.ptp(places), 1.0))
    best: tuple[float, float, float] | None = None
    for scale in _SCALES:
        moved = scale * places
        for offset in np.arange(along[0] - moved.max(), along[-1] - moved.min(), _STEP_MM):
            inside = np.flatnonzero((moved + offset >= along[0]) & (moved + offset <= along[-1]))
            if len(inside) < max(_LEAST_SLICES - 2, _LEAST_OVERLAP * reach * len(places)):
                continue
            at = np.interp(moved[inside] + offset, along, np.arange(len(along))).round().astype(int)
            likeness = float(alike[inside, at].mean()) - _SCALE_COST * abs(np.log(scale))
            if best is None or likeness > best[0]:
                best = likeness, scale, float(offset)
    return None if best is None else best[1:]


def _centred(looks: np.ndarray) -> np.ndarray:
    """What is special about each slice of a volume, of unit length."""
    special = looks - looks.mean(axis=0)
    unit: np.ndarray = special / np.maximum(np.linalg.norm(special, axis=1, keepdims=True), 1e-6)
    return unit
