"""What a task checkpoint keeps of the labelled slices of one label: means over many cells, and a few numbers.

No slice, mask or cell of a patient can be read off a summary: every vector in it is a mean over cells or slices. A
decoder is prompted with it as with one labelled slice of another patient, which answers less exactly than the labelled
slices themselves. Ours; prototypes as means of clusters are those of part-aware prototype networks (Liu et al., 2020).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ssmsam.fewshot.config import PROTOTYPE_CELLS, PROTOTYPES
from ssmsam.fewshot.support_bank import SupportBank, signed_distance
from ssmsam.models.closed_form import SolvedRegression
from ssmsam.models.support_encoding import CELLS, FAR_CELLS, FOREGROUND_CELLS, KINDS, PARTS, RING_CELLS, SupportEncoding
from ssmsam.models.support_encoding import TokenKind as Kind

_ITERATIONS = 5
_PRESENT, _ABSENT = 0, 1
_DESCRIPTORS = "looks"
"""How files call the descriptors."""


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """Of the labelled slices that show a target (row 0) and those that do not (row 1, which may be without anything).

    ``tokens`` (2, T, D) and ``kinds`` (2, T) as in SupportEncoding; ``cells`` (2, P, D), ``places`` (2, P, 2) as
    (x, y) in input pixels from the body's centre, ``shares`` (2, P) and ``valid`` (2, P) of P prototypes;
    ``descriptors`` (2, D) of unit length, zeros without any slice; ``weights`` (d + 1,) and ``fit`` () of the online
    optimiser, empty for decoders without one.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor
    shares: torch.Tensor
    valid: torch.Tensor
    descriptors: torch.Tensor
    weights: torch.Tensor
    fit: torch.Tensor
    area_mm2: float
    """Mean area of the target's cross-sections."""
    span_mm: float
    """Mean distance between the outermost slices that show it, over its volumes."""
    volumes: int
    """How many volumes have labelled slices."""
    one_piece: bool
    """Whether the target mostly shows in one piece."""
    absent: bool
    """Whether a person labelled slices without it."""

    @classmethod
    @torch.no_grad()
    def of(cls, bank: SupportBank) -> TargetSummary:
        """Summarise the labelled slices of a bank; of a target that is smaller than a cell little is said."""
        labelled, shows = ~bank.pseudo_labelled, bank.shows
        both = [labelled & shows, labelled & ~shows]
        encodings = [_encoded(bank, np.flatnonzero(rows)) for rows in both]
        solution = bank.solution()
        empty = bank.descriptors.new_zeros(0)
        areas = np.maximum((bank.distances > 0).sum(axis=(1, 2)), 1) * bank.cell_mm**2
        volumes = sorted({bank.volumes[n] for n in np.flatnonzero(shows)})
        spans = [np.ptp(bank.positions[shows & (np.array(bank.volumes) == volume)]) for volume in volumes]
        return cls(
            **{name: torch.stack([one[name] for one in encodings]) for name in encodings[0]},
            descriptors=torch.stack([_mean_descriptor(bank.descriptors, rows) for rows in (shows, ~shows)]),
            weights=empty if solution is None else solution[0],
            fit=empty if solution is None else solution[1],
            area_mm2=float(areas[both[_PRESENT]].mean() if both[_PRESENT].any() else areas.min()),
            span_mm=float(np.mean(spans)) if spans else 0.0,
            volumes=max(1, len(volumes)),
            one_piece=bank.in_one_piece,
            absent=bool(both[_ABSENT].any()),
        )

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a file keeps as tensors."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return {_DESCRIPTORS if name == "descriptors" else name: value for name, value in tensors.items()}

    @property
    def facts(self) -> dict[str, Any]:
        """What it keeps as JSON."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, torch.Tensor)}

    @classmethod
    def from_parts(cls, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> TargetSummary:
        """What a file kept. Raises ValueError and TypeError for what no summary can hold."""
        fields: dict[str, Any] = {**tensors, **facts}
        found = cls(descriptors=fields.pop(_DESCRIPTORS, None), **fields)
        found._require_sound()
        return found

    def _require_sound(self) -> None:
        width, count = self.tokens.shape[-1], self.cells.shape[1] if self.cells.dim() == 3 else -1
        shapes = {
            "tokens": (2, len(KINDS), width), "kinds": (2, len(KINDS)), "cells": (2, count, width),
            "places": (2, count, 2), "shares": (2, count), "valid": (2, count), "descriptors": (2, width),
            "weights": (self.weights.numel(),), "fit": () if self.weights.numel() else (0,),
        }  # fmt: skip
        types = {"kinds": torch.int64, "valid": torch.bool}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if tuple(value.shape) != shape or value.dtype != types.get(name, torch.float32):
                raise ValueError(f"{name} is {value.dtype} of shape {tuple(value.shape)}, not of {shape}")
            if value.dtype == torch.float32 and not bool(value.isfinite().all()):
                raise ValueError(f"{name} holds what is no number")
        if not 0 < count <= CELLS or not bool(((self.kinds >= 0) & (self.kinds <= max(Kind))).all()):
            raise ValueError("prototypes or kinds of tokens are out of range")
        for name in ("area_mm2", "span_mm"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < 1e6:
                raise ValueError(f"{name} is {number!r}")
        if type(self.volumes) is not int or not 0 < self.volumes <= 10_000 or self.area_mm2 == 0:
            raise ValueError("there is no volume, or no target in it")
        if type(self.one_piece) is not bool or type(self.absent) is not bool:
            raise ValueError("one_piece and absent are true or false")

    def bank(self, side: int) -> SupportBank:
        """A bank of a few slices that stand for those of which this is the summary, on masks of a ``side``.

        The first is context for a decoder, and the second where slices without the target were labelled. The others
        only say how the slices look, how far the target extends, and in how many volumes it was seen."""
        rows = [_PRESENT] + [_ABSENT] * self.absent
        volumes, positions = ["0"] * len(rows), [0.0] * len(rows)
        labelled = len(rows)
        for number in range(min(self.volumes, _MOST_VOLUMES)):
            rows += [_PRESENT, _PRESENT]
            volumes += [str(number)] * 2
            positions += [0.0, self.span_mm]
        if not self.absent and bool(self.descriptors[_ABSENT].any()):
            rows, volumes, positions = [*rows, _ABSENT], [*volumes, "0"], [*positions, 0.0]
        mask, cell_mm = _stand_in(side, self.area_mm2, pieces=1 if self.one_piece else 2)
        distances = [signed_distance(mask), signed_distance(np.zeros_like(mask))]
        padded = _padded(SupportEncoding(self.tokens, self.kinds, self.cells, self.places, self.shares, self.valid))
        solved = SolvedRegression(self.weights, self.fit, labelled) if self.weights.numel() else None
        return SupportBank(
            encoding=padded[torch.tensor(rows)],
            volumes=tuple(f"summary {name}" for name in volumes),
            positions=np.array(positions),
            distances=np.stack([distances[row] for row in rows]),
            descriptors=self.descriptors[rows],
            centres=np.zeros((len(rows), 2)),
            cell_mm=np.full(len(rows), cell_mm),
            pseudo_labelled=np.arange(len(rows)) >= labelled,
            errors=np.zeros((len(rows), side, side), dtype=np.float32),
            held_out=np.zeros((len(rows), 3), dtype=np.float32),
            regression=solved,
        )


_MOST_VOLUMES = 100


def _encoded(bank: SupportBank, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Tokens and prototypes of some slices of a bank."""
    some = bank.encoding[torch.from_numpy(rows)]
    centres = torch.from_numpy(bank.centres[rows]).to(some.places)
    places = some.places - centres[:, None]
    groups, start = [], 0
    for quota, most in zip((FOREGROUND_CELLS, RING_CELLS, FAR_CELLS), PROTOTYPES, strict=True):
        part = slice(start, start + quota)
        valid = some.valid[:, part]
        groups.append(
            _prototypes(some.cells[:, part][valid], places[:, part][valid], some.shares[:, part][valid], most)
        )
        start += quota
    cells, places, shares, valid = (torch.cat([one[n] for one in groups]) for n in range(4))
    tokens, kinds = _tokens(some)
    return {"tokens": tokens, "kinds": kinds, "cells": cells, "places": places, "shares": shares, "valid": valid}


def _prototypes(
    cells: torch.Tensor, places: torch.Tensor, shares: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means of clusters of cells (n, D), padded to ``most``, and which of them there are."""
    member = (
        _clustered(cells, max(1, min(most, len(cells) // PROTOTYPE_CELLS))) if len(cells) else cells.new_zeros(0, 1)
    )
    counts = member.sum(0)
    kept = counts >= min(PROTOTYPE_CELLS, len(cells)) if len(cells) else counts > 0
    member, counts = member[:, kept], counts[kept]
    found = [member.T @ value / counts[:, None] for value in (cells, places, shares[:, None])]
    missing = most - len(counts)
    cells, places, shares = (torch.cat([one, one.new_zeros(missing, one.shape[1])]) for one in found)
    return cells, places, shares[:, 0], torch.arange(most) < len(counts)


def _clustered(cells: torch.Tensor, count: int) -> torch.Tensor:
    """Membership (n, count) of k-means over cells (n, D), from cells that are far apart; needs no random number."""
    seeds = [0]
    gone = (cells - cells[0]).square().sum(1)
    for _ in range(count - 1):
        seeds.append(int(gone.argmax()))
        gone = torch.minimum(gone, (cells - cells[seeds[-1]]).square().sum(1))
    centres = cells[seeds]
    for _ in range(_ITERATIONS):
        member = torch.nn.functional.one_hot(torch.cdist(cells, centres).argmin(1), count).to(cells)
        total = member.sum(0)[:, None]
        centres = torch.where(total > 0, member.T @ cells / total.clamp(min=1), centres)
    return member


def _tokens(some: SupportEncoding) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (T, D) and kinds (T,): means over slices, of the target's parts over all its cells."""
    tokens = some.tokens.new_zeros(len(KINDS), some.tokens.shape[2])
    kinds = torch.zeros(len(KINDS), dtype=torch.long)
    for n, kind in enumerate(KINDS):
        given = some.kinds[:, n] == kind
        if kind != Kind.PART and bool(given.any()):
            tokens[n], kinds[n] = some.tokens[given, n].mean(0), int(kind)
    inside = slice(0, FOREGROUND_CELLS)
    valid = some.valid[:, inside]
    cells = some.cells[:, inside][valid]
    means, _, _, there = _prototypes(cells, some.places[:, inside][valid], some.shares[:, inside][valid], PARTS)
    tokens[1 : 1 + PARTS] = means
    kinds[1 : 1 + PARTS] = torch.where(there, int(Kind.PART), int(Kind.NONE))
    return tokens, kinds


def _mean_descriptor(descriptors: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Of unit length; zeros without any slice."""
    return torch.nn.functional.normalize(descriptors[torch.from_numpy(rows)].sum(0), dim=0)


def _padded(one: SupportEncoding) -> SupportEncoding:
    """With as many cells as a slice's own encoding has."""
    missing = CELLS - one.cells.shape[1]
    wider = {
        name: torch.nn.functional.pad(getattr(one, name), (0, 0) * (getattr(one, name).dim() - 2) + (0, missing))
        for name in ("cells", "places", "shares", "valid")
    }
    return replace(one, **wider)


def _stand_in(side: int, area_mm2: float, *, pieces: int) -> tuple[np.ndarray, float]:
    """A mask (side, side) of discs that together are as large as the target usually is, and its cells' side in mm."""
    y, x = np.mgrid[:side, :side] + 0.5
    centres = [side / 2] if pieces == 1 else [side / 4, 3 * side / 4]
    mask = np.any([np.hypot(x - centre, y - side / 2) < side / 6 for centre in centres], axis=0)
    return mask, math.sqrt(area_mm2 / mask.sum())
