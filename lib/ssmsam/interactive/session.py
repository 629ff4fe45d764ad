"""What a server task calls: a request, and what is known of its object, to a mask on the volume's own grid."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ssmsam.cache import Cache
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.interactive.propagation import DEFAULTS, Propagation, PropagationConfig, Section, propagate
from ssmsam.interactive.request import ANONYMOUS, InvalidPrompt, PromptRequest
from ssmsam.interactive.segmenter import SliceAnswer, SliceMasks, correct_slice, segment_slice, uncertainty, violates
from ssmsam.models.prompt_decoder import PromptDecoder, SlicePrompt
from ssmsam.progress import FairLock, Progress, silent


class SegmentationState:
    """Prompts and masks of one object, as last sent and as last answered.

    Hold :attr:`lock` while reading and changing: two requests for the same object come one after the other, those
    for different objects do not wait for each other.
    """

    def __init__(self) -> None:
        self.lock = FairLock()
        self.context = ""
        """Digest of the embeddings that all this was made from."""
        self.clear()

    def clear(self) -> None:
        """Forget everything, as for a new object."""
        self.prompts: dict[int, SlicePrompt] = {}
        """Per slice, as last sent."""
        self.logits: dict[int, torch.Tensor] = {}
        """Per slice with a positive click or a box: low-resolution logits (1, 1, S, S), fed back on the next click."""
        self.quality: dict[int, float] = {}
        """Per slice with an answer of its own: its predicted IoU."""
        self.masks = SliceMasks()
        """All slices of the last answer that are not empty, prompted and propagated."""
        self.sections: dict[str, Section] = {}
        """Propagated parts of the volume by what they were computed from."""

    def forget_slice(self, index: int) -> None:
        """Drop one slice's prompts and mask: its points were deleted."""
        self.prompts.pop(index, None)
        self.logits.pop(index, None)
        self.quality.pop(index, None)
        self.masks.pop(index, None)

    def remember_slice(self, index: int, prompt: SlicePrompt, answer: SliceAnswer) -> None:
        """Keep the answer to one slice's prompts."""
        self.forget_slice(index)
        self.prompts[index] = prompt
        self.quality[index] = answer.quality
        if answer.logits is not None:
            self.logits[index] = answer.logits.detach().to("cpu", torch.float32)
        if answer.mask.any():
            self.masks[index] = answer.mask

    def feedback(self, index: int, prompt: SlicePrompt) -> torch.Tensor | None:
        """The logits to feed back: those of this slice's last answer, if ``prompt`` only adds to its prompts.

        A point that was deleted or moved takes the feedback with it, else it would live on in the logits.
        """
        known = self.prompts.get(index)
        return self.logits.get(index) if known is not None and extends(prompt, known) else None

    def continues(self, slices: Mapping[int, SlicePrompt]) -> bool:
        """Whether prompts only add to the known ones: nothing deleted, nothing moved, no other object."""
        return all(index in slices and extends(slices[index], known) for index, known in self.prompts.items())


def extends(new: SlicePrompt, old: SlicePrompt) -> bool:
    """Whether ``new`` holds all of ``old`` and perhaps more."""
    return (
        _points(old.positive) <= _points(new.positive)
        and _points(old.negative) <= _points(new.negative)
        and old.box in (None, new.box)
        and set(old.strokes) <= set(new.strokes)
        and old.outline in ((), new.outline)
    )


def same(one: SlicePrompt, other: SlicePrompt) -> bool:
    """Whether two prompts say the same, in whatever order."""
    return extends(one, other) and extends(other, one)


def _points(xy: np.ndarray) -> set[tuple[float, float]]:
    return {(float(x), float(y)) for x, y in np.reshape(xy, (-1, 2))}


class StateStore:
    """The states of the objects that were worked on last, at most ``capacity`` of them. Safe between threads.

    Client ids are no proof of identity (many viewers send the same one, or none), so the image is part of the key:
    nothing of one image ever reaches another.
    """

    def __init__(self, capacity: int = 64) -> None:
        self._states: Cache[tuple[str, str, str], SegmentationState] = Cache(capacity)

    def open(self, image: str, label: str = "", client_id: str | None = None) -> SegmentationState:
        """The state of an object: the known one, or a new one in the place of the least recently used."""
        return self._states.recalled((str(image), str(label), client_id or ANONYMOUS), SegmentationState)

    def __len__(self) -> int:
        return len(self._states)


NOTHING_ASKED = "no prompt: place a point inside the organ or draw a box round it"
ONLY_NEGATIVE = "only background points, and nothing to correct: place a point inside the organ or draw a box round it"
NOTHING_FOUND = "nothing was found in the box on slice {}: place a point inside the organ"


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """The answer to a request."""

    embeddings: VolumeEmbeddings
    """Of the image."""
    slices: SliceMasks
    """The slices of the plane of work that are not empty."""
    logits: torch.Tensor | None
    """(1, 1, S, S) of the request's own slice, as the decoder gave them; None where clicks were only subtracted."""
    details: dict[str, Any]
    """Ready for JSON: ``slice``, ``slices_prompted``, ``slices_changed``, ``quality`` and ``corrected`` by slice,
    ``stops`` (where and why propagation ended), ``slices_decoded`` and ``latencies`` in seconds."""

    @cached_property
    def mask(self) -> np.ndarray:
        """(slices, rows, columns) uint8 on the image's own grid, 1 inside."""
        mask = np.zeros(self.embeddings.grid.shape, dtype=np.uint8)
        stacked = self.embeddings.plane.stack(mask)
        for index, part in self.slices.items():
            stacked[index] = part
        return mask

    def slice_mask(self, index: int) -> np.ndarray:
        """(height, width) bool of one slice of the plane of work."""
        plane, grid = self.embeddings.plane, self.embeddings.grid
        return self.slices[index] if index in self.slices else np.zeros(plane.slice_shape(grid), dtype=bool)

    @property
    def uncertainty(self) -> np.ndarray | None:
        """(height, width) in [0, 1] of the request's own slice, see :func:`~ssmsam.interactive.segmenter.uncertainty`;
        None where the decoder was not asked for the whole mask."""
        return None if self.logits is None else uncertainty(self.logits, self.embeddings.frame)


def segment_2d(
    request: PromptRequest,
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    state: SegmentationState,
    *,
    progress: Progress = silent,
) -> SegmentationResult:
    """Segment the request's current slice. The answer is zero on all other slices, for viewers add what they find.

    When all prompts are negative they are taken out of the mask that this slice already had. Viewers may ignore an
    answer without any voxel and keep what they show; so only clicks on everything that was there lead to one.

    Raises :class:`InvalidPrompt` without a prompt, with nothing but negative ones and no mask to correct, and for a
    box with nothing in it. A request that names no label has no mask to correct: some viewers never name it, and the
    mask that is remembered may be another object's.
    """
    started, index = time.perf_counter(), request.current
    with state.lock:
        _renew(state, request, embeddings)
        if index is None or request.empty:
            if index is not None:
                state.forget_slice(index)
            raise InvalidPrompt(NOTHING_ASKED)
        progress("segment", 0, 1)
        before = SliceMasks({index: state.masks[index]}) if index in state.masks else SliceMasks()
        prompt = request.slices[index]
        if prompt.empty:
            if not before or not request.label:
                raise InvalidPrompt(ONLY_NEGATIVE)
            answer = correct_slice(embeddings, decoder, index, prompt, before[index])
        else:
            answer = _prompted_slice(embeddings, decoder, index, prompt, state)
        progress("segment", 1, 1)
        state.remember_slice(index, prompt, answer)
    after = SliceMasks({index: answer.mask} if answer.mask.any() else {})
    return _result(embeddings, before, after, {index: answer}, {"slice": index}, started)


def segment_3d(
    request: PromptRequest,
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    state: SegmentationState,
    *,
    config: PropagationConfig = DEFAULTS,
    progress: Progress = silent,
) -> SegmentationResult:
    """Segment the prompted slices and everything that propagation reaches from them. The answer is the whole mask.

    - Prompts that only add to the last ones correct what is there. When one was deleted or moved, or none is the
      same, everything is made anew from the prompts that are left.
    - Negative clicks on a slice without other prompts are taken out of what propagation found there, and the rest
      follows: nothing passes a slice from which everything was taken.
    - Without any prompt the answer is the present mask. With nothing but negative clicks it is the present mask
      without what was clicked, other slices as they were.
    - With ``propagate`` off, only the prompted slices change.

    Nothing is remembered of a call that was cancelled. Raises :class:`InvalidPrompt` when there is neither a positive
    prompt nor a mask of the request's label (a request without a label has none, see :func:`segment_2d`), and for a
    box with nothing in it.
    """
    started = time.perf_counter()
    with state.lock:
        _renew(state, request, embeddings)
        before = SliceMasks(state.masks)
        if not request.empty and not request.negative_only and not state.continues(request.slices):
            sections = state.sections  # they depend on nothing but the seeds that they are found by
            state.clear()
            state.sections = sections
        if (not state.masks or not request.label) and (request.empty or request.negative_only):
            raise InvalidPrompt(NOTHING_ASKED if request.empty else ONLY_NEGATIVE)
        answers: dict[int, SliceAnswer] = {}
        found = Propagation(masks=SliceMasks(state.masks), stops=(), sections=state.sections, steps=0)
        if not request.empty:
            limits = config.limits if request.limits is None else request.limits
            max_mm = config.max_mm if request.max_mm is None else request.max_mm
            config = replace(config, limits=limits, max_mm=max_mm)
            answers = _prompted_slices(request.slices, embeddings, decoder, state, progress)
            rules = config if request.propagate and not request.negative_only else None
            found = _spread(answers, request.slices, embeddings, decoder, state, rules, progress)
            _remember(state, request, answers, found)
        masks = SliceMasks(found.masks)  # the state's own change with the next request
    details = {
        "slice": request.current,
        "stops": [{"seed": stop.seed, "at": stop.at, "reason": stop.reason} for stop in found.stops],
        "slices_decoded": found.steps,
    }
    return _result(embeddings, before, masks, answers, details, started)


def _renew(state: SegmentationState, request: PromptRequest, embeddings: VolumeEmbeddings) -> None:
    """Clear what belongs to another object, or was made from other embeddings."""
    if request.reset_state or state.context != embeddings.key.digest:
        state.clear()
        state.context = embeddings.key.digest


def _prompted_slices(
    slices: Mapping[int, SlicePrompt],
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    state: SegmentationState,
    progress: Progress,
) -> dict[int, SliceAnswer]:
    """The answers of all slices with a positive click or a box; those whose prompts are as before are not redone."""
    wanted = {index: prompt for index, prompt in slices.items() if not prompt.empty}
    answers = {}
    for done, (index, prompt) in enumerate(wanted.items()):
        progress("segment", done, len(wanted))
        answers[index] = _prompted_slice(embeddings, decoder, index, prompt, state)
    progress("segment", len(wanted), len(wanted))
    return answers


def _prompted_slice(
    embeddings: VolumeEmbeddings, decoder: PromptDecoder, index: int, prompt: SlicePrompt, state: SegmentationState
) -> SliceAnswer:
    previous, known = state.feedback(index, prompt), state.prompts.get(index)
    if known is not None and same(prompt, known) and previous is not None and index in state.masks:
        return SliceAnswer(state.masks[index], previous, state.quality.get(index, 0.0), corrected=False)
    # a slice that had no prompts yet shows what propagation made of it: that is what the user corrects
    base = state.masks.get(index) if known is None or known.empty else None
    answer = segment_slice(embeddings, decoder, index, prompt, previous=previous, base=base)
    if not answer.mask.any():
        raise InvalidPrompt(NOTHING_FOUND.format(index))
    return answer


def _spread(
    answers: dict[int, SliceAnswer],
    slices: Mapping[int, SlicePrompt],
    embeddings: VolumeEmbeddings,
    decoder: PromptDecoder,
    state: SegmentationState,
    config: PropagationConfig | None,
    progress: Progress,
) -> Propagation:
    """Spread the prompted slices, then correct the nearest slice on which a negative click is inside the mask, and
    again until none is left. Corrected slices join ``answers``. Without ``config`` nothing is propagated.

    The order follows from the prompts alone, not from that in which they were set, so that the same prompts always
    lead to the same mask.
    """
    known, prompted, steps = dict(state.sections), sorted(answers), 0
    while True:
        seeds = {index: answer.mask for index, answer in answers.items()}
        if config is None:
            masks = SliceMasks({index: mask for index, mask in {**state.masks, **seeds}.items() if mask.any()})
            found = Propagation(masks=masks, stops=(), sections=state.sections, steps=0)
        else:
            found = propagate(embeddings, decoder, seeds, config, progress, known=known)
            known.update(found.sections)
            steps += found.steps
        wrong = [
            index
            for index, prompt in slices.items()
            if index not in answers and index in found.masks and violates(found.masks[index], prompt)
        ]
        if not wrong:
            return replace(found, steps=steps)
        index = min(wrong, key=lambda k: (min((abs(k - other) for other in prompted), default=0), k))
        answers[index] = correct_slice(embeddings, decoder, index, slices[index], found.masks[index])


def _remember(
    state: SegmentationState, request: PromptRequest, answers: Mapping[int, SliceAnswer], found: Propagation
) -> None:
    """Keep prompts, logits and masks of a finished request."""
    state.prompts = dict(request.slices)
    state.logits = {}
    state.quality = {}
    for index, answer in answers.items():
        state.remember_slice(index, request.slices[index], answer)
    state.masks = found.masks
    state.sections = dict(found.sections)


def _result(
    embeddings: VolumeEmbeddings,
    before: SliceMasks,
    after: SliceMasks,
    answers: Mapping[int, SliceAnswer],
    details: dict[str, Any],
    started: float,
) -> SegmentationResult:
    changed = [
        index for index in sorted({*before, *after}) if not np.array_equal(before.get(index, ()), after.get(index, ()))
    ]
    details = details | {
        "slices_prompted": sorted(answers),
        "slices_changed": changed,
        "quality": {str(index): round(answer.quality, 4) for index, answer in sorted(answers.items())},
        "corrected": [index for index, answer in sorted(answers.items()) if answer.corrected],
        "latencies": {"total": round(time.perf_counter() - started, 4)},
    }
    own = answers.get(details["slice"])
    return SegmentationResult(
        embeddings=embeddings, slices=after, logits=None if own is None else own.logits, details=details
    )
