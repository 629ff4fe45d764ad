"""Segment a volume by labelled slices of it or of other volumes, without a server.

    python apps/segment.py --support ct.nii.gz:liver.nii.gz:10,20-40:5 --query ct.nii.gz --out whole_liver.nii.gz
    python apps/segment.py --head organs.safetensors --query other.nii.gz --out other_organs.nii.gz

What was annotated in the query volume itself stays as it is, voxel by voxel.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_files import read_head
from ssmsam.fewshot.initialisations import DECODERS
from ssmsam.fewshot.options import FewShotModel, adapt_to, add_model_options, add_support_options, exit_status
from ssmsam.fewshot.pipeline import segment, with_pseudo_labels
from ssmsam.fewshot.prediction import Prediction
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.support_cache import SupportCache
from ssmsam.progress import Progress
from ssmsam.progress_bar import ProgressBar
from ssmsam.reading import read_volume
from ssmsam.server.configuration import default_store, default_support
from ssmsam.volume.geometry import Plane, reoriented
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.evaluation.figures import Panel, draw_overlays
from ssmsam_research.evaluation.manifest import files_digest, run_manifest
from ssmsam_research.evaluation.results import write_result

ENDINGS = (".nii.gz", ".nii", ".nrrd")
PANELS = 6


def main(arguments: list[str] | None = None) -> int:
    return exit_status(run, parse(arguments), stopped="no mask was written. Slices that were embedded are kept")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_support_options(parser, required=False)
    parser.add_argument("--head", type=Path, metavar="FILE", help="what apps/adapt.py wrote, in place of --support")
    parser.add_argument("--query", type=Path, required=True, metavar="IMAGE", help="a file or a DICOM folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="label map to write")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw the masks over some slices")
    add_model_options(parser, store=default_store(), methods=DECODERS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done there")
    options = parser.parse_args(arguments)
    if bool(options.support) == bool(options.head):
        parser.error("give either --support or --head")
    if options.head and options.names:
        parser.error("--names belongs to --support: a head knows its labels")
    if not options.out.name.lower().endswith(ENDINGS):
        parser.error(f"--out {options.out.name}: the name has to end in {', '.join(ENDINGS)}")
    return options


def run(options: argparse.Namespace) -> None:
    """Read, adapt where there is no head yet, segment, write, tell."""
    model = FewShotModel.load(options, DECODERS, head=options.head)
    volume = read_volume(options.query)
    started = time.perf_counter()
    with ProgressBar() as progress:
        head, support = the_head(options, model, progress)
        query = model.embedder.open(volume, plane=Plane.named(options.plane or head.card.get("plane"), volume.grid))
        head = with_pseudo_labels(head, support, labels=head.lacks(query.key.digest), progress=progress)
        prediction = segment(query, head, support=support, progress=progress)
    seconds = time.perf_counter() - started
    if head.summarised:
        print(f"{options.head.name}: its labelled slices are not on this machine; masks are less exact than with them")
    numbers = label_numbers_of(head)
    write_volume(volume.with_array(numbered(prediction, numbers)), options.out)
    found = {label: summary(prediction, label, query) for label in prediction.labels}
    for label, one in found.items():
        print(f"{label} ({numbers[label]}): {one['millilitres']:.1f} ml on {one['slices']} slices")
    print(f"{options.out} after {seconds:.1f} s")
    if options.picture:
        print(draw_overlays(options.picture, panels(prediction, query), title=", ".join(prediction.labels)))
    if options.json:
        write_result(options.json, record(options, model, head, found, seconds))


def the_head(options: argparse.Namespace, model: FewShotModel, progress: Progress) -> tuple[AdaptedTask, Support]:
    """From the file, or adapted now."""
    if options.head:
        cache, sha256 = SupportCache(default_support()), model.weights_sha256
        return read_head(options.head, base=model.decoder, weights_sha256=sha256, cache=cache), {}
    return adapt_to(options, model, progress, complete=False)


def label_numbers_of(head: AdaptedTask) -> dict[str, int]:
    """The numbers that the support's label maps had; 1, 2, ... for a head from elsewhere."""
    return head.card.get("numbers") or {label: number for number, label in enumerate(head.labels, 1)}


def numbered(prediction: Prediction, numbers: dict[str, int]) -> np.ndarray:
    """The mask with the labels' own numbers."""
    table = np.array([0, *(numbers[label] for label in prediction.labels)])
    return table.astype(np.min_scalar_type(table.max()))[prediction.mask]


def summary(prediction: Prediction, label: str, query: VolumeEmbeddings) -> dict[str, Any]:
    """How much of a label was found, and per slice whether it is there and how uncertain its mask is."""
    row = prediction.labels.index(label)
    mask = prediction.mask == row + 1
    return {
        "voxels": int(mask.sum()),
        "millilitres": round(float(mask.sum() * np.prod(query.grid.spacing) / 1000), 3),
        "slices": int(query.plane.stack(mask).any(axis=(1, 2)).sum()),
        "presence": prediction.presence[row].round(3).tolist(),
        "uncertainty": prediction.uncertainty[row].round(3).tolist(),
    }


def panels(prediction: Prediction, query: VolumeEmbeddings) -> list[Panel]:
    """Slices spread evenly over those on which something was found."""
    found = np.flatnonzero(query.plane.stack(prediction.mask).any(axis=(1, 2)))
    chosen = np.unique(found[np.linspace(0, len(found) - 1, PANELS).round().astype(int)]) if len(found) else [0]
    drawn = []
    for index in map(int, chosen):
        image, pixel_mm = as_read(query.volume.array, query, index)
        mask, _ = as_read(prediction.mask, query, index)
        first, *others = [mask == number for number in range(1, len(prediction.labels) + 1)]
        drawn.append(Panel(f"slice {index}", query.scale.apply(image), first, pixel_mm=pixel_mm, others=others))
    return drawn


def as_read(array: np.ndarray, query: VolumeEmbeddings, index: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A slice the way radiologists look at it, front or head up, and its millimetres per pixel along (y, x)."""
    alone = query.plane.unstack(query.plane.stack(array)[index : index + 1])
    turned = reoriented(Volume(alone, query.grid.affine), "LPS")
    axis = int(np.argmin(turned.shape))
    if axis:
        turned = reoriented(turned, "LPI")
    return Plane(axis).stack(turned.array)[0], Plane(axis).pixel_mm(turned.grid)


def record(
    options: argparse.Namespace,
    model: FewShotModel,
    head: AdaptedTask,
    found: dict[str, dict[str, Any]],
    seconds: float,
) -> dict[str, Any]:
    sources = [options.query, *(path for file in options.support for path in (file.image, file.labels))]
    files = [path for path in [*sources, *([options.head] if options.head else [])] if path.is_file()]
    manifest = run_manifest(
        protocol="segment",
        data={"files": [path.name for path in files], "sha256": files_digest(files)},
        weights={model.embedder.encoder.spec.name: model.weights_sha256},
        device=options.device,
        seed=options.seed,
        settings=head.card["settings"],
    )
    return {
        "query": options.query.name,
        "labels": found,
        "seconds": round(seconds, 2),
        "card": dict(head.card),
        "manifest": manifest,
    }


if __name__ == "__main__":
    sys.exit(main())
