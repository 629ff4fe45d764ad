"""``ssmsam segment``: masks of a volume by labelled slices of it or of other volumes, without a server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from ssmsam.api import Segmentation, task_card, write_volume
from ssmsam.cli.adapt import adaptation_options, how, learned, sources, support_option
from ssmsam.cli.command import FINE, Program, ProgressBar, json_option, path_option
from ssmsam.cli.engine import engine_options, listed, model_of, status_of, worked_on
from ssmsam.cli.labelled_files import LabelledFile
from ssmsam.cli.options import METHODS, loaded, model_options, on_cuda, store_gb_option
from ssmsam.cli.pictures import Panel, draw_overlays
from ssmsam.cluster import SegmentStudy
from ssmsam.cluster.work import task_file as task_of_file
from ssmsam.ops import evenly_spaced
from ssmsam.reading import read_volume
from ssmsam.report import record_run
from ssmsam.volume.geometry import Plane
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume, reoriented

ENDINGS = (".nii.gz", ".nii", ".nrrd")
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
@adaptation_options
@engine_options
@model_options
@store_gb_option
@json_option
def command(
    *,
    support: Sequence[LabelledFile],
    task_file: Path | None,
    query: Path | None,
    studies: str | None,
    out: Path,
    picture: Path | None,
    names: Sequence[str],
    method: str | None,
    plane: str | None,
    steps: int | None,
    budget_s: float,
    seed: int,
    record: Path | None,
    store_gb: float,
    to_archive: bool,
    workers: int,
    cluster: str | None,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    **model: Any,
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
    if task_file and names:
        raise click.UsageError("--names belongs to --support: a task knows its labels.")
    if (query is None) == (studies is None):
        raise click.UsageError("give either --query or --studies.")
    if studies is not None:
        if task_file is None:
            raise click.UsageError("--studies needs --task: make one of the labelled slices with `ssmsam adapt`.")
        engine = {"workers": workers, "cluster": cluster, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
        work = SegmentStudy(
            model=model_of(**model, store_gb=store_gb),
            **task_of_file(task_file),
            method=method_of(task_file, method),
            out=str(out.absolute()),
            to_archive=to_archive,
        )
        return segment_cohort(studies, work, out=out, record=record, **engine)
    assert query is not None
    if workers > 1 or cluster or to_archive:
        raise click.UsageError("--workers, --cluster and --to-archive belong to --studies.")
    if not out.name.lower().endswith(ENDINGS):
        raise click.UsageError(f"--out {out.name}: the name has to end in {', '.join(ENDINGS)}.")
    segmenter = loaded(method=method_of(task_file, method), **model)
    volume = read_volume(query)
    started = time.perf_counter()
    with ProgressBar() as progress:
        if task_file:
            task = segmenter.load_task(task_file)
        else:
            task = learned(segmenter, support, names, progress, plane=plane, steps=steps, budget_s=budget_s, seed=seed)
        found = task.segment(volume, plane=plane, progress=progress)
    seconds = time.perf_counter() - started
    if task_file and not task.exact:
        print(f"{task_file.name}: its labelled slices are not on this machine; masks are less exact than with them")
    write_volume(found, out)
    plane_of_work = Plane.named(plane or task.card.get("plane"), volume.grid)
    summaries = {label: summary(found, label, plane_of_work) for label in found.labels}
    for label, one in summaries.items():
        print(f"{label} ({found.numbers[label]}): {one['millilitres']:.1f} ml on {one['slices']} slices")
    print(f"{out} after {seconds:.1f} s")
    if picture:
        print(draw_overlays(picture, panels(found, volume, plane_of_work), title=", ".join(found.labels)))
    if record:
        files = [query, *sources(support), *([task_file] if task_file else [])]
        done = {"query": query.name, "labels": summaries, "seconds": round(seconds, 2), "card": dict(task.card)}
        device = on_cuda(model["device"])
        record_run(record, done, **how(segmenter, task, files), protocol="segment", device=device, seed=seed)
    return FINE


def segment_cohort(studies: str, work: SegmentStudy, *, out: Path, record: Path | None, **engine: Any) -> int:
    """Segment every study of a cohort."""
    cohort = worked_on(listed(studies), work, out=out, model=work.model, **engine)
    record_run(
        record,
        {"studies": [asdict(one) for one in cohort.outcomes]},
        protocol="segment",
        data={"cases": [one.study for one in cohort.outcomes]},
        weights={"task": work.task_sha256},
        device=on_cuda(work.model.device),
    )
    return status_of(cohort)


def method_of(task_file: Path | None, chosen: str | None) -> str:
    """The method of the options, or that of the task to be used. Raises ValueError when they differ."""
    if task_file is None:
        return chosen or METHODS[0]
    found = task_card(task_file)["method"]
    if chosen and chosen != found:
        raise ValueError(f"{task_file.name} is a task of {found}, not of {chosen}: leave --method out")
    return found


def summary(found: Segmentation, label: str, plane: Plane) -> dict[str, Any]:
    """How much of a label was found, and per slice whether it is there and how uncertain its mask is."""
    mask = found.mask[label]
    return {
        "voxels": int(mask.sum()),
        "millilitres": round(float(mask.sum() * np.prod(found.label_map.spacing) / 1000), 3),
        "slices": int(plane.stack(mask).any(axis=(1, 2)).sum()),
        "presence": found.presence[label].round(3).tolist(),
        "uncertainty": found.uncertainty[label].round(3).tolist(),
        "dice_estimate": round(found.dice_estimate[label], 3),
    }


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
