"""Adapt the few-shot model to labelled slices, and keep what it learned in a small file, a task checkpoint.

    python apps/adapt.py --support ct.nii.gz:organs.nii.gz:10,20-40:5 --names liver=1 spleen=2 --out organs.safetensors

`apps/segment.py --head FILE` then segments any other volume; a server takes the file too. The file holds no image, no
mask and no id, and may be given away; what lies beside it (FILE.json) and in the cache is for this machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ssmsam.cli.options import FewShotModel, adapt_to, add_model_options, add_support_options, exit_status
from ssmsam.cli.progress_bar import ProgressBar
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.checkpoint_files import write_head
from ssmsam.fewshot.initialisations import DECODERS
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.support_cache import SupportCache
from ssmsam.report import files_digest, run_manifest, write_result
from ssmsam.server.configuration import default_store, default_support


def main(arguments: list[str] | None = None) -> int:
    return exit_status(run, parse(arguments), stopped="no head was written")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_support_options(parser, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="HEAD", help="the file to write, .safetensors")
    add_model_options(parser, store=default_store(), methods=DECODERS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done there")
    options = parser.parse_args(arguments)
    if options.out.suffix != ".safetensors":
        parser.error(f"--out {options.out.name}: the name of a head ends in .safetensors")
    if options.json == options.out.with_suffix(".json"):
        parser.error(f"--json {options.json.name}: what belongs to the head is written there, choose another name")
    return options


def run(options: argparse.Namespace) -> None:
    """Read, adapt, write, tell."""
    model = FewShotModel.load(options, DECODERS)
    started = time.perf_counter()
    with ProgressBar() as progress:
        head, support = adapt_to(options, model, progress)
    seconds = time.perf_counter() - started
    write_head(options.out, head, base=model.decoder, cache=SupportCache(default_support()))
    print_card(head, support)
    print(f"{options.out} ({options.out.stat().st_size / 1e6:.1f} MB) after {seconds:.1f} s")
    if options.json:
        write_result(options.json, record(options, model, head, seconds))


def print_card(head: AdaptedTask, support: Support) -> None:
    """What was learned, and how good it is on slices that were held out."""
    for label, slices in support.items():
        estimate = head.card["dice_estimate"].get(label)
        said = "no estimate, for that takes more slices that show it, and adaptation"
        if estimate:
            before, after = 100 * estimate["before"], 100 * estimate["after"]
            said = f"Dice on slices held out {before:.1f} % before adaptation, {after:.1f} % after"
        print(f"{label}: {len(slices)} slices; {said}")
    if not head.card["adapted"]:
        print("the decoder stays as it was: the slices prompt it without adaptation")


def record(options: argparse.Namespace, model: FewShotModel, head: AdaptedTask, seconds: float) -> dict[str, object]:
    files = [path for file in options.support for path in (file.image, file.labels) if path.is_file()]
    manifest = run_manifest(
        protocol="adapt",
        data={"files": [path.name for path in files], "sha256": files_digest(files)},
        weights={model.embedder.encoder.spec.name: model.weights_sha256},
        device=options.device,
        seed=options.seed,
        settings=head.card["settings"],
    )
    return {"head": options.out.name, "card": dict(head.card), "seconds": round(seconds, 2), "manifest": manifest}


if __name__ == "__main__":
    sys.exit(main())
