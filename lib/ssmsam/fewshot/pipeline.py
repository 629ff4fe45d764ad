"""Few-shot segmentation from beginning to end: labelled slices -> adapted task -> masks of any volume.

The server's task, the command line and notebooks call :func:`adapt` and :func:`segment`.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timezone
from typing import Any

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adaptation import fit
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.atlas import Atlas
from ssmsam.fewshot.config import DEFAULTS, FewShotConfig
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.estimate import Estimate, SupportCheck, check_support, cross_validated, worth_it
from ssmsam.fewshot.prediction import Prediction, as_annotated, assembled, find
from ssmsam.fewshot.proposals import Clicks
from ssmsam.fewshot.pseudo_labels import as_labelled, slices_to_pseudo_label
from ssmsam.fewshot.roi_refinement import roi_banks
from ssmsam.fewshot.support import Support, digest
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Progress, silent, stop_if_cancelled


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

    They are encoded, the online optimiser's regression is solved on them, and each is asked for by the others. With
    ``config.adaptation.steps`` a copy of the decoder is also fitted to them by gradient steps; where the estimate on
    held-out slices says that this does harm, the decoder stays as it was.

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
    fitted, told = copy.deepcopy(decoder), {"adapted": False, "steps": 0, "seconds": 0.0}
    if adaptation.steps and worth_it(estimates):
        share = min((one.share for one in estimates.values()), default=1.0)
        adapted = fit(decoder, tasks, adaptation, share=share, progress=progress)
        fitted = adapted.decoder
        told = {"adapted": True, "steps": len(adapted.losses), "seconds": round(adapted.seconds, 2)}
    stop_if_cancelled()
    # a fitted decoder would be too sure of slices that it was fitted to
    judge = decoder if decoder.pretrained else fitted
    checks = {label: check_support(judge, views[0]) for label, views in tasks.items()}
    card = {**support_card(support, embedder), "settings": config.as_json(), **told, **estimate_card(checks, estimates)}
    banks = {label: views[0].bank for label, views in tasks.items()}
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
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
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
    task: AdaptedTask,
    support: Support,
    embedder: Embedder,
    *,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """The same task with banks made anew of the labelled slices that it was adapted to: what it says with them is what
    it said before. Nothing is adapted. Pseudo-labels have to be made again.
    """
    config = _without_views(config)
    tasks = adaptation_tasks(support, embedder, task.decoder, config=config.adaptation, progress=progress)
    banks = {label: views[0].bank for label, views in tasks.items()}
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
        up_to_ends=not clicks,
        progress=progress,
    )
    prediction = assembled({label: one.selected for label, one in found.items()}, query)
    return replace(prediction, mask=as_annotated(prediction.mask, prediction.labels, query, support or {}))
