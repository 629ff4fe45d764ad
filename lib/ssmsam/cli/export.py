"""``ssmsam export``: a label map -> DICOM SEG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ssmsam import __version__
from ssmsam.api import write_dicom_seg
from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.labelled_files import parse_names
from ssmsam.cli.options import names_option
from ssmsam.dicom.seg_writer import FAMILIES, AlgorithmNotes
from ssmsam.reading import read_volume
from ssmsam.report import files_digest, record_run


@click.command(cls=Program, stopped="nothing was written")
@click.argument("mask", type=click.Path(path_type=Path))
@path_option("--series", required=True, metavar="DIR", help="The DICOM files of the images that were segmented.")
@names_option
@path_option("--out", required=True, metavar="FILE", help="The file to write, .dcm.")
@click.option(
    "--kind", type=click.Choice(tuple(FAMILIES)), default="AUTOMATIC", show_default=True, help="How it was made."
)
@click.option("--creator", default="", metavar="NAME", help="Who accepted the mask, as Family^Given.")
@click.option("--description", default="Segmentation", show_default=True)
@json_option
def command(
    *,
    mask: Path,
    series: Path,
    names: Sequence[str],
    out: Path,
    kind: str,
    creator: str,
    description: str,
    record: Path | None,
) -> None:
    """Write a label map (MASK) as BINARY DICOM SEG of the series that it lies on.

    \b
    ssmsam export liver.nii.gz --series ct_folder --names liver=1 --out liver.dcm

    Names that are known get their SNOMED codes. The file is read back and compared before it appears.
    """
    if not names:
        raise click.UsageError("give --names: a DICOM SEG says what each number means, as in liver=1.")
    if out.suffix != ".dcm":
        raise click.UsageError(f"--out {out.name}: the name of a DICOM file ends in .dcm.")
    labels = parse_names(names)
    notes = AlgorithmNotes(name="ssmsam", version=__version__, kind=kind, creator=creator, description=description)
    write_dicom_seg(read_volume(mask), series, out, labels=labels, algorithm=notes)
    print(f"{out}: {', '.join(labels)}")
    if record:
        data = {"files": [mask.name], "sha256": files_digest([mask])}
        record_run(record, {"file": out.name, "labels": labels}, protocol="export", data=data)
