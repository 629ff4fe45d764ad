"""Fill the embedding store for all volumes of a folder, so that the first click on any slice is a fast one.

What is already in the store is not computed again, so this may be stopped (Ctrl-C) and started again at any time.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.models.encoder_registry import choose_encoder, load_encoder
from ssmsam.models.weights import CorruptWeights, MissingWeights
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.report import run_manifest, write_result
from ssmsam.server.configuration import default_store
from ssmsam_research.cli.options import add_encoder_option

ENDINGS = (".nii.gz", ".nii", ".nrrd")
GB = 10**9


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    sources = volumes_in(options.studies)
    if not sources:
        expected = f"{', '.join(ENDINGS)} or folders of DICOM files"
        print(f"{options.studies} holds no volume: expected {expected}", file=sys.stderr)
        return 1
    try:
        name = choose_encoder(options.encoder, folder=options.weights)
        encoder = load_encoder(
            name,
            folder=options.weights,
            download=options.download,
            device=options.device,
            allow_unverified=options.allow_unverified,
        )
    except (MissingWeights, CorruptWeights, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    store = EmbeddingStore(options.store, quota_bytes=int(options.store_gb * GB))
    embedder = Embedder(encoder=encoder, store=store)
    print(f"{len(sources)} volumes, encoder {name} on {options.device}, store {options.store}")
    try:
        studies = [embed(source, embedder) for source in sources]
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, start again to go on", file=sys.stderr)
        return 130
    failed = [study for study in studies if "error" in study]
    if options.json:
        weights = {name: encoder.weights_sha256}
        data = {"set": options.studies.resolve().name, "cases": [study["name"] for study in studies]}
        manifest = run_manifest(protocol="embed", data=data, weights=weights, device=options.device)
        write_result(options.json, {"encoder": name, "studies": studies, "manifest": manifest})
    return 1 if failed else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", type=Path, help="a folder as the server's --studies: files, or folders of DICOM")
    add_encoder_option(parser)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder to look for weights in first")
    parser.add_argument("--allow-unverified", action="store_true", help="accept weights of your own")
    parser.add_argument("--download", action="store_true", help="fetch missing weights")
    parser.add_argument("--store", type=Path, default=default_store(), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--store-gb", type=float, default=20.0, metavar="GB", help="size limit, default %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: what OMP_NUM_THREADS says, else all cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done there")
    return parser.parse_args(arguments)


def volumes_in(studies: Path) -> list[Path]:
    """The volumes that a server on this folder would offer: files, and sub-folders of DICOM files."""
    inside = studies / "images"
    for folder in (studies, inside):
        if folder.is_dir():
            found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS) or holds_dicom(path))
            if found:
                return found
    return []


def holds_dicom(folder: Path) -> bool:
    if not folder.is_dir() or folder.name.startswith("."):
        return False
    first = next((path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")), None)
    if first is None:
        return False
    with first.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def embed(source: Path, embedder: Embedder) -> dict[str, Any]:
    """One volume into the store, with a progress bar."""
    before, started = embedder.encoded, time.perf_counter()
    try:
        volume = read_volume(source)
    except UnreadableVolume as error:
        print(f"{source.name}: left out, {error}", file=sys.stderr)
        return {"name": source.name, "error": str(error)}
    embeddings = embedder.open(volume)
    with tqdm(total=embeddings.count, desc=source.name, unit="slice", disable=None) as bar:

        def show(phase: str, done: int, total: int) -> None:
            bar.update(done - bar.n)

        embeddings.embed(progress=show)
    made, seconds = embedder.encoded - before, time.perf_counter() - started
    print(f"{source.name}: {embeddings.count} slices, {made} of them new, {seconds:.1f} s")
    return {"name": source.name, "slices": embeddings.count, "encoded": made, "seconds": round(seconds, 3)}


if __name__ == "__main__":
    sys.exit(main())
