"""``ssmsam samples``: the sample volumes into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from ssmsam.cli.command import Program, Several, json_option, path_option
from ssmsam.cli.progress_bar import ProgressBar
from ssmsam.cli.research import require_research
from ssmsam.cli.sample_data import IMAGES, copy_samples
from ssmsam.report import run_manifest, write_result


@click.command(cls=Program)
@path_option("--out", required=True, metavar="DIR", help="Folder to write to.")
@click.option("--only", cls=Several, metavar="NAME...", help="Only these, as in ct_01.")
@click.option("--draw", is_flag=True, help="Draw all five again (two minutes; in a clone).")
@json_option
def command(*, out: Path, only: Sequence[str], draw: bool, record: Path | None) -> None:
    """Write the synthetic sample volumes into a folder: abdomen/ (images) and abdomen_labels/ (their labels).

    \b
    ssmsam samples --out samples && ssmsam serve samples/abdomen
    """
    if draw:
        require_research("samples --draw")
        with ProgressBar() as progress:
            import_module("ssmsam_research.synthetic.samples").draw_samples(out, only=only, progress=progress)
        written = sorted((out / IMAGES).glob("*.nii.gz"))
    else:
        written = copy_samples(out, only or None)
    print(f"{out / IMAGES}: {', '.join(path.name for path in written)}")
    if record:
        manifest = run_manifest(protocol="samples", data={"files": [path.name for path in written]}, weights={})
        write_result(record, {"images": [path.name for path in written], "manifest": manifest})
