"""``ssmsam adapt``: labelled slices -> a task checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ssmsam.api import FewShotSegmenter, SegmentationTask
from ssmsam.cli.command import Program, ProgressBar, Reads, Several, json_option, path_option
from ssmsam.cli.labelled_files import LabelledFile, examples_from, label_numbers, parse_names, read_labelled
from ssmsam.cli.options import METHODS, PLANES, model_options, names_option, on_cuda, together
from ssmsam.cluster.work import Model, segmenter_of
from ssmsam.fewshot.config import AdaptationConfig
from ssmsam.progress import Progress
from ssmsam.report import files_digest, record_run


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
