"""Tables of documents, rendered from recorded results.

What stands between ``<!-- table NAME -->`` and ``<!-- end table -->`` in a document is :data:`TABLES` ``[NAME]`` of
``benchmarks/*.json``. Every table says its protocol, how many patients there were, and a 95 % interval.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.report import Summary
from ssmsam_research.metrics import iou_of_dice, summarise_labels

DOCUMENTS = ("README.md", "docs/**/*.md", "benchmarks/README.md", "lib/ssmsam/models/weights/*.md")
"""Where tables may stand, below the root of the repository."""

_PLACE = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end table -->)", re.DOTALL)

Result = Mapping[str, Any]
Cell = Callable[[Result, "Row"], "Summary | str | None"]
"""One column: what it shows of a row's result."""


@dataclass(frozen=True)
class Row:
    """What a row shows: a method of a result. Without ``organs`` all labels that were measured."""

    text: str
    file: str
    method: str = ""
    organs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table as it is rendered; ``says`` is its protocol in a sentence."""

    says: str
    columns: Mapping[str, Cell]
    rows: Sequence[Row]
    digits: int = 1

    def render(self, folder: Path) -> str:
        """Markdown, from the results in ``folder``. Raises ValueError where a result or a method is missing."""
        results = {row.file: _read(folder / f"{row.file}.json") for row in self.rows}
        lines = [["", "n", *self.columns], ["---"] * (2 + len(self.columns))]
        for row in self.rows:
            cells = [cell(results[row.file], row) for cell in self.columns.values()]
            counts = {one.n for one in cells if isinstance(one, Summary)}
            if len(counts) > 1:
                raise ValueError(f"{row.text}: its columns are of {sorted(counts)} patients; make it two rows")
            lines.append([row.text, "".join(map(str, counts)), *map(self._cell, cells)])
        if not any(line[1] for line in lines[2:]):
            lines = [[line[0], *line[2:]] for line in lines]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return f"{self.says}\n\n{table}\n\n{_sources(results)}\n"

    def _cell(self, value: Summary | str | None) -> str:
        if not isinstance(value, Summary):
            return value or "–"
        text = f"{value.mean:.{self.digits}f}"
        if value.n < 2:
            return text
        low, high = (f"{bound:.{0 if self.digits == 1 else self.digits}f}" for bound in value.ci95)
        return f"{text} ({low} to {high})"


def rewrite(text: str, render: Callable[[str], str]) -> str:
    """A document with its tables made anew. Raises ValueError for a name that no table has."""
    return _PLACE.sub(lambda place: f"{place[1]}\n{render(place[2])}\n{place[3]}", text)


def update(root: Path, *, check: bool = False) -> list[Path]:
    """Make the tables of all documents below ``root`` anew; the documents that differed. ``check`` changes none."""
    rendered: dict[str, str] = {}

    def render(name: str) -> str:
        if name not in TABLES:
            raise ValueError(f"there is no table {name}; there are {', '.join(TABLES)}")
        if name not in rendered:
            rendered[name] = TABLES[name].render(root / "benchmarks")
        return rendered[name]

    changed = []
    for path in sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)}):
        if {"_build", "_generated"} & set(path.parts):
            continue
        before = path.read_text(encoding="utf-8")
        after = rewrite(before, render)
        if after != before:
            changed.append(path)
            if not check:
                path.write_text(after, encoding="utf-8")
    return changed


def _read(path: Path) -> Result:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no recorded result ({error})") from error


def _sources(results: Mapping[str, Result]) -> str:
    """Which records a table is from, with which weights, and when they were made."""
    weights: dict[str, None] = {}
    for result in results.values():
        for name, sha in sorted(result.get("manifest", {}).get("weights_sha256", {}).items()):
            weights[f"`{name}` {sha[:8]}"] = None
    days = sorted({result["manifest"]["date"][:10] for result in results.values() if "manifest" in result})
    names = ", ".join(f"`{name}`" for name in results)
    made = f"weights {', '.join(weights)}" if weights else ""
    return f"*{'; '.join(part for part in (names, made, ' to '.join(days[:: max(1, len(days) - 1)])) if part)}*"


# --- columns


def _summary(values: Iterable[tuple[str, str, float]], organs: Sequence[str]) -> Summary | None:
    """The mean over labels of means over cases, of (label, case, value); several of one label and case are averaged."""
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for label, case, value in values:
        if not organs or label in organs:
            table[label][case].append(value)
    means = {label: {case: float(np.mean(found)) for case, found in cases.items()} for label, cases in table.items()}
    return summarise_labels(means) if means else None


def _few_shot(result: Result, row: Row, *, setting: str, score: str, iou: bool = False) -> Summary | None:
    """Of *complete* and *crosspatient*."""
    if row.method not in result["methods"]:
        raise ValueError(f"{row.file} has no method {row.method}; it has {', '.join(result['methods'])}")
    records = (
        (one["label"], case["case"], iou_of_dice(one["dice"][score]) if iou else one["dice"][score])
        for case in result["per_case"]
        for one in (case["methods"][row.method] if "methods" in case else case["records"])
        if one["setting"] == setting and one.get("method", row.method) == row.method and score in one["dice"]
    )
    return _summary(records, row.organs)


def _clicks(result: Result, row: Row, *, prompt: str) -> Summary | None:
    """Of *clicks*: one model on one set, or several models on several sets."""
    if "methods" in result:
        found = result["methods"][row.method]["over_sets"]["slice"].get(prompt)
        return None if found is None else Summary(found["mean"], tuple(found["ci95"]), found["n"])
    records = (
        (one["label"], case["case"], one["dice"][prompt])
        for case in result["per_case"]
        for one in case["records"]
        if one["task"] == "slice"
    )
    return _summary(records, row.organs)


def _ratio(result: Result, row: Row, *, score: str, over: str = "foreground_random") -> Summary:
    """Of *active*: slices that a strategy needs over those of another."""
    found = result[f"slices_ratio_to_{over}"][score][row.method]
    return Summary(found["mean"], tuple(found["ci95"]), len(result["per_case"]))


def _after(result: Result, row: Row, *, slices: int) -> Summary:
    """Of *active*: Dice on the other slices after so many annotated ones."""
    found = result["curves"]["other slices"][row.method][str(slices)]
    return Summary(found["mean_dice"], tuple(found["ci95"]), len(result["per_case"]))


_FORMATS = {"n": "d", "correlation": ".2f", "bias": "+.1f", "mean_absolute_error": ".1f"}


def _reliability(result: Result, row: Row, *, key: str) -> str | None:
    """Of *active*: what the model expects against what is true; not an interval but a figure over so many masks."""
    value = result["reliability"].get(row.method, {}).get(key)
    return None if value is None else format(value, _FORMATS[key])


def _agreement(result: Result, row: Row, *, key: str) -> str:
    """Of the regression behind the Dice that users are told to expect."""
    return format(result["agreement"][row.method][key], _FORMATS[key])


def _registration(result: Result, row: Row, *, data: str) -> Summary:
    found = result["methods"][row.method]["sets"][data]["dice"]
    return Summary(found["mean"], tuple(found["ci95"]), found["n"])


def _registration_seconds(result: Result, row: Row) -> str:
    return f"{result['methods'][row.method]['over_sets']['seconds']:.1f}"


def _route(result: Result, row: Row, *, key: str) -> str:
    value = result["routes"][row.method][key]
    return str(value) if key == "n" else f"{value:.2g}" if value < 10 else f"{value:.0f}"


# --- what the tables are

_CT4 = ("liver", "spleen", "right kidney", "left kidney")
_MEAN = "Means over labels of means over patients, Dice in per cent (95 % bootstrap interval over the n patients)."


def _settings(columns: Mapping[str, tuple[str, str]], *, iou: bool = False) -> dict[str, Cell]:
    return {
        title: partial(_few_shot, setting=setting, score=score, iou=iou) for title, (setting, score) in columns.items()
    }


_PROMPTS: dict[str, Cell] = {
    ("tight box" if prompt == "box" else prompt): partial(_clicks, prompt=prompt)
    for prompt in ("1 click", "3 clicks", "5 clicks", "10 clicks", "box")
}
_FIVE = _settings(
    {
        "ends given": ("ends given, 5 slices", "other slices"),
        "ends unknown": ("ends unknown, 5 slices", "other slices"),
    }
)
_FIVE_GIVEN = _settings({"ends given": ("ends given, 5 slices", "other slices")})
_NINE = _settings(
    {
        "5 slices, ends given": ("ends given, 5 slices", "other slices"),
        "9 slices, ends given": ("ends given, 9 slices", "other slices"),
        "5 slices, ends unknown": ("ends unknown, 5 slices", "other slices"),
    }
)
_OTHERS = _settings({"extent known": ("known extent", "volume"), "nothing given": ("whole volume, 5 slices", "volume")})
_COMPLETE = (
    "Protocol *complete*: some slices of an organ are annotated in the volume itself, Dice on all its other slices. "
    "*Ends given*: the first, the last and equally spaced ones between; *ends unknown*: from 10 to 90 % of the extent. "
)
_CROSSPATIENT = (
    "Protocol *crosspatient*: an organ is annotated on slices of one other patient, Dice over the whole volume of this "
    "one. *Extent known*: three slices, and the organ's first and last slice are told; "
    "*nothing given*: five slices and no word about this patient. "
)
_CLICKS = (
    "Protocol *clicks*: a simulated annotator clicks where a slice's mask is most wrong, or draws a tight box; Dice of "
    "the slice. "
)


def _against(file: str, what: str, methods: Mapping[str, str], organs: tuple[str, ...] = ()) -> list[Row]:
    return [Row(f"{what}: {text}", file, method, organs) for method, text in methods.items()]


_LITE = {"interpolation": "shape interpolation", "fewshot_prompted": "**`fewshot`**"}
_LINEAR = {"linear": "logistic regression on the same features"}
_CARRIED = {**_LINEAR, "carried": "registration alone", "fewshot_prompted": "**`fewshot`**"}
_SMALL = {
    "interpolation": "shape interpolation",
    "fewshot_prompted": "`fewshot`",
    "fewshot": "`fewshot`, 30 gradient steps",
}
_KNOWN = {"interpolation": "shape interpolation", "fewshot_prompted": "`fewshot`"}
_COMPARED = {"medsam_lite": "**`medsam_lite`**", "medsam_lite published": "as published", "small": "`small`"}
_REST = {"interpolation": "interpolation", "first proposal": "first proposal", "after adaptation": "after adaptation"}
_STRATEGIES = ("next_slices", "foreground_random", "uncertainty", "representative", "random")
_MODULES = {
    "fewshot_prompted": "`fewshot`",
    "ssm_prompted": "`ssm_sam`",
    "ssm_without_sampling_prompted": "without self-sampling",
    "ssm_without_attention_prompted": "without mask attention",
    "ssm_without_matching_prompted": "without matching",
}

_OF_ESTIMATES = {"masks": "n", "correlation": "correlation", "bias": "bias", "mean error": "mean_absolute_error"}
"""Column -> its key in a record."""

TABLES: dict[str, Table] = {
    "headline": Table(
        "Five annotated slices of an organ, the others proposed (protocol *complete*: the organ's first and last "
        f"slice among the five, or not), `medsam_lite` on a CPU, no gradient steps. {_MEAN} Our training had none of "
        "these patients, and no left atrium at all.",
        _FIVE,
        [
            *_against("complete_medsam_lite_mr", "Abdominal MR, 4 organs", _LITE),
            *_against("complete_medsam_lite_ct", "Abdominal CT, 13 organs", _LITE),
            *_against("complete_medsam_lite_left_atrium", "Left atrium, MR", _LITE),
        ],
    ),
    "clicks-small": Table(
        _CLICKS + _MEAN,
        _PROMPTS,
        [
            Row("Abdominal CT, 13 organs", "clicks_abdomen_ct"),
            Row("Abdominal MR, 4 organs", "clicks_abdomen_mr"),
        ],
    ),
    "clicks-medsam-lite": Table(
        _CLICKS
        + "CT on slices at 30, 50 and 70 % of an organ's extent, MR at 10 to 90 %. Of eight sets that no training "
        "of ours saw, n counts the sets, of 8 images each. Intervals are over the n.",
        _PROMPTS,
        [
            *_against("clicks_medsam_lite_ct", "CT, 13 organs", _COMPARED),
            *_against("clicks_medsam_lite_mr", "MR, 4 organs", _COMPARED),
            *_against("clicks_medsam_lite_left_out", "Eight other sets", _COMPARED),
        ],
    ),
    "complete-small": Table(
        _COMPLETE + _MEAN + " `small`.",
        _NINE,
        [
            *_against("complete_abdomen_mr", "MR, 4 organs", _SMALL),
            *_against("complete_abdomen_ct", "CT, 4 organs", _KNOWN, _CT4),
            *_against("complete_abdomen_ct", "CT, 13 organs", _KNOWN),
        ],
    ),
    "complete-medsam-lite": Table(
        _COMPLETE + _MEAN + " `medsam_lite`, no gradient steps.",
        _NINE,
        [
            *_against("complete_medsam_lite_mr", "MR, 4 organs", {**_LINEAR, **_LITE}),
            *_against("complete_medsam_lite_ct", "CT, 13 organs", {**_LINEAR, **_LITE}),
            *_against("complete_medsam_lite_left_atrium", "Left atrium", {**_LINEAR, **_LITE}),
        ],
    ),
    "crosspatient-small": Table(
        _CROSSPATIENT + _MEAN + " Two support patients in turn, `small`.",
        {
            **_OTHERS,
            "the same, 1 slice": partial(_few_shot, setting="whole volume, 1 slice", score="volume"),
            "10 slices": partial(_few_shot, setting="whole volume, 10 slices", score="volume"),
        },
        [
            Row("Abdominal CT, 4 organs", "crosspatient_abdomen_ct", "fewshot_prompted"),
            Row("Abdominal MR, 4 organs", "crosspatient_abdomen_mr", "fewshot_prompted"),
        ],
    ),
    "crosspatient-medsam-lite": Table(
        _CROSSPATIENT + _MEAN + " One support patient, or five where it says so; `medsam_lite`, no gradient steps.",
        _OTHERS,
        [
            *_against("crosspatient_medsam_lite_ct", "CT, 4 organs", _CARRIED),
            *_against("crosspatient_medsam_lite_mr", "MR, 4 organs", _CARRIED),
            *_against("crosspatient_medsam_lite_left_atrium", "Left atrium", _CARRIED),
            *_against(
                "crosspatient_medsam_lite_left_atrium_5",
                "Left atrium, five patients",
                {**_LINEAR, "fewshot_prompted": "**`fewshot`**"},
            ),
        ],
    ),
    "crosspatient-baselines": Table(
        _CROSSPATIENT
        + _MEAN
        + " `small`. `fewshot` and registration with two support patients in turn, the others with a "
        "third one: compare the order, not the points.",
        _OTHERS,
        [
            row
            for where, what in (("mr", "MR"), ("ct", "CT"))
            for row in (
                *_against(f"crosspatient_abdomen_{where}", what, {"fewshot_prompted": "`fewshot`"}),
                *_against(f"carried_crosspatient_abdomen_{where}", what, {"carried": "registration alone"}),
                *_against(
                    f"baselines_crosspatient_abdomen_{where}",
                    what,
                    {
                        "unet_20": "U-Net, 20 steps",
                        "linear": "linear classifier on frozen embeddings",
                        "prototypes": "prototypes on frozen embeddings",
                    },
                ),
            )
        ],
    ),
    "rest": Table(
        "Protocol *complete over REST*: five slices with both ends are submitted to the real server, nothing is said "
        f"of what lies beyond. {_MEAN} `small` where no other encoder is named.",
        _FIVE_GIVEN,
        [
            *_against("rest_complete_abdomen_mr", "MR, liver and spleen", _REST),
            *_against("rest_complete_abdomen_ct", "CT, liver and spleen", _REST),
            *_against("rest_complete_left_atrium", "Left atrium", _REST),
            *_against("rest_complete_medsam_lite_left_atrium", "Left atrium, `medsam_lite`", _REST),
        ],
    ),
    "active": Table(
        "Protocol *active*: slices that a strategy needs for the best Dice that random slices with the organ "
        "(`foreground_random`) reach, over the number that these need; less than 1 is fewer. The mean over labels (95 "
        "% bootstrap interval over the n patients), up to six slices.",
        {score: partial(_ratio, score=score) for score in ("other slices", "whole volume")},
        [
            Row("MR, 4 organs, two first slices, `small`: `next_slices`", "active_abdomen_mr", "next_slices"),
            Row("CT, 4 organs, two first slices, `small`: `next_slices`", "active_abdomen_ct", "next_slices"),
            *_against(
                "active_medsam_lite_left_atrium",
                "Left atrium, `medsam_lite`",
                {
                    "next_slices": "`next_slices`",
                    "extent_interval": "a fixed interval, told the extent",
                    "extent_bisection": "bisection, told the extent",
                },
            ),
        ],
        digits=2,
    ),
    "active-left-atrium": Table(
        "Protocol *active*: Dice on the other slices after so many annotated ones, one organ at a time, one first "
        "slice (95 % bootstrap interval over the n patients). Left atrium, `medsam_lite`.",
        {f"{n} slice{'s'[: n > 1]}": partial(_after, slices=n) for n in range(1, 7)},
        [
            Row(f"`{name}`{more}", "active_medsam_lite_left_atrium", name)
            for name, more in (
                ("next_slices", ""),
                ("foreground_random", ""),
                ("extent_interval", ", told the extent"),
                ("extent_bisection", ", told the extent"),
            )
        ],
    ),
    "active-strategies": Table(
        "Protocol *active*: Dice on the other slices after so many annotated ones, one first slice (95 % bootstrap "
        "interval over the n patients). MR, 4 organs, `small`.",
        {f"{n} slice{'s'[: n > 1]}": partial(_after, slices=n) for n in range(1, 7)},
        [Row(f"`{name}`", "active_strategies_abdomen_mr", name) for name in _STRATEGIES],
    ),
    "estimates": Table(
        "The Dice that a user is told to expect of a mask against its true Dice on slices that nobody annotated, in "
        "points. Protocol: proposals of `medsam_lite` (an eighth: `small`) judged by a regression that was fitted "
        "without the set. *Familiar*: organs, and the decoder as it is; *unfamiliar*: targets that are no organ, or a "
        "decoder made to see badly. *Judged*: by the packaged regression, looked at once. *Bias* above 0: too much is "
        "expected. No interval.",
        {title: partial(_agreement, key=key) for title, key in _OF_ESTIMATES.items()},
        [
            Row(text, "training/volume_head_estimate", key)
            for text, key in (
                ("a fifth of the volumes left out", "volumes left out, all"),
                ("a whole set left out", "sets left out, all"),
                ("a whole set left out, familiar", "sets left out, familiar"),
                ("a whole set left out, unfamiliar", "sets left out, unfamiliar"),
                ("MR left out, familiar", "set left out: chaos_t2_mr, familiar"),
                ("MR left out, unfamiliar", "set left out: chaos_t2_mr, unfamiliar"),
                ("CT left out, familiar", "set left out: sabs_ct, familiar"),
                ("CT left out, unfamiliar", "set left out: sabs_ct, unfamiliar"),
                ("hippocampus left out, familiar", "set left out: hippocampus_mr, familiar"),
                ("hippocampus left out, unfamiliar", "set left out: hippocampus_mr, unfamiliar"),
                (
                    "lesions and spinal cord left out (the decoder was not trained on them)",
                    "set left out: lesions and spinal cord",
                ),
                ("microscopy left out", "set left out: microscopy"),
                ("sets left out, one slice annotated", "sets left out, one slice"),
                ("sets left out, two or three", "sets left out, two or three slices"),
                ("sets left out, four or more", "sets left out, four slices and more"),
                ("so many annotated slices left out", "numbers of slices left out, all"),
                ("judged: MR patients 20-22", "judged: MR patients 20-22"),
                ("judged: CT patients 16-19", "judged: CT patients 16-19"),
                ("judged: left atrium, one slice at random", "judged: left atrium, one slice at random"),
                ("judged: left atrium, three at random", "judged: left atrium, three slices at random"),
                (
                    "judged: left atrium, three across it",
                    "judged: left atrium, three slices from 10 to 90 % of the organ",
                ),
                ("judged: left atrium, five with both ends", "judged: left atrium, five slices with both ends"),
            )
        ],
    ),
    "estimates-of-cells": Table(
        "Protocol *active*: the Dice that the cells of a mask expect of themselves (not what users are told), and that "
        "on annotated slices held out, against the true Dice on the slices that nobody annotated, over all masks of a "
        "run, in points. Masks of one patient are not independent, so there is no interval.",
        {title: partial(_reliability, key=key) for title, key in _OF_ESTIMATES.items()},
        [
            Row(f"{what}: {text}", file, method)
            for file, what in (
                ("active_abdomen_mr", "MR, `small`"),
                ("active_abdomen_ct", "CT, `small`"),
                ("active_medsam_lite_left_atrium", "left atrium, `medsam_lite`"),
            )
            for method, text in (("volume_dice", "by the cells"), ("held_out_dice", "by slices held out"))
        ],
    ),
    "points": Table(
        "Protocol *complete* with five labelled slices (ends given) against SAM's own prompts: one, three or five "
        "simulated clicks on *every* slice of the organ. IoU in per cent on all other slices within the ends (95 % "
        "bootstrap interval over the n patients), same weights, `small`.",
        _settings({"IoU": ("ends given, 5 slices", "other slices in range")}, iou=True),
        [
            row
            for where in ("mr", "ct")
            for row in _against(
                f"points_complete_abdomen_{where}",
                f"{where.upper()}, 4 organs",
                {
                    "fewshot_prompted": "5 labelled slices",
                    "points_1": "1 point a slice",
                    "points_3": "3 points a slice",
                    "points_5": "5 points a slice",
                },
            )
        ],
    ),
    "ssm-ablation": Table(
        _COMPLETE
        + _MEAN
        + " Five slices; modules are switched off in one network that was trained with each of them left "
        "out now and then. `small`.",
        _FIVE,
        [
            *_against(
                "ssm_ablation_abdomen_mr",
                "MR",
                {**_MODULES, "ssm_nearest_mask_prompted": "the nearest mask in place of the interpolated shape"},
            ),
            *_against(
                "ssm_meta_complete_abdomen_mr",
                "MR",
                {
                    "fewshot": "`fewshot`, 30 gradient steps",
                    "ssm_prompted": "`ssm_sam` after 70 steps of meta-learning",
                    "ssm": "the same, 30 gradient steps",
                },
            ),
            *_against(
                "ssm_ablation_left_atrium",
                "left atrium",
                {**_MODULES, "ssm_without_modules_prompted": "without all modules"},
            ),
        ],
    ),
    "setting1-crosspatient": Table(
        _CROSSPATIENT
        + _MEAN
        + " Two support patients in turn, weights that were trained without any label of these organs (not shipped).",
        _OTHERS,
        [
            Row("MR, 4 organs", "setting1_crosspatient_abdomen_mr", "fewshot_prompted"),
            Row("CT, 4 organs", "setting1_crosspatient_abdomen_ct", "fewshot_prompted"),
        ],
    ),
    "setting1-complete": Table(
        _COMPLETE + _MEAN + " Five slices, weights that were trained without any label of these organs and without the "
        "last three sets (not shipped).",
        _FIVE_GIVEN,
        [
            row
            for where, what in (
                ("abdomen_mr", "MR, 4 organs"),
                ("abdomen_ct", "CT, 4 organs"),
                ("hippocampus", "hippocampus, 2 parts, MR"),
                ("lesions", "lesions of brain and breast, MR"),
                ("cord", "spinal cord, MR"),
            )
            for row in _against(f"setting1_complete_{where}", what, _KNOWN)
        ],
    ),
    "registration": Table(
        "Protocol *registration*: masks of one training patient laid on another by registration alone. Mean Dice over "
        "labels in per cent (95 % bootstrap interval over the n pairs), and processor seconds of one direction.",
        {
            "MR, 4 organs": partial(_registration, data="chaos_t2_mr"),
            "CT, 13 organs": partial(_registration, data="sabs_ct"),
            "hippocampus, 2 parts": partial(_registration, data="hippocampus_mr"),
            "seconds": _registration_seconds,
        },
        [
            Row("ours", "registration_training_pairs", "ours"),
            Row("our start, convexAdam 0.2.0", "registration_training_pairs", "our start, convexAdam"),
            Row("SimpleITK 2.5.7, affine alone", "registration_training_pairs", "SimpleITK affine"),
            Row("elastix 0.25.4, two of the pairs", "registration_training_pairs_elastix", "elastix"),
        ],
    ),
    "load": Table(
        "Protocol *load*: twenty annotators at one server for two minutes on the sample volumes, `medsam_lite`, two "
        "cores for server and annotators together, one training beside. Seconds; one run, so there is no interval.",
        {
            "requests": partial(_route, key="n"),
            **{name: partial(_route, key=name) for name in ("p50", "p95", "p99")},
        },
        [
            Row(text, "load_samples", route)
            for text, route in (
                ("click on a slice", "POST /infer/sam_2d"),
                ("accept a slice", "POST /infer/accept_slice"),
                ("submit a slice", "PUT /datastore/label"),
                ("next slices", "POST /activelearning/next_slices"),
                ("`fewshot`, the rest of a volume", "POST /infer/fewshot"),
                ("`/info/`", "GET /info/"),
            )
        ],
    ),
}
"""Name -> table."""
