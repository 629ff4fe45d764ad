"""What the decoder proposes on the slices of a volume, before anything of it is ruled out."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby

import numpy as np
import torch

from ssmsam.embeddings.embedder import VolumeEmbeddings, slice_descriptors
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import Guide
from ssmsam.fewshot.config import FOLLOWED, NOT_THERE, NOWHERE, RoiConfig, SegmentationConfig
from ssmsam.fewshot.support import LabelledSlice, Support
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import Corrections, DecoderContext, TargetDecoder
from ssmsam.models.frame import OUTSIDE, Frame, Window, logits_to_pixels, on_cells
from ssmsam.models.prompt_decoder import SlicePrompt
from ssmsam.models.prompt_small import point_tensors
from ssmsam.ops import evenly_spaced, touching
from ssmsam.progress import Progress, silent

Clicks = Mapping[int, SlicePrompt]
"""Slice -> what was clicked on it."""


@dataclass(frozen=True, eq=False)
class Roi:
    """Slices in an enlarged window: its ``frame`` and ``logits`` (n, S, S) there; ``drawn`` (n,) bool are the slices
    whose masks are taken from there."""

    frame: Frame
    logits: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True, eq=False)
class Proposals:
    """Of one label on n slices of a volume: ``logits`` (n, S, S) float32 in the encoder's frame and ``presence`` (n,)
    probabilities; ``slices`` (n,) their numbers, ascending; ``descriptors`` (n, D) as in a bank. ``roi`` holds what was
    drawn anew in an enlarged window, which the logits follow as well as their cells can. ``guide`` is what volumes that
    were registered with this one say. ``open_ends`` are slices just past annotated ends where something was proposed
    and left out: whether the target is still there is for a person to say."""

    slices: np.ndarray
    logits: np.ndarray
    presence: np.ndarray
    descriptors: np.ndarray
    roi: Roi | None = None
    guide: Guide | None = None
    open_ends: tuple[int, ...] = ()

    def pixels(self, row: int, frame: Frame) -> np.ndarray:
        """The logits of one slice (height, width)."""
        pixels: np.ndarray = logits_to_pixels(torch.from_numpy(self.logits[row : row + 1]), frame)[0]
        if self.roi is not None and self.roi.drawn[row]:
            inside = self.roi.frame.shown.pixels
            enlarged = logits_to_pixels(torch.from_numpy(self.roi.logits[row : row + 1]), self.roi.frame)[0]
            pixels[inside] = enlarged[inside]
        return pixels


@dataclass(frozen=True, eq=False)
class Target:
    """One label of a task in one volume, and by which settings it is looked for."""

    task: AdaptedTask
    label: str
    query: VolumeEmbeddings
    config: SegmentationConfig

    @property
    def bank(self) -> SupportBank:
        """The labelled slices of the label."""
        return self.task.banks[self.label]

    @property
    def annotated(self) -> dict[int, int]:
        """Slices of the volume that a person labelled -> their numbers in the bank."""
        return self.bank.annotated_slices(self.query)

    @property
    def shown_on(self) -> list[int]:
        """Those of them that show it."""
        shows = self.bank.shows
        return [index for index, number in self.annotated.items() if shows[number]]


@torch.inference_mode()
def propose(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    config: SegmentationConfig,
    guides: Mapping[str, Guide] | None = None,
    up_to_extent: bool = False,
    to_known_ends: bool = True,
    follow: bool = False,
    progress: Progress = silent,
) -> dict[str, Proposals]:
    """Proposals for all labels of a task on some slices of a volume.

    Args:
        task: Its initial decoder, where it has one, answers past the outermost annotated slices.
        query: The volume.
        slices: Numbers of slices, which should be embedded.
        config: How many slices at once, and how many labelled ones for each.
        guides: What registered volumes say of the same slices in ascending order, by label.
        up_to_extent: Nothing is proposed past a slice, outwards from the annotated ones, where the decoder sees nothing
            of the target; that saves time.
        to_known_ends: Nor past the nearest slice on which somebody saw that it is not.
        follow: Follow targets outwards from their annotated slices: what was proposed last supports what lies farther
            out, :data:`~ssmsam.fewshot.config.FOLLOWED` slices at a time, as in propagation through a video.
        progress: Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two
            batches.
    """
    order = sorted(slices)
    targets = {
        label: _Proposing.of(
            Target(task, label, query, config), order, (guides or {}).get(label), up_to_extent, to_known_ends, follow
        )
        for label in task.labels
    }
    descriptors: list[np.ndarray] = [np.empty(0)] * len(order)
    firsts = [one.extent[0] for one in targets.values() if one.extent]
    followed = [one.extent for one in targets.values() if one.extent and one.follow]
    sweeps, lowest = _sweeps(order, firsts, followed, config.batch), min(firsts, default=-1)
    done, total = 0, sum(len(rows) for rows, _ in sweeps)
    for rows, upwards in sweeps:
        progress("segment", done, total)
        embedding = task.decoder.view(query.batch([order[row] for row in rows]))
        described = slice_descriptors(embedding["image"])
        for row, one in zip(rows, described.cpu().numpy(), strict=True):
            descriptors[row] = one
        for target in targets.values():
            target.propose(rows, embedding, described, upwards=upwards, lowest=lowest)
        done += len(rows)
    progress("segment", total, total)
    where, stack = np.array(order), np.stack(descriptors)
    return {label: Proposals(where, one.logits, one.presence, stack, guide=one.guide) for label, one in targets.items()}


@dataclass(eq=False)
class _Proposing:
    """What is proposed of one target, batch by batch: ``logits`` (n, S, S) and ``presence`` (n,) of all slices of the
    ``order``. ``extent`` are the outermost annotated slices that show it, if any do, and ``low`` and ``high`` the
    nearest slices past those that end it. On the way up and on the way down, if it is followed: ``steps`` outwards,
    the ``farthest`` rows on which it was seen, and the ``banks`` that support what lies farther out."""

    target: Target
    order: Sequence[int]
    guide: Guide | None
    logits: np.ndarray
    presence: np.ndarray
    annotated: Sequence[int]
    up_to_extent: bool
    follow: bool
    banks: dict[bool, SupportBank]
    steps: dict[bool, int] = field(default_factory=dict)
    farthest: dict[bool, int] = field(default_factory=dict)
    extent: tuple[int, int] | None = None
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def of(
        cls,
        target: Target,
        order: Sequence[int],
        guide: Guide | None,
        up_to_extent: bool,
        to_known_ends: bool,
        follow: bool,
    ) -> _Proposing:
        """Of which nothing is proposed yet. Where no slice of the volume shows it, it may be anywhere."""
        side, shows, annotated = target.task.decoder.logits_side, target.bank.shows, target.annotated
        logits = np.full((len(order), side, side), NOWHERE, dtype=np.float32)
        presence = np.zeros(len(order), dtype=np.float32)
        banks = {True: target.bank, False: target.bank}
        found = cls(target, order, guide, logits, presence, list(annotated), up_to_extent, follow, banks)
        on = target.shown_on
        if on and to_known_ends:
            # a slice that is known in parts says nothing of the target's absence
            distances = target.bank.distances
            off = [i for i, number in annotated.items() if not shows[number] and (distances[number] != 0).all()]
            found.low = max((index for index in off if index < min(on)), default=-np.inf)
            found.high = min((index for index in off if index > max(on)), default=np.inf)
        found.extent = (min(on), max(on)) if on else None
        return found

    def propose(
        self, batch: Sequence[int], embedding: Embedding, descriptors: torch.Tensor, *, upwards: bool, lowest: int
    ) -> None:
        """Ask the decoders about those slices of a batch of rows on which the target may be: on the way up those from
        its first annotated slice on, or from the ``lowest`` of any target where it has none, on the way down others."""
        task, config = self.target.task, self.target.config.bank
        first = self.extent[0] if self.extent else lowest
        indices = [self.order[row] for row in batch]
        kept = [n for n, i in enumerate(indices) if (i >= first) == upwards and self.low <= i <= self.high]
        if not kept:
            return
        rows, device = [batch[n] for n in kept], descriptors.device
        slices, index = [self.order[row] for row in rows], torch.tensor(kept, device=device)
        bank = self._followed_to(rows, upwards=upwards)
        atlas = self.guide.maps(rows).to(device) if self.guide else None
        context = bank.context_of(self.target.query, slices, descriptors[index], config=config, atlas=atlas)
        part = embedding if len(kept) == len(batch) else take(embedding, index)
        past = np.zeros(len(slices), dtype=bool)
        if task.initial and self.annotated:
            past = (np.array(slices) < min(self.annotated)) | (np.array(slices) > max(self.annotated))
        for decoder, some in ((task.decoder, ~past), (task.initial, past)):
            if decoder is not None and some.any():
                answered = _answered(decoder, part, context, some)
                self.logits[np.array(rows)[some]], self.presence[np.array(rows)[some]] = answered
        if self.extent is not None:
            self._look_outwards(rows, self.extent, upwards=upwards)

    def _followed_to(self, rows: Sequence[int], *, upwards: bool) -> SupportBank:
        """What supports some slices of one step: with the farthest of the steps before on which the target was seen."""
        if self.follow and self.extent:
            (step,) = {_step(self.order, self.extent, row, upwards=upwards) for row in rows}
            if step > self.steps.get(upwards, 0) and upwards in self.farthest:
                row, query = self.farthest[upwards], self.target.query
                mask = logits_to_pixels(torch.from_numpy(self.logits[row : row + 1]), query.frame)[0] > 0
                seen = SupportBank.of([LabelledSlice(query, self.order[row], mask)], self.target.task.decoder)
                self.banks[upwards] = self.target.bank.joined(seen)
            self.steps[upwards] = step
        return self.banks[upwards]

    def _look_outwards(self, rows: Sequence[int], extent: tuple[int, int], *, upwards: bool) -> None:
        """Learn from what was proposed on some slices where the target ends, and how far it was seen."""
        past = [row for row in rows if (self.order[row] > extent[1] if upwards else self.order[row] < extent[0])]
        seen = [row for row in past if self.presence[row] >= NOT_THERE and (self.logits[row] > 0).any()]
        if seen:
            self.farthest[upwards] = seen[-1] if upwards else seen[0]
        for index in (self.order[row] for row in past if self.up_to_extent and row not in seen):
            self.low, self.high = (self.low, min(self.high, index)) if upwards else (max(self.low, index), self.high)


def _sweeps(
    order: Sequence[int], firsts: Sequence[int], followed: Sequence[tuple[int, int]], batch: int
) -> list[tuple[list[int], bool]]:
    """All rows of ascending slices in batches, each with whether it is on the way up: from the lowest of the first
    annotated slices of targets up, and from the highest of these down. No batch reaches past a step outwards of a
    target that is ``followed`` from its extent, so that what was found before is known in each."""
    starts = firsts or [-1]
    up = [row for row, index in enumerate(order) if index >= min(starts)]
    down = [row for row, index in enumerate(order) if index < max(starts)][::-1]

    def steps(row: int, *, upwards: bool) -> list[int]:
        return [_step(order, extent, row, upwards=upwards) for extent in followed]

    parts = [
        (list(part), upwards)
        for rows, upwards in ((up, True), (down, False))
        for _, part in groupby(rows, partial(steps, upwards=upwards))
    ]
    return [(sorted(part[at : at + batch]), way) for part, way in parts for at in range(0, len(part), batch)]


def _step(order: Sequence[int], extent: tuple[int, int], row: int, *, upwards: bool) -> int:
    """Which step outwards from an extent a row of ascending slices is in; 0 where it is not past it."""
    away = row + 1 - bisect_right(order, extent[1]) if upwards else bisect_left(order, extent[0]) - row
    return -(-max(away, 0) // FOLLOWED)


def _answered(
    decoder: TargetDecoder, embedding: Embedding, context: DecoderContext, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A decoder's logits (m, S, S) and presence (m,) on the m rows (n,) bool of a batch that are its own."""
    if not rows.all():
        index = torch.from_numpy(np.flatnonzero(rows)).to(context.prior.device)
        embedding = take(embedding, index)
        context = context[index]
    proposal = decoder(embedding, context)
    return proposal.logits.cpu().numpy(), proposal.presence.sigmoid().cpu().numpy()


@torch.inference_mode()
def corrected(proposals: Proposals, clicks: Clicks, target: Target) -> Proposals:
    """The same with the clicked slices proposed again. The target is there wherever something was clicked positively,
    and a slice that was only clicked negatively keeps its presence. Slices that are not among the proposals are left
    out."""
    task, query = target.task, target.query
    logits, presence = proposals.logits.copy(), proposals.presence.copy()
    row_of = {number: row for row, number in enumerate(proposals.slices.tolist())}
    for clicked, prompt in clicks.items():
        if clicked not in row_of:
            continue
        row, embedding = row_of[clicked], task.decoder.view(query.slice(clicked))
        device, described = embedding["image"].device, slice_descriptors(embedding["image"])
        context = target.bank.context_of(query, [clicked], described, config=target.config.bank)
        points, kinds = point_tensors(prompt, query.frame)
        previous = torch.from_numpy(logits[row])[None, None].to(device)
        corrections = Corrections(points[None].to(device), kinds[None].to(device), previous)
        logits[row] = task.decoder(embedding, context, corrections).logits[0].cpu().numpy()
        if not prompt.empty:
            presence[row] = 1.0
    return replace(proposals, logits=logits, presence=presence)


def roi_banks(
    banks: Mapping[str, SupportBank], support: Support, decoder: TargetDecoder, config: RoiConfig
) -> dict[str, SupportBank]:
    """Label -> its labelled slices in windows, for the labels that are worth refinement. Embeds them."""
    found = {}
    for label, bank in banks.items():
        slices = _enlarged(support[label], bank, config)
        if slices:
            found[label] = SupportBank.of(slices, decoder)
    return found


def _enlarged(slices: Sequence[LabelledSlice], bank: SupportBank, config: RoiConfig) -> list[LabelledSlice]:
    found: list[LabelledSlice] = []
    for volume in dict.fromkeys(one.volume for one in slices):
        several = [one for one in slices if one.volume == volume]
        window = window_in(bank, several[0].embeddings, config)
        if window is not None:
            part = several[0].embeddings.within(window)
            spread = evenly_spaced(len(several), config.slices)
            part.embed([several[n].index for n in spread])
            found += [replace(several[n], embeddings=part) for n in spread]
    return found


def refined_in_roi(final: Proposals, target: Target, clicks: Clicks, *, progress: Progress = silent) -> Proposals:
    """The same, with the masks of a small target drawn anew in an enlarged window; embeds it.

    Slices that were found to be empty stay so, annotated ones as they are, and so do those with clicks outside the
    window. Of what is drawn anew only the parts stay that touch the mask as it was. Only this volume's labelled slices
    are its support.
    """
    task, label, query, config = target.task, target.label, target.query, target.config
    window = window_in(target.bank, query, config.roi) if config.roi and label in task.roi_banks else None
    if window is None:
        return final
    left_alone = {*target.annotated, *(i for i, one in clicks.items() if not window.holds(one.points))}
    drawn = np.flatnonzero((final.logits > 0).any(axis=(1, 2)))
    rows = [int(row) for row in drawn if int(final.slices[row]) not in left_alone]
    if not rows:
        return final
    enlarged, slices = query.within(window), [int(final.slices[row]) for row in rows]
    enlarged.embed(slices, progress=progress)
    own = replace(config, bank=replace(config.bank, others=0))
    near = Target(replace(task, banks={label: task.roi_banks[label]}), label, enlarged, own)
    proposals = propose(near.task, enlarged, slices, config=own, progress=progress)[label]
    proposals = corrected(proposals, clicks, near)
    return redrawn_in(final, rows, proposals.logits, query.frame, enlarged.frame)


def redrawn_in(final: Proposals, rows: Sequence[int], seen: np.ndarray, whole: Frame, part: Frame) -> Proposals:
    """``seen`` (rows, S, S) in the window in place of what was drawn on these rows."""
    side = final.logits.shape[-1]
    before = np.stack([final.pixels(row, whole) > 0 for row in rows])
    logits, anchors = np.full_like(final.logits, OUTSIDE), np.zeros(final.logits.shape, dtype=bool)
    logits[rows] = seen
    anchors[rows] = on_cells(before, part, side) > 0.5
    strayed = (logits > 0) & ~touching(logits > 0, anchors)
    logits[strayed] = OUTSIDE
    roi = Roi(part, logits, (logits > 0).any(axis=(1, 2)))
    redrawn, cells = replace(final, roi=roi), final.logits.copy()
    for row in np.flatnonzero(roi.drawn):
        cells[row] = on_cells(redrawn.pixels(row, whole)[None], whole, side)[0]
    return replace(redrawn, logits=cells)


def side_mm(masks: Mapping[str, tuple[np.ndarray, float]], config: RoiConfig) -> float | None:
    """The side of a label's windows in millimetres, from its masks by volume and their cells' sides; None for targets
    that fill the slice, or no cell."""
    extents, fields = [], []
    for drawn, cell_mm in masks.values():
        box = _box(drawn)
        if box is not None:
            extents.append(max(box[2] - box[0], box[3] - box[1]) * cell_mm)
            fields.append(drawn.shape[-1] * cell_mm)
    if not extents:  # smaller than a cell on every slice
        return None
    smallest = max(fields) / config.most
    steps = math.ceil(math.log(max(1.0, config.margin * max(extents) / smallest), config.step))
    side = smallest * config.step**steps
    return side if side * config.least < min(fields) else None


def window_in(bank: SupportBank, volume: VolumeEmbeddings, config: RoiConfig) -> Window | None:
    """Where to enlarge a volume, whole slices of which are in the bank: around what is annotated there. None where
    nothing is, too little, or where enlarging shows no more."""
    every = bank.annotated_masks()
    if volume.key.digest not in every:
        return None
    side, masks = side_mm(every, config), every[volume.key.digest][0]
    box = _box(masks)
    if side is None or box is None or masks.any(axis=(1, 2)).sum() < config.labelled:
        return None
    frame = volume.frame
    cell = frame.size / masks.shape[-1]
    centre = np.array([(box[1] + box[3]) / 2, (box[0] + box[2]) / 2]) * cell - 0.5
    x, y = frame.points_to_slice(centre)[0]
    height, width = (max(1, round(side / mm)) for mm in frame.pixel_mm)
    # the same part of the body however the volume is stored
    rows, first_row = _span(y, height, frame.height, config, turned=frame.mirrored[0])
    columns, first_column = _span(x, width, frame.width, config, turned=frame.mirrored[1])
    return Window(first_row, first_column, rows, columns)


def _span(centre: float, wanted: int, available: int, config: RoiConfig, *, turned: bool) -> tuple[int, int]:
    """How many pixels, and the first of them; ``turned`` counts the steps from the other end."""
    length = min(wanted, available)
    step = max(1, length // config.raster)
    middle = available - 1 - centre if turned else centre
    first = int(np.clip(round((middle + 0.5 - length / 2) / step) * step, 0, available - length))
    return length, available - length - first if turned else first


def _box(masks: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of masks (n, S, S), the last two outside; None when they are empty."""
    rows, columns = (np.flatnonzero(masks.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
