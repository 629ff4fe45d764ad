"""Few-shot segmentation from beginning to end: labelled slices -> adapted task -> masks of any volume.

The server's task, the command line and notebooks call :func:`adapt` and :func:`segment`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import Atlas, Guide, guides_for
from ssmsam.fewshot.config import DEFAULTS, FewShotConfig, PseudoLabelConfig, SegmentationConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.estimate import (
    Estimate,
    SupportCheck,
    banks_with_errors,
    check_support,
    cross_validated,
    held_out_answers,
    worth_it,
)
from ssmsam.fewshot.proposals import Clicks, Proposals, Target, corrected, propose, refined_in_roi, roi_banks
from ssmsam.fewshot.selection import Selected, select_target
from ssmsam.fewshot.support import LabelledSlice, Support, digest
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.ops import evenly_spaced
from ssmsam.progress import Progress, silent, stop_if_cancelled


def slices_to_pseudo_label(
    slices: Sequence[LabelledSlice], config: PseudoLabelConfig
) -> Iterator[tuple[VolumeEmbeddings, list[int]]]:
    """Volumes of one label's labelled slices, each with the slices to give pseudo-labels to, ascending."""
    if config.slices == 0:
        return
    counts = Counter(one.volume for one in slices)
    for volume, _ in counts.most_common(config.volumes):
        labelled = [one for one in slices if one.volume == volume]
        taken = {one.index for one in labelled}
        embeddings = labelled[0].embeddings
        spread = [index for index in evenly_spread(embeddings, config) if index not in taken]
        if spread:
            yield embeddings, spread


def evenly_spread(embeddings: VolumeEmbeddings, config: PseudoLabelConfig) -> list[int]:
    """Slices from the first to the last of a volume, about equally far apart."""
    length = (embeddings.count - 1) * embeddings.slice_mm
    return evenly_spaced(embeddings.count, max(1, min(config.slices, int(length / config.spacing_mm) + 1)))


def as_labelled(embeddings: VolumeEmbeddings, mask: np.ndarray, slices: Sequence[int]) -> list[LabelledSlice]:
    """Some slices of a mask on the volume's own grid (slices, rows, columns) bool."""
    stack = embeddings.plane.stack(mask)
    return [LabelledSlice(embeddings, index, stack[index]) for index in slices]


@dataclass(frozen=True, eq=False)
class Finding:
    """Of one label on some slices: what the decoder ``proposed``, and what is kept of it."""

    proposed: Proposals
    selected: Selected

    @property
    def final(self) -> Proposals:
        """The masks as they are served."""
        return self.selected.proposals


def find(
    task: AdaptedTask,
    query: VolumeEmbeddings,
    slices: Sequence[int],
    *,
    labels: Collection[str] | None = None,
    clicks: Mapping[str, Clicks] | None = None,
    config: SegmentationConfig,
    up_to_extent: bool = False,
    progress: Progress = silent,
) -> dict[str, Finding]:
    """Label -> what a task finds of it in a volume.

    Args:
        task: Decoder and support banks.
        query: The volume.
        slices: Numbers of slices, which should be embedded.
        labels: Those of the task that are wanted, by default all.
        clicks: By label, what was clicked on single slices.
        config: Which steps follow on the decoder's proposals.
        up_to_extent: Nothing is proposed past slices where the target ends; that saves time.
        progress: Raising :class:`~ssmsam.progress.Cancelled` in ``progress("segment", done, total)`` stops between two
            batches.
    """
    banks = {label: bank for label, bank in task.banks.items() if labels is None or label in labels}
    task = replace(task, banks=banks)
    side, atlases = task.decoder.logits_side, task.atlases if config.atlases else ()
    guides = guides_for(atlases, banks, query, slices, side, progress=progress)
    ask = partial(propose, config=config, up_to_extent=up_to_extent, to_known_ends=not clicks, progress=progress)
    proposed = ask(task, query, slices, guides=guides)
    targets = {label: Target(task, label, query, config) for label in proposed}
    clicked: Mapping[str, Clicks] = {label: (clicks or {}).get(label, {}) for label in targets}
    found = {}
    for label, target in targets.items():
        proposals = corrected(proposed[label], clicked[label], target)
        found[label] = Finding(proposals, select_target(proposals, target, clicked=clicked[label]))
    if config.follow and task.decoder.follows:
        found |= _followed(found, targets, clicked, ask)
    if config.own_slices:
        unseen = {label: one for label, one in targets.items() if not clicked[label] and not one.annotated}
        found |= _self_supported(found, unseen, progress)
    for label, one in found.items():
        refined = refined_in_roi(one.final, targets[label], clicked[label], progress=progress)
        found[label] = replace(one, selected=replace(one.selected, proposals=refined))
    return found


def _followed(
    found: Mapping[str, Finding],
    targets: Mapping[str, Target],
    clicked: Mapping[str, Clicks],
    ask: Callable[..., dict[str, Proposals]],
) -> dict[str, Finding]:
    """What is found of targets that one annotated slice shows and that are followed outwards from it; only of those of
    which the volume head expects more then."""
    targets = {label: target for label, target in targets.items() if len(target.shown_on) == 1}
    if not targets:
        return {}
    first = next(iter(targets.values()))
    task = replace(first.task, banks={label: one.bank for label, one in targets.items()})
    slices = found[first.label].proposed.slices.tolist()
    again = ask(task, first.query, slices, guides=_guides(found, targets), follow=True)
    proposals = {label: corrected(again[label], clicked[label], target) for label, target in targets.items()}
    return _better(found, proposals, targets, clicked)


def _guides(found: Mapping[str, Finding], labels: Iterable[str]) -> dict[str, Guide]:
    return {label: guide for label in labels if (guide := found[label].proposed.guide)}


def _better(
    found: Mapping[str, Finding],
    again: Mapping[str, Proposals],
    targets: Mapping[str, Target],
    clicked: Mapping[str, Clicks],
) -> dict[str, Finding]:
    """Of what was proposed again what the volume head expects more of than of what was found before."""
    better = {}
    for label, proposals in again.items():
        before, second = found[label].selected, select_target(proposals, targets[label], clicked=clicked[label])
        if second.rank >= before.rank:
            # what to expect was judged before own masks passed for annotated ones
            better[label] = Finding(proposals, replace(second, expected=before.expected))
    return better


def _self_supported(
    found: Mapping[str, Finding], targets: Mapping[str, Target], progress: Progress
) -> dict[str, Finding]:
    """What is found of the targets after the best masks that were found, spread over each, have supported the others.

    Patients differ more from each other than the slices of one do: the self-support of Fan et al. (2022), there by
    prototypes within one image, here by slices within one volume, which the decoder was trained to use. Only the
    targets of which the volume head expects more then. All are looked for together: what the decoder reads of a slice
    is the same for them.
    """
    own = {label: _own_slices(found[label].selected, target) for label, target in targets.items()}
    targets = {label: target for label, target in targets.items() if own[label]}
    if not targets:
        return {}
    first = next(iter(targets.values()))
    banks = {
        label: target.bank.joined(SupportBank.of(own[label], target.task.decoder)) for label, target in targets.items()
    }
    again = propose(
        replace(first.task, banks=banks, initial=None),
        first.query,
        found[first.label].proposed.slices.tolist(),
        config=first.config,
        guides=_guides(found, targets),
        to_known_ends=False,
        progress=progress,
    )
    seen = {label: replace(one, presence=found[label].proposed.presence) for label, one in again.items()}
    return _better(found, seen, targets, {label: {} for label in targets})


def _own_slices(kept: Selected, target: Target) -> list[LabelledSlice]:
    """The best masks of a target, spread over it; none where it has too few."""
    proposals, query, count = kept.proposals, target.query, target.config.own_slices
    drawn = np.flatnonzero((proposals.logits > 0).any(axis=(1, 2)))
    if len(drawn) < 2 * count:
        return []
    best = [int(part[kept.dice[part].argmax()]) for part in np.array_split(drawn, count)]
    return [LabelledSlice(query, int(proposals.slices[row]), proposals.pixels(row, query.frame) > 0) for row in best]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in one volume.

    Attributes:
        labels: Names of the values 1, 2, ... of ``mask``.
        mask: (slices, rows, columns) uint8, on the volume's own grid.
        slices: (n,) numbers of the slices that were looked at, along the plane of work.
        presence: (labels, n) probabilities in [0, 1] that the label is on the slice.
        uncertainty: (labels, n) the expected loss of Dice in [0, 1].
        logits: (labels, n, S, S) in the encoder's frame.
        dice: Label -> the Dice in [0, 1] that is expected of its mask over the slices that nobody annotated.
        open_ends: Label -> the slices just past its annotated ends where something was proposed and left out: a person
            should say whether it is still there.
    """

    labels: tuple[str, ...]
    mask: np.ndarray
    slices: np.ndarray
    presence: np.ndarray
    uncertainty: np.ndarray
    logits: np.ndarray
    dice: Mapping[str, float] = field(default_factory=dict)
    open_ends: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def assembled(found: Mapping[str, Selected], query: VolumeEmbeddings) -> Prediction:
    """Masks on the volume's own grid. Where labels overlap the one with the highest logit has the voxel."""
    labels = tuple(found)
    proposals = [one.proposals for one in found.values()]
    mask = np.zeros(query.grid.shape, dtype=np.uint8)
    stack = query.plane.stack(mask)
    for row, index in enumerate(proposals[0].slices):
        pixels = np.stack([one.pixels(row, query.frame) for one in proposals])
        stack[index] = np.where(pixels.max(axis=0) > 0, pixels.argmax(axis=0) + 1, 0)
    return Prediction(
        labels=labels,
        mask=mask,
        slices=proposals[0].slices,
        presence=np.stack([one.presence for one in proposals]),
        uncertainty=np.stack([1 - one.dice for one in found.values()]),
        logits=np.stack([one.logits for one in proposals]),
        dice={label: one.expected for label, one in found.items()},
        open_ends={label: one.proposals.open_ends for label, one in found.items() if one.proposals.open_ends},
    )


def as_annotated(mask: np.ndarray, labels: Sequence[str], query: VolumeEmbeddings, support: Support) -> np.ndarray:
    """A copy of a label map (slices, rows, columns) of 1, 2, ... for ``labels`` that holds what was annotated.

    Where an annotation says that a label is not, another label that was proposed there stays.
    """
    mask = mask.copy()
    stack = query.plane.stack(mask)
    for number, label in enumerate(labels, 1):
        for one in support.get(label, ()):
            if one.volume == query.key.digest:
                known = np.ones_like(one.mask) if one.known is None else one.known
                pixels = stack[one.index]
                pixels[(pixels == number) & known & ~one.mask] = 0
                pixels[one.mask & known] = number
    return mask


def adapt(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    pseudo_labels: bool = True,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """Adapt a decoder to a few labelled slices.

    They are encoded, the online optimiser's regression is solved on them, and each is a query with the others as
    context. With ``config.adaptation.steps`` a copy of the decoder is also fitted to them by gradient steps; where the
    estimate on held-out slices says that this does harm, the decoder stays as it was.

    Args:
        support: Labelled slices by label.
        embedder: Of the encoder that the decoder belongs to.
        decoder: Stays as it is.
        pseudo_labels: Whether the labelled volumes get pseudo-labels, which only other volumes need. Without, that is
            left to a later call of :func:`with_pseudo_labels`.
        config: Settings of all steps.
        progress: ``progress("views" | "adapt" | ..., done, total)``; raising
            :class:`~ssmsam.progress.Cancelled` in it stops.

    Returns:
        The task for :func:`segment`.

    Raises:
        ~ssmsam.fewshot.support.NothingToLearn: A label has no slice that shows it.

    Example:
        >>> task = adapt({"liver": slices}, embedder, load_target_decoder("small"))  # doctest: +SKIP
        >>> mask = segment(embedder.open(volume), task).mask == 1  # doctest: +SKIP
    """
    adaptation = config.adaptation
    tasks = adaptation_tasks(
        support,
        embedder,
        decoder,
        config=adaptation if adaptation.steps else _without_views(config).adaptation,
        progress=progress,
    )
    estimates: dict[str, Estimate] = {}
    if adaptation.steps and config.folds > 1:
        estimates = cross_validated(decoder, tasks, adaptation, folds=config.folds, progress=progress)
    fitted, fitting = copy.deepcopy(decoder), {"adapted": False, "steps": 0, "seconds": 0.0}
    if adaptation.steps and worth_it(estimates):
        share = min((one.share for one in estimates.values()), default=1.0)
        adapted = fit(decoder, tasks, adaptation, share=share, progress=progress)
        fitted = adapted.decoder
        fitting = {"adapted": True, "steps": len(adapted.losses), "seconds": round(adapted.seconds, 2)}
    stop_if_cancelled()
    # a fitted decoder would be too sure of slices that it was fitted to
    judge = decoder if decoder.pretrained else fitted
    answers = {label: held_out_answers(judge, views[0]) for label, views in tasks.items()}
    checks = {label: check_support(views[0], answers[label]) for label, views in tasks.items()}
    known = support_card(support, embedder)
    card = {**known, "settings": config.as_json(), **fitting, **estimate_card(checks, estimates)}
    if fitting["adapted"] and fitted.corrects:
        # it misses less on slices that it was fitted to: what is put right then is too little rather than too much
        answers = {label: held_out_answers(fitted, views[0]) for label, views in tasks.items()}
    banks = banks_with_errors(tasks, answers if fitted.corrects else {})
    task = AdaptedTask(fitted, banks, card, roi_banks=_roi_banks(banks, support, fitted, config)).adapted_from(decoder)
    return with_pseudo_labels(task, support, config=config, progress=progress) if pseudo_labels else task


def support_card(support: Support, embedder: Embedder) -> dict[str, Any]:
    """What a card says of the support and the encoder."""
    return {
        "labels": sorted(support),
        "support_digest": digest(support),
        "learned_from": {label: len(slices) for label, slices in sorted(support.items())},
        "support": {
            label: [{"image": one.image, "axis": one.embeddings.plane.axis, "slice": one.index} for one in slices]
            for label, slices in sorted(support.items())
        },
        "encoder": embedder.encoder.spec.name,
        "weights_sha256": embedder.encoder.weights_sha256,
        "completed": [],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def estimate_card(checks: Mapping[str, SupportCheck], estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """What a card says of quality: of each label the check, and the estimate, which is the check where nothing was
    held out."""
    known = {
        label: Estimate(before=check.dice, after=check.dice, slices=check.slices)
        for label, check in checks.items()
        if check.dice is not None
    }
    return {
        "support_check": {label: asdict(check) for label, check in checks.items()},
        "dice_estimate": {label: one.as_json() for label, one in {**known, **estimates}.items()},
    }


def with_support_again(
    task: AdaptedTask, support: Support, embedder: Embedder, *, config: FewShotConfig = DEFAULTS
) -> AdaptedTask:
    """The same task with banks made anew of the labelled slices that it was adapted to: what it says with them is what
    it said before. Nothing is adapted. Pseudo-labels have to be made again.
    """
    config = _without_views(config)
    tasks = adaptation_tasks(support, embedder, task.decoder, config=config.adaptation)
    corrects = task.decoder.corrects
    answers = {label: held_out_answers(task.decoder, views[0]) for label, views in tasks.items() if corrects}
    banks = banks_with_errors(tasks, answers)
    enlarged = _roi_banks(banks, support, task.decoder, config)
    return replace(task, banks=banks, roi_banks=enlarged, atlases=(), summarised=False)


def _roi_banks(
    banks: Mapping[str, SupportBank], support: Support, decoder: TargetDecoder, config: FewShotConfig
) -> Mapping[str, SupportBank]:
    roi = config.segmentation.roi
    return roi_banks(banks, support, decoder, roi) if roi and decoder.enlarges else {}


def _without_views(config: FewShotConfig) -> FewShotConfig:
    """For where nothing is learned from further views."""
    adaptation = config.adaptation
    return replace(config, adaptation=replace(adaptation, views=replace(adaptation.views, views=0)))


def with_pseudo_labels(
    task: AdaptedTask,
    support: Support,
    *,
    labels: Collection[str] | None = None,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """The same task with pseudo-labels in the labelled volumes.

    They tell other volumes more of the target, and the labelled volumes themselves nothing new. Embeds the slices that
    it looks at. A task that knows fewer volumes than ``support`` labels those that it knows.

    Args:
        task: Of :func:`adapt`.
        support: What it was adapted to.
        labels: By default all. Those that have pseudo-labels are left as they are.
        config: Settings of all steps.
        progress: ``progress("embed" | "segment", done, total)``.
    """
    # where the target is matters here, not its outline
    config = replace(config, segmentation=replace(config.segmentation, roi=None))
    wanted = [
        label for label in task.labels if label not in task.pseudo_labelled and (labels is None or label in labels)
    ]
    banks, atlases = dict(task.banks), {one.volume: one for one in task.atlases}
    for label in wanted:
        bank = task.banks[label]
        known = [one for one in support.get(label, ()) if one.volume in bank.volumes]
        for volume, slices in slices_to_pseudo_label(known, config.pseudo_labels):
            here = [one for one in known if one.volume == volume.key.digest]
            looked_at = sorted({*slices, *(one.index for one in here)})
            mask = segment(
                volume, task, labels=[label], slices=looked_at, support={label: here}, config=config, progress=progress
            ).mask
            stop_if_cancelled()
            bank = bank.with_pseudo_labels(SupportBank.of(as_labelled(volume, mask == 1, slices), task.decoder))
            if config.segmentation.atlases:
                stop_if_cancelled()
                atlas = atlases.get(volume.key.digest) or Atlas.of(volume)
                atlases[atlas.volume] = atlas.with_label(label, bank, volume)
        banks[label] = bank
    card = {**task.card, "completed": [*task.pseudo_labelled, *wanted]}
    return replace(task, banks=banks, card=card, atlases=tuple(atlases.values()))


def segment(
    query: VolumeEmbeddings,
    task: AdaptedTask,
    *,
    labels: Collection[str] | None = None,
    slices: Sequence[int] | None = None,
    support: Support | None = None,
    clicks: Mapping[str, Clicks] | None = None,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> Prediction:
    """Segment a volume.

    Args:
        query: The volume's embeddings, of :meth:`~ssmsam.embeddings.embedder.Embedder.open`; slices that are not
            embedded yet are.
        task: Of :func:`adapt`.
        labels: Those of the task that are wanted, by default all.
        slices: Numbers of slices, by default all.
        support: What it says of slices of this volume stays as it is, pixel by pixel.
        clicks: Label -> slice -> what was clicked there, to correct the proposals of single slices.
        config: Settings of all steps.
        progress: ``progress("embed" | "segment", done, total)``; raising :class:`~ssmsam.progress.Cancelled` in it
            stops between two batches.

    Returns:
        Masks on the volume's own grid, presence and uncertainty.

    Example:
        >>> prediction = segment(embedder.open(volume), task, labels=["liver"])  # doctest: +SKIP
        >>> prediction.mask.shape == volume.shape  # doctest: +SKIP
        True
    """
    wanted = range(query.count) if slices is None else slices
    query.embed(wanted, progress=progress)
    found = find(
        task,
        query,
        wanted,
        labels=labels,
        clicks=clicks,
        config=config.segmentation,
        up_to_extent=not clicks,
        progress=progress,
    )
    prediction = assembled({label: one.selected for label, one in found.items()}, query)
    return replace(prediction, mask=as_annotated(prediction.mask, prediction.labels, query, support or {}))
