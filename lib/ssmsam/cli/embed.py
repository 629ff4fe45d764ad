"""``ssmsam embed``: volumes -> the embedding store."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ssmsam.api import PromptSegmenter
from ssmsam.cli.command import BAD_INPUT, FAILED, FINE, Program, ProgressBar, json_option
from ssmsam.cli.options import model_options, on_cuda, use_threads
from ssmsam.dicom.file import looks_like_dicom
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.reading import read_volume
from ssmsam.report import run_manifest, write_result
from ssmsam.volume.errors import UnreadableVolume

ENDINGS = (".nii.gz", ".nii", ".nrrd")
GB = 10**9


@click.command(cls=Program, stopped="what was finished is kept, start again to go on")
@click.argument("studies", type=click.Path(path_type=Path))
@model_options
@click.option("--download", is_flag=True, help="Fetch missing weights.")
@click.option("--store-gb", type=float, default=20.0, show_default=True, metavar="GB", help="Size limit of the store.")
@json_option
def command(
    *,
    studies: Path,
    store: Path,
    store_gb: float,
    threads: int | None,
    device: str | None,
    record: Path | None,
    **model: Any,
) -> int:
    """Fill the embedding store for all volumes of a folder, so that the first click on any slice is a fast one.

    STUDIES is a folder as the server's: files, or folders of DICOM. What is already in the store is not computed again,
    so this may be stopped (Ctrl-C) and started again at any time.
    """
    use_threads(threads)
    sources = volumes_in(studies)
    if not sources:
        expected = f"{', '.join(ENDINGS)} or folders of DICOM files"
        print(f"{studies} holds no volume: expected {expected}", file=sys.stderr)
        return BAD_INPUT
    kept = EmbeddingStore(store, quota_bytes=int(store_gb * GB))
    segmenter = PromptSegmenter.from_pretrained(store=kept, device=device, **model)
    print(f"{len(sources)} volumes, encoder {segmenter.encoder} on {on_cuda(device)}, store {store}")
    done = [embed(source, segmenter) for source in sources]
    if record:
        data = {"set": studies.resolve().name, "cases": [study["name"] for study in done]}
        weights = {segmenter.encoder: segmenter.weights_sha256}
        manifest = run_manifest(protocol="embed", data=data, weights=weights, device=on_cuda(device))
        write_result(record, {"encoder": segmenter.encoder, "studies": done, "manifest": manifest})
    return FAILED if any("error" in study for study in done) else FINE


def volumes_in(studies: Path) -> list[Path]:
    """The volumes that a server on this folder would offer: files, and sub-folders of DICOM files."""
    for folder in (studies, studies / "images"):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS) or holds_dicom(path))
            if found:
                return found
    return []


def holds_dicom(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    first = next((path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")), None)
    return first is not None and looks_like_dicom(first)


def embed(source: Path, segmenter: PromptSegmenter) -> dict[str, Any]:
    """One volume into the store, with a progress bar."""
    started = time.perf_counter()
    try:
        volume = read_volume(source)
    except UnreadableVolume as error:
        print(f"{source.name}: left out, {error}", file=sys.stderr)
        return {"name": source.name, "error": str(error)}
    with ProgressBar(name=source.name) as progress:
        made = segmenter.embed(volume, progress=progress)
    seconds, slices = time.perf_counter() - started, volume.shape[0]
    print(f"{source.name}: {slices} slices, {made} of them new, {seconds:.1f} s")
    return {"name": source.name, "slices": slices, "encoded": made, "seconds": round(seconds, 3)}
