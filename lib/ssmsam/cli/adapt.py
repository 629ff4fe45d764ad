"""``ssmsam adapt``: labelled slices -> a task checkpoint.

Labelled slices are an image, a label map on its grid, and which of its slices are truth.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ssmsam.api import Example, FewShotSegmenter, SegmentationTask
from ssmsam.cli.command import Program, ProgressBar, Reads, Several, json_option, path_option
from ssmsam.cli.options import METHODS, PLANES, model_options, names_option, on_cuda, together
from ssmsam.cluster.work import Model, segmenter_of
from ssmsam.fewshot.config import AdaptationConfig
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.progress import Progress
from ssmsam.reading import read_volume
from ssmsam.report import files_digest, record_run
from ssmsam.volume.geometry import FILES_MM, Plane
from ssmsam.volume.volume import Volume

_SUPPORT = re.compile(r"(?P<image>[^:]+):(?P<labels>[^:]+)(?::(?P<slices>[\d,:-]+))?")
_RANGE = re.compile(r"(?P<first>\d+)(?:-(?P<last>\d+)(?::(?P<step>\d+))?)?")


@dataclass(frozen=True)
class LabelledFile:
    """An image's file or DICOM folder, its label map's file, and the slices that are truth.

    ``slices`` None stands for all slices that hold a label. Slices are counted from 0 along the plane of work.
    """

    image: Path
    labels: Path
    slices: tuple[int, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> LabelledFile:
        """``IMAGE:LABEL`` or ``IMAGE:LABEL:slices``, as in ``ct.nii.gz:organs.nii.gz:10,20-40:5``.

        Raises ValueError for anything else.
        """
        found = _SUPPORT.fullmatch(text)
        if found is None:
            raise ValueError(
                "a support is IMAGE:LABEL or IMAGE:LABEL:slices, as in "
                f"ct.nii.gz:organs.nii.gz:10,20-40:5, got {text!r}"
            )
        slices = found["slices"]
        return cls(Path(found["image"]), Path(found["labels"]), None if slices is None else parse_slices(slices))


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """A :class:`LabelledFile` that was read: ``labels`` (slices, rows, columns) whole numbers on the image's grid."""

    name: str
    image: Volume
    labels: np.ndarray
    slices: tuple[int, ...] | None

    def numbers(self) -> list[int]:
        """The label numbers that the map holds, ascending, without 0."""
        return [int(number) for number in np.unique(self.labels) if number]

    def annotated(self, number: int, plane: Plane) -> list[int]:
        """The slices that are truth for a label. An empty one counts only when it is listed, and only for labels that
        the map holds elsewhere: what the map never draws was not looked for."""
        drawn = plane.stack(self.labels == number).any(axis=(1, 2))
        if self.slices is None or not drawn.any():
            return np.flatnonzero(drawn).tolist()
        return sorted(set(self.slices))


def parse_slices(text: str) -> tuple[int, ...]:
    """Slice numbers from ``10,20-40:5``: single ones and ranges with both ends, with a step after a colon.

    Ascending, each once. Raises ValueError for anything else.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last, step = (int(found[n] or -1) for n in ("first", "last", "step")) if found else (1, 0, 0)
        if last == -1:
            last = first
        if last < first or step == 0:
            raise ValueError(f"slices are numbers and ranges such as 10,20-40:5, got {part!r} in {text!r}")
        numbers.update(range(first, last + 1, max(1, step)))
    return tuple(sorted(numbers))


def parse_names(texts: Sequence[str]) -> dict[str, int]:
    """Label names and numbers from ``NAME=NUMBER``. Raises ValueError for anything else, and for one given twice."""
    names: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal() or not int(number):
            raise ValueError(f"a label is named by NAME=NUMBER with a number from 1, as in liver=1, got {text!r}")
        if name in names or int(number) in names.values():
            raise ValueError(f"{text!r} names a label or a number for the second time")
        names[name] = int(number)
    return names


def read_labelled(file: LabelledFile, *, plane: str | None = None) -> LabelledImage:
    """Read image and label map. Raises UnreadableVolume, and ValueError when they do not belong together.

    ``plane`` is that of :meth:`Plane.named`.
    """
    image, labels = read_volume(file.image), read_volume(file.labels)
    if not image.grid.matches(labels.grid, tolerance_mm=FILES_MM):
        raise ValueError(
            f"{file.labels.name} {labels.shape} does not lie on the grid of {file.image.name} {image.shape}: "
            "resample the label map to the image, then run again"
        )
    numbers = np.rint(labels.array)
    if (numbers != labels.array).any() or numbers.min() < 0:
        raise ValueError(f"{file.labels.name} is not a label map: it holds values other than 0, 1, 2, ...")
    count = Plane.named(plane, image.grid).count(image.grid)
    beyond = [index for index in file.slices or () if index >= count]
    if beyond:
        raise ValueError(f"{file.image.name} has the slices 0 to {count - 1} in this plane, but {beyond[0]} is listed")
    return LabelledImage(file.image.name, image, numbers.astype(np.int64), file.slices)


def label_numbers(images: Sequence[LabelledImage], names: Mapping[str, int] | None = None) -> dict[str, int]:
    """The labels to learn: those named, else every number found, called "label 1", "label 2", ...

    Raises :class:`NothingToLearn` for a named one that no map holds.
    """
    found = sorted({number for image in images for number in image.numbers()})
    if not names:
        return {f"label {number}": number for number in found}
    missing = [f"{name}={number}" for name, number in names.items() if number not in found]
    if missing:
        raise NothingToLearn(
            f"no label map holds {', '.join(missing)}; the numbers found are {', '.join(map(str, found)) or 'none'}: "
            "correct --names, or draw the label"
        )
    return dict(names)


def examples_from(
    images: Sequence[LabelledImage], numbers: Mapping[str, int], *, plane: str | None = None
) -> dict[str, list[Example]]:
    """The labelled slices of several images, by label. ``numbers`` (label -> number) mean the same in all of them."""
    examples: dict[str, list[Example]] = {label: [] for label in numbers}
    for image in images:
        work = Plane.named(plane, image.image.grid)
        stack = work.stack(image.labels)
        for label, number in numbers.items():
            examples[label] += [
                Example(image.image, index, stack[index] == number, image.name)
                for index in image.annotated(number, work)
            ]
    return examples


def support_option(*, required: bool) -> Any:
    """``--support``: labelled slices."""
    return click.option(
        "--support",
        cls=Several,
        type=Reads(LabelledFile.parse, "IMAGE:LABEL"),
        required=required,
        metavar="IMAGE:LABEL[:SLICES]...",
        help="An image, a label map on its grid, and the slices that are truth, as in 10,20-40:5 (counted from 0; "
        "default: every slice that holds a label). An empty slice counts only when it is listed.",
    )


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What is learned of labelled slices, and how."""

    names: Sequence[str]
    method: str | None
    plane: str | None
    steps: int | None
    budget_s: float
    seed: int


learning_options = together(
    "learning",
    Learning,
    names_option,
    click.option("--method", type=click.Choice(METHODS), help="Default: fewshot, or that of the task."),
    click.option("--plane", type=click.Choice(PLANES), help="Work on slices of this plane. Default: as stored."),
    click.option("--steps", type=int, help="Gradient steps of adaptation. Default: none for fewshot."),
    click.option(
        "--budget-s",
        type=float,
        default=AdaptationConfig.budget_s,
        show_default=True,
        help="Most seconds of steps.",
    ),
    click.option("--seed", type=int, default=0, show_default=True),
)
"""Names, method, plane, and how long to adapt."""


@click.command(cls=Program, stopped="no task was written")
@support_option(required=True)
@path_option("--out", required=True, metavar="FILE", help="The file to write, .safetensors.")
@learning_options
@model_options
@json_option
def command(
    *, support: Sequence[LabelledFile], learning: Learning, out: Path, model: Model, record: Path | None
) -> None:
    """Learn labels from slices and keep what was learned in a small file, a task checkpoint.

    \b
    ssmsam adapt --support ct.nii.gz:organs.nii.gz:10,20-40:5 --names liver=1 spleen=2 --out organs.safetensors

    `ssmsam segment --task FILE` then segments any other volume; a server takes the file too. The file holds no
    image, no mask and no id, and may be given away; what lies beside it (FILE.json) and in the cache is for this
    machine.
    """
    if out.suffix != ".safetensors":
        raise click.UsageError(f"--out {out.name}: the name of a task's file ends in .safetensors.")
    if record == out.with_suffix(".json"):
        raise click.UsageError(f"--json {record.name}: what belongs to the task is written there, choose another name.")
    segmenter = segmenter_of(model, learning.method or METHODS[0])
    started = time.perf_counter()
    with ProgressBar() as progress:
        task = learned(segmenter, support, learning, progress)
        task.save(out, progress=progress)
    seconds = time.perf_counter() - started
    tell(task)
    print(f"{out} ({out.stat().st_size / 1e6:.1f} MB) after {seconds:.1f} s")
    done = {"head": out.name, "card": dict(task.card), "seconds": round(seconds, 2)}
    record_use(
        record, done, task, segmenter, sources(support), protocol="adapt", device=model.device, seed=learning.seed
    )


def learned(
    segmenter: FewShotSegmenter, support: Sequence[LabelledFile], learning: Learning, progress: Progress
) -> SegmentationTask:
    """Read the support and adapt to it."""
    plane = learning.plane
    images = [read_labelled(file, plane=plane) for file in support]
    numbers = label_numbers(images, parse_names(learning.names))
    examples = examples_from(images, numbers, plane=plane)
    how = {name: getattr(learning, name) for name in ("plane", "steps", "budget_s", "seed")}
    return segmenter.adapt(examples, numbers=numbers, progress=progress, **how)


def tell(task: SegmentationTask) -> None:
    """What was learned, and how good it is on slices that were held out."""
    for label, slices in task.learned_from.items():
        estimate = task.card["dice_estimate"].get(label)
        said = "no estimate, for that takes more slices that show it, and adaptation"
        if estimate:
            before, after = 100 * estimate["before"], 100 * estimate["after"]
            said = f"Dice on slices held out {before:.1f} % before adaptation, {after:.1f} % after"
        print(f"{label}: {slices} slices; {said}")
    if not task.card["adapted"]:
        print("the decoder stays as it was: the slices prompt it without adaptation")


def sources(support: Sequence[LabelledFile]) -> list[Path]:
    return [path for file in support for path in (file.image, file.labels)]


def record_use(
    record: Path | None,
    done: dict[str, Any],
    task: SegmentationTask,
    segmenter: FewShotSegmenter,
    paths: Sequence[Path],
    *,
    protocol: str,
    device: str | None,
    seed: int,
) -> None:
    """Write what was done with a task: its data, weights and settings; no path of this machine."""
    if record is None:
        return
    files = [path for path in paths if path.is_file()]
    record_run(
        record,
        done,
        protocol=protocol,
        data={"files": [path.name for path in files], "sha256": files_digest(files)},
        weights={segmenter.encoder: segmenter.weights_sha256},
        settings=task.card.get("settings"),
        device=on_cuda(device),
        seed=seed,
    )
