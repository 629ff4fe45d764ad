"""Protocol "clicks": a simulated annotator clicks on slices of every organ of every case; Dice after each click.

On a slice: the annotator clicks up to ten times; Dice of the slice is taken after 1, 3, 5 and 10 clicks, and for a
box drawn tightly round the target. The slices are those at 10, 30, 50, 70 and 90 % of the organ's extent. A model that
knows boxes only is given no clicks.
In a volume: the same clicks (or box) are set on the slice with the largest cross-section only and spread through the
volume; Dice is three-dimensional, over all slices of the volume. Nothing is dropped: what the model misses counts 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ssmsam.cli.annotator import Click, bounding_box, first_click, next_click
from ssmsam.report import Summary, mean_over_labels, summarise
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.metrics import dice, iou_of_dice, summarise_labels

Box = tuple[int, int, int, int]
Record = dict[str, Any]


@dataclass(frozen=True)
class ClickProtocol:
    """What is measured. Counts are numbers of clicks, fractions are places in the organ's extent."""

    slice_clicks: tuple[int, ...] = (1, 3, 5, 10)
    volume_clicks: tuple[int, ...] = (1, 3, 5)
    slice_fractions: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    good_dice: float = 90.0
    volumes: bool = True
    clicks: bool = True
    """Whether there are clicks beside the box."""

    @property
    def headline(self) -> tuple[str, str]:
        """The task and prompt whose mean is the result's ``mean_dice``."""
        return ("slice", click_name(5 if 5 in self.slice_clicks else self.limit)) if self.clicks else ("slice", "box")

    @property
    def limit(self) -> int:
        """The most clicks that are made on a slice."""
        return max(self.slice_clicks)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def click_name(n: int) -> str:
    """The prompt "n clicks" as results call it."""
    return "1 click" if n == 1 else f"{n} clicks"


class Target(Protocol):
    """One object of one volume being segmented, from nothing. Slices are those of the acquisition plane."""

    def slice_mask(self, index: int, clicks: Sequence[Click], box: Box | None) -> np.ndarray:
        """Mask (height, width) of the slice, given all clicks so far, the newest last."""
        ...

    def volume_mask(self, index: int, clicks: Sequence[Click], box: Box | None) -> np.ndarray:
        """Mask (slices, rows, columns), given prompts on one slice."""
        ...


NewTarget = Callable[[], Target]


def run_case(
    volume: Volume, labels: np.ndarray, labelled_set: LabelledSet, new_target: NewTarget, protocol: ClickProtocol
) -> list[Record]:
    """Every label of a case: one record per slice and one per volume (see :func:`slice_record`)."""
    pixel_mm = Plane(0).pixel_mm(volume.grid)
    records: list[Record] = []
    for label, truth in labelled_set.targets(labels):
        for index in chosen_slices(truth, protocol.slice_fractions):
            records.append({"label": label, **slice_record(truth[index], index, new_target, protocol, pixel_mm)})
        if protocol.volumes:
            records.append({"label": label, **volume_record(truth, new_target, protocol, pixel_mm)})
    return records


def chosen_slices(truth: np.ndarray, fractions: Sequence[float]) -> list[int]:
    """Slices that hold the target, nearest to the given fractions of its extent, each once, ascending."""
    present = np.flatnonzero(truth.any(axis=(1, 2)))
    wanted = present[0] + np.asarray(fractions) * (present[-1] - present[0])
    return sorted({int(present[np.argmin(np.abs(present - place))]) for place in wanted})


def read_slices(labels: np.ndarray, labelled_set: LabelledSet, protocol: ClickProtocol) -> list[int]:
    """The slices of a case that the protocol looks at, ascending: all of them where volumes are measured."""
    if protocol.volumes:
        return list(range(len(labels)))
    targets = labelled_set.targets(labels)
    return sorted({index for _, truth in targets for index in chosen_slices(truth, protocol.slice_fractions)})


def slice_record(
    truth: np.ndarray, index: int, new_target: NewTarget, protocol: ClickProtocol, pixel_mm: tuple[float, float]
) -> Record:
    """Dice on one slice by number of clicks and for a box, and the clicks that a good Dice took (None: not reached)."""
    box = dice(new_target().slice_mask(index, [], bounding_box(truth)), truth)
    record: Record = {"task": "slice", "slice": index, "dice": {"box": box}}
    if not protocol.clicks:
        return record
    target = new_target()
    scores, _ = click_through(
        truth, lambda clicks: target.slice_mask(index, clicks, None), limit=protocol.limit, pixel_mm=pixel_mm
    )
    by_prompt = {click_name(n): scores[n - 1] for n in protocol.slice_clicks}
    reached = [n for n, score in enumerate(scores, start=1) if score >= protocol.good_dice]
    return record | {"dice": {**by_prompt, "box": box}, "clicks_to_good": reached[0] if reached else None}


def volume_record(
    truth: np.ndarray, new_target: NewTarget, protocol: ClickProtocol, pixel_mm: tuple[float, float]
) -> Record:
    """3-D Dice from prompts on the target's largest cross-section alone."""
    index = int(truth.sum(axis=(1, 2)).argmax())
    target, by_prompt = new_target(), {}
    if protocol.clicks:
        _, clicks = click_through(
            truth[index],
            lambda clicks: target.slice_mask(index, clicks, None),
            limit=max(protocol.volume_clicks),
            pixel_mm=pixel_mm,
        )
        for n in protocol.volume_clicks:
            by_prompt[click_name(n)] = dice(new_target().volume_mask(index, clicks[:n], None), truth)
    by_prompt["box"] = dice(new_target().volume_mask(index, [], bounding_box(truth[index])), truth)
    return {"task": "volume", "slice": index, "dice": by_prompt}


def click_through(
    truth: np.ndarray,
    segment: Callable[[Sequence[Click]], np.ndarray],
    *,
    limit: int,
    pixel_mm: tuple[float, float] = (1.0, 1.0),
) -> tuple[list[float], list[Click]]:
    """Click ``limit`` times on one slice (height, width): Dice after each click, and the clicks.

    The annotator stops at a perfect mask; the scores are then filled up with that mask's, so there are always
    ``limit`` of them.
    """
    clicks = [first_click(truth, pixel_mm=pixel_mm)]
    scores: list[float] = []
    while True:
        mask = segment(clicks)
        scores.append(dice(mask, truth))
        click = next_click(truth, mask, clicked=clicks, pixel_mm=pixel_mm)
        if click is None or len(scores) == limit:
            return scores + scores[-1:] * (limit - len(scores)), clicks
        clicks.append(click)


def summarise_records(records: Sequence[Record], protocol: ClickProtocol) -> dict[str, Any]:
    """Means over labels of means over cases of means over slices, for each task and prompt.

    ``records`` carry their ``case``. A slice that never got good counts with the limit in ``clicks_to_good``, and
    its share is told beside. Raises ValueError without any record.
    """
    if not records:
        raise ValueError("none of the cases holds a label that counts, so there is nothing to measure")
    tasks: dict[str, Any] = {}
    for task in dict.fromkeys(record["task"] for record in records):
        of_task = [record for record in records if record["task"] == task]
        tasks[task] = {prompt: agreement(of_task, prompt) for prompt in of_task[0]["dice"]}
    if not protocol.clicks:
        return tasks
    slices = [record for record in records if record["task"] == "slice"]
    needed = [protocol.limit if record["clicks_to_good"] is None else record["clicks_to_good"] for record in slices]
    failed = sum(record["clicks_to_good"] is None for record in slices)
    tasks["clicks_to_good"] = {
        "dice": protocol.good_dice,
        "mean": round(float(np.mean(needed)), 3),
        "not_reached_percent": round(100.0 * failed / len(slices), 2),
        "n_slices": len(slices),
    }
    return tasks


def agreement(records: Sequence[Record], prompt: str) -> dict[str, Any]:
    """Dice and IoU in per cent: the mean over labels of means over cases, with its interval over cases
    (``ci95``, ``n``), and the summary of every label.

    The IoU is that of each record, taken from its Dice before any mean: the mean IoU does not follow from the mean
    Dice.
    """
    dice_of, iou_of = (label_summaries(records, prompt, measure=measure) for measure in ("dice", "iou"))
    over_cases = summarise_labels(_by_case(records, prompt, "dice"))
    return {
        "mean_dice": round(mean_over_labels(dice_of), 3),
        **{name: value for name, value in over_cases.as_json().items() if name != "mean"},
        "per_label": {label: summary.as_json() for label, summary in dice_of.items()},
        "mean_iou": round(mean_over_labels(iou_of), 3),
        "iou_per_label": {label: summary.as_json() for label, summary in iou_of.items()},
    }


def label_summaries(records: Sequence[Record], prompt: str, *, measure: str = "dice") -> dict[str, Summary]:
    """Label -> summary over cases; a case's value is the mean over its records, of ``record[measure][prompt]``.

    The measure "iou" comes from the record's Dice.
    """
    return {label: summarise(cases.values()) for label, cases in _by_case(records, prompt, measure).items()}


def _by_case(records: Sequence[Record], prompt: str, measure: str) -> dict[str, dict[str, float]]:
    """Label -> case -> mean over the case's records."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        found.setdefault(record["label"], {}).setdefault(record["case"], []).append(_value(record, prompt, measure))
    return {label: {case: float(np.mean(scores)) for case, scores in cases.items()} for label, cases in found.items()}


def _value(record: Record, prompt: str, measure: str) -> float:
    return iou_of_dice(record["dice"][prompt]) if measure == "iou" else record[measure][prompt]
