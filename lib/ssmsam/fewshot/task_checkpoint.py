"""The file of what was learned: a few MB without a voxel, a mask, or an id of a patient, study, series or image.

It holds what adaptation changed of the decoder, of every label a :class:`TargetSummary`, and a card. The labelled
slices themselves stay on the machine where they are: see :mod:`ssmsam.fewshot.adapted_task`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from ssmsam.fewshot.config import PROTOTYPE_CELLS, PROTOTYPES
from ssmsam.fewshot.support_bank import SupportBank, signed_distance
from ssmsam.files import write_bytes
from ssmsam.models.closed_form import SolvedRegression
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.registry import FEWSHOT
from ssmsam.models.support_encoding import CELLS, FAR_CELLS, FOREGROUND_CELLS, KINDS, PARTS, RING_CELLS, SupportEncoding
from ssmsam.models.support_encoding import TokenKind as Kind
from ssmsam.models.weights import tensors_of

_ITERATIONS = 5
_PRESENT, _ABSENT = 0, 1
_DESCRIPTORS = "looks"
"""How files call the descriptors."""


@dataclass(frozen=True, eq=False)
class TargetSummary:
    """What is kept of the labelled slices of one label: of those that show the target (row 0) and those that do not
    (row 1, which may be without anything).

    No slice, mask or cell of a patient can be read off it: every vector in it is a mean over cells or slices. A decoder
    is prompted with it as with one labelled slice of another patient, which answers less exactly than the labelled
    slices themselves. Ours; prototypes as means of clusters are those of part-aware prototype networks (Liu et al.,
    2020).

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


FORMAT = 6
LARGEST = 48 * 2**20
"""Bytes that a file may have: the decoder of a large SAM, adapted as a whole, has 16 MB in single precision."""
_TEXT, _NUMBER = (str,), (int, float)
PUBLIC: Mapping[str, tuple[type, ...]] = {
    "labels": (list,), "learned_from": (dict,), "numbers": (dict, type(None)), "plane": (str, type(None)),
    "encoder": _TEXT, "weights_sha256": _TEXT, "decoder_sha256": _TEXT, "method": _TEXT, "start": _TEXT,
    "created": _TEXT, "settings": (dict,), "adapted": (bool,), "trained": (bool,), "steps": (int,),
    "seconds": _NUMBER, "loss": (*_NUMBER, type(None)), "first_loss": (*_NUMBER, type(None)), "support_check": (dict,),
    "dice_estimate": (dict,), "shipped_estimate": (dict,),
}  # fmt: skip
"""What a card may say outside the machine where it was made, and of what type it is. Nothing else is ever written."""
_REQUIRED = ("labels", "encoder", "weights_sha256", "decoder_sha256", "created", "dice_estimate")
_ESTIMATES = ("dice_estimate", "shipped_estimate", "support_check")
_MOST_LABELS, _LONGEST_NAME, _LONGEST_CARD = 255, 200, 2**20


class UnusableCheckpoint(ValueError):
    """A file is no task checkpoint, or not one for these weights. The message says what to do."""


@dataclass(frozen=True, eq=False)
class TaskCheckpoint:
    """``card`` is plain JSON of :data:`PUBLIC`; ``delta`` are the decoder's tensors that differ from those that came
    with its weights, none where it was not adapted; ``targets`` are the summaries by label."""

    card: Mapping[str, Any]
    delta: Mapping[str, torch.Tensor]
    targets: Mapping[str, TargetSummary]

    def to_bytes(self) -> bytes:
        """One safetensors file with the card in its metadata. The same checkpoint always makes the same bytes."""
        tensors = {f"delta.{name}": tensor for name, tensor in self.delta.items()}
        for number, target in enumerate(self.targets.values()):
            tensors |= {f"target{number}.{name}": tensor for name, tensor in target.tensors.items()}
        facts = [target.facts for target in self.targets.values()]
        card = {**self.card, "labels": list(self.targets), "format": FORMAT, "targets": facts}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return save(kept, {"card": json.dumps(card, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> TaskCheckpoint:
        """Read a file, which may come from anywhere: nothing in it is executed, everything is checked.

        ``name`` is for messages. Raises :class:`UnusableCheckpoint`.
        """
        _require_small(len(data), name)
        card = _checked_card(_header_card(data, name), name)
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
            raise _damaged(name, error) from error
        try:
            parts = [tensors_of(tensors, f"target{number}") for number in range(len(card["labels"]))]
            targets = {
                label: TargetSummary.from_parts(part, facts)
                for label, part, facts in zip(card["labels"], parts, card["targets"], strict=True)
            }
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UnusableCheckpoint(f"{name} lacks parts of a task checkpoint: export it again. {error}") from error
        delta = tensors_of(tensors, "delta")
        if len(delta) + sum(map(len, parts)) != len(tensors):
            raise UnusableCheckpoint(f"{name} holds more than a task checkpoint: export it again")
        return cls({key: card[key] for key in PUBLIC if key in card}, delta, targets)

    @classmethod
    def load(cls, path: Path) -> TaskCheckpoint:
        """Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
        if is_old(path):  # which may be large
            read_card(path)
        _require_file(path)
        _require_small(path.stat().st_size, path.name)
        return cls.from_bytes(path.read_bytes(), path.name)

    def save(self, path: Path) -> Path:
        """Write the file, for its owner to read (mode 0600); readers see the old file or the new one."""
        write_bytes(path, self.to_bytes())
        return path

    def require_made_with(self, decoder: TargetDecoder, weights_sha256: str, name: str) -> None:
        """Raises :class:`UnusableCheckpoint` for another encoder's weights or another few-shot decoder than these."""
        card = self.card
        if card["weights_sha256"] != weights_sha256:
            raise UnusableCheckpoint(
                f"{name} was made with other weights ({card['encoder'][:40]}, sha256 {card['weights_sha256'][:12]}) "
                f"than those in use ({weights_sha256[:12]}): take that encoder (--encoder for a command, "
                "--conf encoder for a server), or adapt again"
            )
        if card["decoder_sha256"] != decoder_digest(decoder):
            raise UnusableCheckpoint(
                f"{name} was made with another version of the few-shot decoder "
                f"(sha256 {card['decoder_sha256'][:12]}) than the one in use: adapt again"
            )

    def adapted(self, decoder: TargetDecoder, name: str) -> TargetDecoder:
        """A copy of ``decoder``, which is as it came with its weights, with what adaptation changed.

        Raises :class:`UnusableCheckpoint`.
        """
        changed = copy.deepcopy(decoder)
        known = changed.state_dict()
        for tensor, value in self.delta.items():
            if tensor not in known or known[tensor].shape != value.shape or known[tensor].dtype != value.dtype:
                raise UnusableCheckpoint(
                    f"{name} changes {tensor[:80]!r}, which this decoder does not have: adapt again"
                )
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UnusableCheckpoint(f"{name} holds what is no number in {tensor}: adapt again")
        changed.load_state_dict({**known, **self.delta})
        return changed.eval().requires_grad_(False)


def delta_of(decoder: TargetDecoder, base: TargetDecoder) -> dict[str, torch.Tensor]:
    """The tensors of a decoder that are not those of ``base``, bit by bit."""
    before = base.state_dict()
    return {name: one for name, one in decoder.state_dict().items() if not torch.equal(one, before[name].to(one))}


def decoder_digest(decoder: TargetDecoder) -> str:
    """sha256 over all tensors of a decoder."""
    sha = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def public(card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card may leave the machine."""
    return {name: card[name] for name in PUBLIC if name in card}


def method_of(card: Mapping[str, Any]) -> str:
    """The method that a checkpoint was adapted with; older cards do not say it."""
    return str(card.get("method", FEWSHOT))


def read_card(path: Path) -> dict[str, Any]:
    """The card of a file, without its tensors. Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
    return public(_checked_card(_raw_card(path), path.name))


def _raw_card(path: Path) -> dict[str, Any]:
    _require_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return _parsed_card((file.metadata() or {}).get("card"), path.name)
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, UnusableCheckpoint):
            raise
        raise _damaged(path.name, error) from error


def is_old(path: Path) -> bool:
    """Whether a file is one of an earlier version, which holds copies of images."""
    try:
        return _is_old(_raw_card(path))
    except (UnusableCheckpoint, FileNotFoundError):
        return False


def _is_old(card: Mapping[str, Any]) -> bool:
    return type(card.get("format")) is int and card["format"] < FORMAT


def _checked_card(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same card if it is one of a task checkpoint. Raises :class:`UnusableCheckpoint`."""
    if _is_old(card):
        raise UnusableCheckpoint(
            f"{name} is from an earlier version and holds copies of patients' images, so it is not taken: adapt again"
        )
    if card.get("format") != FORMAT:
        found = str(card.get("format"))[:20]
        raise UnusableCheckpoint(f"{name} has format {found!r}, this version reads {FORMAT}: adapt again with this one")
    for key in _REQUIRED:
        if key not in card:
            raise UnusableCheckpoint(f"{name} lacks {key!r} in its card: export it again")
    for key, types in PUBLIC.items():
        if key in card and (not isinstance(card[key], types) or (isinstance(card[key], bool) and bool not in types)):
            raise UnusableCheckpoint(
                f"{name} has a card whose {key!r} is a {type(card[key]).__name__}: export it again"
            )
    _require_labels(card, name)
    _require_estimates(card, name)
    return dict(card)


def _require_labels(card: Mapping[str, Any], name: str) -> None:
    labels, facts = card["labels"], card.get("targets")
    sound = all(isinstance(one, str) and 0 < len(one) <= _LONGEST_NAME for one in labels)
    if not sound or len(set(labels)) != len(labels) or len(labels) > _MOST_LABELS:
        raise UnusableCheckpoint(f"{name} has labels that are no names: export it again")
    if not isinstance(facts, list) or len(facts) != len(labels) or not all(isinstance(one, dict) for one in facts):
        raise UnusableCheckpoint(f"{name} does not say what was seen of each label: export it again")
    adaptation = card.get("settings", {}).get("adaptation", {})
    if not isinstance(adaptation, dict) or not isinstance(adaptation.get("steps", 0), int):
        raise UnusableCheckpoint(f"{name} has a card whose 'settings' are none: export it again")
    for key in ("learned_from", "numbers"):
        if not all(type(one) is int and 0 <= one < 2**31 for one in (card.get(key) or {}).values()):
            raise UnusableCheckpoint(f"{name} has a card whose {key!r} does not count: export it again")


def _require_estimates(card: Mapping[str, Any], name: str) -> None:
    """Each is a number or None for each label."""
    for key in _ESTIMATES:
        for one in card.get(key, {}).values():
            if not isinstance(one, dict) or not all(
                value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in one.values()
            ):
                raise UnusableCheckpoint(f"{name} has a card whose {key!r} is no estimate: export it again")
    for one in card["dice_estimate"].values():
        if not all(isinstance(one.get(when), int | float) for when in ("before", "after")):
            raise UnusableCheckpoint(f"{name} has an estimate without a before and after: export it again")
    for one in card.get("support_check", {}).values():
        if not set(one) <= {"dice", "presence", "absence", "slices"}:
            raise UnusableCheckpoint(f"{name} has a card whose 'support_check' is none: export it again")


def _header_card(data: bytes, name: str) -> dict[str, Any]:
    """The card out of a file's header: length (8 bytes), JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("it is cut short")
        header = json.loads(data[8 : 8 + length])
        return _parsed_card(header["__metadata__"].get("card"), name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UnusableCheckpoint):
            raise
        raise _damaged(name, error) from error


def _parsed_card(text: object, name: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _damaged(name, "it has no card")
    if len(text) > _LONGEST_CARD:
        raise UnusableCheckpoint(f"{name} has a card of {len(text) >> 20} MB: this is no task checkpoint")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from error
    if not isinstance(card, dict):
        raise UnusableCheckpoint(f"{name} has no card: export it again")
    return card


def _damaged(name: str, why: object) -> UnusableCheckpoint:
    return UnusableCheckpoint(f"{name} is no task checkpoint, or is damaged: export it again. {str(why)[:200]}")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no task checkpoint {path.name}")


def _require_small(size: int, name: str) -> None:
    if size > LARGEST:
        raise UnusableCheckpoint(
            f"{name} has {size / 2**20:.0f} MB, a task checkpoint has at most {LARGEST >> 20}: is this an exported one?"
        )
