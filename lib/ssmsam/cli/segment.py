"""``ssmsam segment``: masks of a volume by labelled slices of it or of other volumes, without a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np

from ssmsam.api import Segmentation, task_card, write_volume
from ssmsam.cli.adapt import (
    LabelledFile,
    Learning,
    learned,
    learning_options,
    record_use,
    sources,
    support_option,
)
from ssmsam.cli.command import FINE, Program, ProgressBar, json_option, path_option
from ssmsam.cli.options import METHODS, EngineOptions, engine_options, listed, model_options, recorded, worked_on
from ssmsam.cli.pictures import Panel, draw_overlays
from ssmsam.cluster import Model, SegmentStudy
from ssmsam.cluster.work import segmenter_of, summary
from ssmsam.cluster.work import task_file as task_of_file
from ssmsam.ops import evenly_spaced
from ssmsam.reading import read_volume
from ssmsam.service.identifiers import VOLUME_SUFFIXES
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume, reoriented

PANELS = 6
"""Slices in the picture of a result: a guess of what can be taken in at once."""


@click.command(cls=Program, stopped="no mask was written. Slices that were embedded are kept")
@support_option(required=False)
@path_option("--task", "--head", "task_file", metavar="FILE", help="What `ssmsam adapt` wrote, in place of --support.")
@path_option("--query", metavar="IMAGE", help="A file or a DICOM folder.")
@click.option("--studies", metavar="STUDIES", help="A whole cohort in its place, as for `ssmsam embed`.")
@path_option("--out", required=True, metavar="FILE", help="Label map to write; a folder for a cohort.")
@click.option("--to-archive", is_flag=True, help="Of a cohort: store a DICOM SEG where the series came from.")
@path_option("--picture", metavar="PNG", help="Draw the masks over some slices.")
@learning_options
@engine_options
@model_options
@json_option
def command(
    *,
    support: Sequence[LabelledFile],
    task_file: Path | None,
    query: Path | None,
    studies: str | None,
    out: Path,
    picture: Path | None,
    learning: Learning,
    record: Path | None,
    to_archive: bool,
    engine: EngineOptions,
    model: Model,
) -> int:
    """Segment a volume by labelled slices of it or of other volumes; or a whole cohort by a task.

    \b
    ssmsam segment --support ct.nii.gz:liver.nii.gz:10,20-40:5 --query ct.nii.gz --out whole_liver.nii.gz
    ssmsam segment --task organs.safetensors --query other.nii.gz --out other_organs.nii.gz
    ssmsam segment --task organs.safetensors --studies FOLDER --out masks --workers 2

    What was annotated in the query volume itself stays as it is, voxel by voxel. What is finished of a cohort is not
    done again.
    """
    if bool(support) == bool(task_file):
        raise click.UsageError("give either --support or --task.")
    if task_file and learning.names:
        raise click.UsageError("--names belongs to --support: a task knows its labels.")
    if (query is None) == (studies is None):
        raise click.UsageError("give either --query or --studies.")
    if studies is not None:
        if task_file is None:
            raise click.UsageError("--studies needs --task: make one of the labelled slices with `ssmsam adapt`.")
        work = SegmentStudy(
            model=model,
            **task_of_file(task_file),
            method=method_of(task_file, learning.method),
            out=str(out.absolute()),
            to_archive=to_archive,
        )
        cohort = worked_on(listed(studies), work, out=out, engine=engine)
        result = {"studies": [asdict(one) for one in cohort.outcomes]}
        cases = {"cases": [one.study for one in cohort.outcomes]}
        return recorded(cohort, work, record, result, data=cases, weights={"task": work.task_sha256})
    assert query is not None
    if engine.workers > 1 or engine.cluster or to_archive:
        raise click.UsageError("--workers, --cluster and --to-archive belong to --studies.")
    if not out.name.lower().endswith(VOLUME_SUFFIXES):
        raise click.UsageError(f"--out {out.name}: the name has to end in {', '.join(VOLUME_SUFFIXES)}.")
    plane = learning.plane
    segmenter = segmenter_of(model, method_of(task_file, learning.method))
    volume = read_volume(query)
    started = time.perf_counter()
    with ProgressBar() as progress:
        task = segmenter.load_task(task_file) if task_file else learned(segmenter, support, learning, progress)
        found = task.segment(volume, plane=plane, progress=progress)
    seconds = time.perf_counter() - started
    if task_file and not task.exact:
        print(f"{task_file.name}: its labelled slices are not on this machine; masks are less exact than with them")
    write_volume(found, out)
    plane_of_work = Plane.named(plane or task.card.get("plane"), volume.grid)
    summaries = {
        label: {
            **summary(found, label, plane_of_work),
            "voxels": int(found.mask[label].sum()),
            "presence": found.presence[label].round(3).tolist(),
            "uncertainty": found.uncertainty[label].round(3).tolist(),
        }
        for label in found.labels
    }
    for label, one in summaries.items():
        print(f"{label} ({found.numbers[label]}): {one['millilitres']:.1f} ml on {one['slices']} slices")
    print(f"{out} after {seconds:.1f} s")
    if picture:
        print(draw_overlays(picture, panels(found, volume, plane_of_work), title=", ".join(found.labels)))
    files = [query, *sources(support), *([task_file] if task_file else [])]
    done = {"query": query.name, "labels": summaries, "seconds": round(seconds, 2), "card": dict(task.card)}
    record_use(record, done, task, segmenter, files, protocol="segment", device=model.device, seed=learning.seed)
    return FINE


def method_of(task_file: Path | None, chosen: str | None) -> str:
    """The method of the options, or that of the task to be used. Raises ValueError when they differ."""
    if task_file is None:
        return chosen or METHODS[0]
    found = task_card(task_file)["method"]
    if chosen and chosen != found:
        raise ValueError(f"{task_file.name} is a task of {found}, not of {chosen}: leave --method out")
    return found


def panels(found: Segmentation, volume: Volume, plane: Plane) -> list[Panel]:
    """Slices spread evenly over those on which something was found."""
    scale = recipe_for(volume).scale(volume)
    drawn = np.flatnonzero(plane.stack(found.label_map.array).any(axis=(1, 2)))
    pictures = []
    for index in [int(drawn[n]) for n in evenly_spaced(len(drawn), PANELS)] or [0]:
        image, pixel_mm = as_read(volume.array, volume, plane, index)
        numbers, _ = as_read(found.label_map.array, volume, plane, index)
        first, *others = [numbers == number for number in found.numbers.values()]
        pictures.append(Panel(f"slice {index}", scale.apply(image), first, pixel_mm=pixel_mm, others=others))
    return pictures


def as_read(array: np.ndarray, volume: Volume, plane: Plane, index: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A slice the way radiologists look at it, front or head up, and its millimetres per pixel along (y, x)."""
    alone = plane.unstack(plane.stack(array)[index : index + 1])
    turned = reoriented(Volume(alone, volume.affine), "LPS")
    axis = int(np.argmin(turned.shape))
    if axis:
        turned = reoriented(turned, "LPI")
    return Plane(axis).stack(turned.array)[0], Plane(axis).pixel_mm(turned.grid)
