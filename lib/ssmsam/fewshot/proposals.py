"""What the decoder proposes on the slices of a volume, before anything of it is ruled out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.atlas import Guide
from ssmsam.fewshot.support_bank import SupportBank, SupportBankConfig, look, stacked
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import DecoderContext, TargetDecoder
from ssmsam.models.frame import Frame
from ssmsam.models.prompt_decoder import logits_to_pixels
from ssmsam.progress import Progress, silent

NOWHERE = -30.0
"""Logits of cells of which nothing was proposed, or that were ruled out."""
NOT_THERE = 0.03
"""Presence below which the decoder sees nothing of a target: a guess, which saves time and decides nothing else."""
BATCH = 6
"""Slices that are answered at once: a guess, which decides about time alone."""
DEFAULT_BANK = SupportBankConfig()


@dataclass(frozen=True, eq=False)
class Close:
    """Slices in an enlarged window: its ``frame`` and ``logits`` (n, S, S) there; ``drawn`` (n,) bool are the slices
    whose masks are taken from there."""

    frame: Frame
    logits: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True, eq=False)
class Proposals:
    """Of one label on n slices of a volume: ``logits`` (n, S, S) float32 in the encoder's frame and ``presence`` (n,)
    probabilities; ``slices`` (n,) their numbers, ascending; ``looks`` (n, D) as in a bank. ``close`` is what a closer
    look at some of them showed, which the logits follow as well as their cells can. ``guide`` is what volumes that were
    registered with this one say. ``asked`` are slices just past annotated ends of which it should be asked whether the
    target is still there: something was proposed on them, and left out."""

    slices: np.ndarray
    logits: np.ndarray
    presence: np.ndarray
    looks: np.ndarray
    close: Close | None = None
    guide: Guide | None = None
    asked: tuple[int, ...] = ()

    def pixels(self, row: int, frame: Frame) -> np.ndarray:
        """The logits of one slice (height, width)."""
        pixels: np.ndarray = logits_to_pixels(torch.from_numpy(self.logits[row : row + 1]), frame)[0]
        if self.close is not None and self.close.drawn[row]:
            inside = self.close.frame.shown.pixels
            pixels[inside] = logits_to_pixels(torch.from_numpy(self.close.logits[row : row + 1]), self.close.frame)[0][
                inside
            ]
        return pixels


@torch.inference_mode()
def propose(
    decoder: TargetDecoder,
    banks: Mapping[str, SupportBank],
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    batch: int = BATCH,
    bank: SupportBankConfig = DEFAULT_BANK,
    beyond: TargetDecoder | None = None,
    guides: Mapping[str, Guide] | None = None,
    up_to_ends: bool = False,
    progress: Progress = silent,
) -> dict[str, Proposals]:
    """Proposals for all labels on some slices of a volume. Raising :class:`~ssmsam.progress.Cancelled` in
    ``progress("segment", done, total)`` stops between two batches.

    ``beyond`` answers past the outermost annotated slices in ``decoder``'s stead. ``guides`` (label -> guide) are what
    registered volumes say of the same slices in ascending order. ``up_to_ends``: nothing is proposed past a slice,
    outwards from the annotated ones, where the decoder sees nothing of the target.
    """
    guides = guides or {}
    order = sorted(slices)
    found = {label: _nothing(len(order), decoder.logits_side) for label in banks}
    open_ = {label: _Extent.of(one, query, known=up_to_ends) for label, one in banks.items()}
    looks: list[np.ndarray] = [np.empty(0)] * len(order)
    done = 0
    for rows in _outwards(order, [one for one in open_.values() if one.known], batch):
        progress("segment", done, len(order))
        embedding = decoder.view(stacked([query.slice(order[row]) for row in rows]))
        seen = look(embedding["image"])
        for row, one in zip(rows, seen.cpu().numpy(), strict=True):
            looks[row] = one
        for label, labelled in banks.items():
            inside = [n for n, row in enumerate(rows) if open_[label].may_hold(order[row])]
            if not inside:
                continue
            wanted, index = [order[rows[n]] for n in inside], torch.tensor(inside, device=seen.device)
            part = embedding if len(inside) == len(rows) else take(embedding, index)
            atlas = guides[label].maps([rows[n] for n in inside]).to(seen.device) if label in guides else None
            shown = labelled.shown_to(query, wanted, seen[index], config=bank, atlas=atlas)
            past = _past_the_annotated(labelled, query, wanted) if beyond else np.zeros(len(wanted), dtype=bool)
            said = _proposed(part, shown, [(decoder, ~past), (beyond, past)])
            for whole, some in zip(found[label], said, strict=True):
                whole[[rows[n] for n in inside]] = some
            open_[label].hear(wanted, *said)
        done += len(rows)
    progress("segment", len(order), len(order))
    where, stack = np.array(order), np.stack(looks)
    return {label: Proposals(where, *answer, stack, guide=guides.get(label)) for label, answer in found.items()}


def _nothing(count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, S, S) and presence (n,) of a target that is nowhere."""
    return np.full((count, side, side), NOWHERE, dtype=np.float32), np.zeros(count, dtype=np.float32)


@dataclass
class _Extent:
    """Between which slices a target may be in a volume, as far as is known: ``known`` are the outermost annotated
    slices that show it, if any, and ``low`` and ``high`` the nearest slices past these that end it."""

    known: tuple[int, ...] = ()
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(cls, bank: SupportBank, query: VolumeEmbeddings, *, known: bool) -> _Extent:
        """If it is not to be ``known``, and where no slice of the volume shows the target, it may be anywhere."""
        if not known:
            return cls()
        shows = bank.shows
        on = [query.index_at(bank.positions[n]) for n in bank.annotated(query.key.digest) if shows[n]]
        return cls((min(on), max(on)) if on else ())

    def may_hold(self, index: int) -> bool:
        return self.low <= index <= self.high

    def hear(self, slices: Sequence[int], logits: np.ndarray, presence: np.ndarray) -> None:
        """Learn from what was proposed on some slices."""
        if not self.known:
            return
        there = (logits > 0).any(axis=(1, 2)) & (presence >= NOT_THERE)
        for index in (one for one, shown in zip(slices, there, strict=True) if not shown):
            if index < self.known[0]:
                self.low = max(self.low, index)
            elif index > self.known[1]:
                self.high = min(self.high, index)


def _outwards(order: Sequence[int], extents: Sequence[_Extent], batch: int) -> list[list[int]]:
    """All rows of ascending slices in batches: those between the annotated ends first, then up, then down."""
    low = min((one.known[0] for one in extents), default=-1)
    high = max((one.known[1] for one in extents), default=np.inf)
    below = [row for row, index in enumerate(order) if index < low][::-1]
    between = [row for row, index in enumerate(order) if low <= index <= high]
    above = [row for row, index in enumerate(order) if index > high]
    parts = [part[start : start + batch] for part in (between, above, below) for start in range(0, len(part), batch)]
    return [sorted(part) for part in parts]


def _past_the_annotated(bank: SupportBank, query: VolumeEmbeddings, slices: Sequence[int]) -> np.ndarray:
    """(n,) bool: slices outside those between which the volume is annotated; none in a volume without any."""
    annotated = [query.index_at(bank.positions[number]) for number in bank.annotated(query.key.digest)]
    if not annotated:
        return np.zeros(len(slices), dtype=bool)
    return (np.array(slices) < min(annotated)) | (np.array(slices) > max(annotated))


def _proposed(
    embedding: Embedding, shown: DecoderContext, decoders: Sequence[tuple[TargetDecoder | None, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, S, S) and presence (n,), of each decoder on its rows (n,) bool."""
    logits = np.empty(shown.prior.shape[:1] + shown.prior.shape[-2:], dtype=np.float32)
    presence = np.empty(len(logits), dtype=np.float32)
    for decoder, rows in decoders:
        if decoder is not None and rows.any():
            part, told = embedding, shown
            if not rows.all():
                index = torch.from_numpy(np.flatnonzero(rows)).to(shown.prior.device)
                part = take(embedding, index)
                told = DecoderContext(**{name: value[index] for name, value in vars(shown).items()})
            proposal = decoder(part, told)
            logits[rows] = proposal.logits.cpu().numpy()
            presence[rows] = proposal.presence.sigmoid().cpu().numpy()
    return logits, presence


def confidence(logits: np.ndarray, presence: np.ndarray) -> np.ndarray:
    """What speaks for the target on each slice (n,): it is there, and its mask is sure of itself. 0 without a mask."""
    sure: np.ndarray = presence * (1 - expected_loss(logits)) * (logits > 0).any(axis=(1, 2))
    return sure


def shares(logits: np.ndarray) -> np.ndarray:
    """Logits -> the probability of each cell, where the target is on the slice at all."""
    probability: np.ndarray = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return probability


def expected_loss(logits: np.ndarray) -> np.ndarray:
    """1 - the Dice that a mask expects of itself when every cell is right with its own probability: (n, S, S) -> (n,).

    0 for a slice that is surely empty.
    """
    probability = shares(logits)
    chosen = probability > 0.5
    overlap = 2 * (probability * chosen).sum(axis=(1, 2)) + 1e-6
    return 1 - overlap / (probability.sum(axis=(1, 2)) + chosen.sum(axis=(1, 2)) + 1e-6)
