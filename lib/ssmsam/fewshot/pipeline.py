"""Few-shot segmentation from beginning to end: labelled slices -> head -> masks of any volume.

The server's task, the command line and notebooks call these two functions.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.fewshot.adaptation import AdaptationConfig, AdaptationTasks, fit
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.assembly import Clicks, Prediction, SegmentationConfig, assembled, with_annotations
from ssmsam.fewshot.atlas import Atlas
from ssmsam.fewshot.episodes import adaptation_tasks
from ssmsam.fewshot.estimate import Estimate, SupportCheck, check_support, cross_validated, worth_it
from ssmsam.fewshot.prediction import find
from ssmsam.fewshot.pseudo_labels import PseudoLabelConfig, as_labelled, slices_to_pseudo_label
from ssmsam.fewshot.roi_window import roi_banks
from ssmsam.fewshot.support import Support, digest
from ssmsam.fewshot.support_bank import SupportBank
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Progress, silent, stop_if_cancelled


@dataclass(frozen=True)
class FewShotConfig:
    """``folds`` cross-validate adaptation by gradient steps, where there is any (0: it is trusted)."""

    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    completion: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    folds: int = 2


DEFAULTS = FewShotConfig(adaptation=AdaptationConfig(steps=0))
"""The closed form only. Gradient steps on top gained 0.4 points (0.1 to 0.6) on organs never seen and cost tens of
seconds: those are for who asks for them."""


def adapt(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    complete: bool = True,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """Describe the labelled slices, solve the online optimiser's regression on them and ask for each by the others.

    With ``config.adaptation.steps`` a copy of ``decoder`` is also fitted to them by gradient steps; where the estimate
    on held-out slices says that this does harm, the head keeps the decoder as it was. Only other volumes need what is
    completed: without ``complete`` it is left to a later call of :func:`completed`. Raises
    :class:`~ssmsam.fewshot.support.NothingToLearn`.
    """
    steps = config.adaptation.steps
    tasks = adaptation_tasks(
        support,
        embedder,
        decoder,
        config=config.adaptation.views if steps else replace(config.adaptation.views, views=0),
        bank=config.adaptation.bank,
        seed=config.adaptation.seed,
        progress=progress,
    )
    estimates: dict[str, Estimate] = {}
    if steps and config.folds > 1:
        estimates = cross_validated(decoder, tasks, config.adaptation, folds=config.folds, progress=progress)
    useful = steps > 0 and worth_it(estimates)
    seconds, steps, fitted = 0.0, 0, copy.deepcopy(decoder)
    if useful:
        share = min((one.share for one in estimates.values()), default=1.0)
        adapted = fit(decoder, tasks, config.adaptation, share=share, progress=progress)
        seconds, steps, fitted = adapted.seconds, len(adapted.losses), adapted.decoder
    head = made_head(
        fitted,
        tasks,
        support,
        embedder,
        config,
        adapted=useful,
        steps=steps,
        seconds=seconds,
        estimates=estimates,
        judge=decoder if decoder.pretrained else fitted,
    )
    head = head.begun_with(decoder)
    closer = config.segmentation.closer
    if closer and decoder.enlarges:
        head = replace(head, close=roi_banks(head.banks, support, decoder, closer))
    return completed(head, support, config=config, progress=progress) if complete else head


def made_head(
    decoder: TargetDecoder,
    tasks: AdaptationTasks,
    support: Support,
    embedder: Embedder,
    settings: Any,
    *,
    adapted: bool,
    steps: int,
    seconds: float,
    estimates: Mapping[str, Estimate],
    judge: TargetDecoder | None = None,
) -> AdaptedTask:
    """The head of a decoder that was fitted to the labelled slices, with its card. ``settings`` are a dataclass.

    ``judge`` is the decoder that is asked for each labelled slice by the others: a fitted one would be too sure of
    slices that it was fitted to.
    """
    stop_if_cancelled()
    checks = {label: check_support(judge or decoder, views[0]) for label, views in tasks.items()}
    estimates = {label: _left_out(check) for label, check in checks.items() if check.dice is not None} | dict(estimates)
    card = {
        "labels": list(tasks),
        "support_digest": digest(support),
        "learned_from": {label: len(slices) for label, slices in sorted(support.items())},
        "support": {
            label: [{"image": one.image, "axis": one.embeddings.plane.axis, "slice": one.index} for one in slices]
            for label, slices in sorted(support.items())
        },
        "encoder": embedder.encoder.spec.name,
        "weights_sha256": embedder.encoder.weights_sha256,
        "settings": asdict(settings),
        "adapted": adapted,
        "steps": steps,
        "seconds": round(seconds, 2),
        "support_check": {label: asdict(check) for label, check in checks.items()},
        "dice_estimate": {label: one.as_json() for label, one in estimates.items()},
        "completed": [],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return AdaptedTask(decoder, {label: views[0].bank for label, views in tasks.items()}, card)


def _left_out(check: SupportCheck) -> Estimate:
    """What is estimated where nothing is adapted."""
    dice = check.dice or 0.0
    return Estimate(before=dice, after=dice, slices=check.slices)


def shown_again(
    head: AdaptedTask,
    support: Support,
    embedder: Embedder,
    *,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """The same head with banks made anew of the labelled slices that it was adapted to: what it says with them is what
    it said before. Nothing is adapted. What was completed has to be completed again.
    """
    tasks = adaptation_tasks(
        support,
        embedder,
        head.decoder,
        config=replace(config.adaptation.views, views=0),
        bank=config.adaptation.bank,
        seed=config.adaptation.seed,
        progress=progress,
    )
    banks = {label: several[0].bank for label, several in tasks.items()}
    closer = config.segmentation.closer
    close = roi_banks(banks, support, head.decoder, closer) if closer and head.decoder.enlarges else {}
    return replace(head, banks=banks, close=close, atlases=(), summarised=False)


def completed(
    head: AdaptedTask,
    support: Support,
    *,
    labels: Collection[str] | None = None,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> AdaptedTask:
    """The same head after it has completed the labelled volumes: it shows other volumes more of them, and the labelled
    volumes themselves nothing new. Embeds the slices that it looks at.

    Only for ``labels``, all by default, that were not completed before. A head that knows fewer volumes than
    ``support`` completes those that it knows.
    """
    # where the target is matters here, not its outline
    config = replace(config, segmentation=replace(config.segmentation, closer=None))
    wanted = [label for label in head.labels if label not in head.completed and (labels is None or label in labels)]
    banks, atlases = dict(head.banks), {one.volume: one for one in head.atlases}
    for label in wanted:
        bank = head.banks[label]
        known = [one for one in support.get(label, ()) if one.volume in bank.volumes]
        for volume, slices in slices_to_pseudo_label(known, config.completion):
            here = [one for one in known if one.volume == volume.key.digest]
            looked_at = sorted({*slices, *(one.index for one in here)})
            mask = segment(
                volume, head, labels=[label], slices=looked_at, support={label: here}, config=config, progress=progress
            ).mask
            stop_if_cancelled()
            more = SupportBank.of(as_labelled(volume, mask == 1, slices), head.decoder)
            bank = bank.with_completed(more)
            if config.segmentation.atlases:
                stop_if_cancelled()
                atlas = atlases.get(volume.key.digest) or Atlas.of(volume)
                atlases[atlas.volume] = atlas.with_label(label, bank, volume)
        banks[label] = bank
    card = {**head.card, "completed": [*head.completed, *wanted]}
    return replace(head, banks=banks, card=card, atlases=tuple(atlases.values()))


def segment(
    query: VolumeEmbeddings,
    head: AdaptedTask,
    *,
    labels: Collection[str] | None = None,
    slices: Sequence[int] | None = None,
    support: Support | None = None,
    clicks: Mapping[str, Clicks] | None = None,
    config: FewShotConfig = DEFAULTS,
    progress: Progress = silent,
) -> Prediction:
    """Masks of the head's ``labels`` on some slices of a volume, by default all of both.

    What ``support`` says of slices of this volume stays as it is, pixel by pixel. ``clicks`` (label -> slice -> what
    was clicked) mend the proposals of single slices.
    """
    wanted = range(query.count) if slices is None else slices
    query.embed(wanted, progress=progress)
    found = find(
        head,
        query,
        wanted,
        labels=labels,
        clicks=clicks,
        config=config.segmentation,
        up_to_ends=not clicks,
        progress=progress,
    )
    masks = assembled({label: one.selected for label, one in found.items()}, query)
    return with_annotations(masks, query, support or {})
