"""``ssmsam export``: a label map, or a folder of annotated studies, as files of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ssmsam import __version__
from ssmsam.cli.adapt import parse_names
from ssmsam.cli.command import Program, json_option, path_option
from ssmsam.cli.options import names_option
from ssmsam.dicom.seg_writer import FAMILIES, AlgorithmNotes
from ssmsam.reading import read_volume
from ssmsam.report import files_digest, record_run
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.exports import FORMATS, OF_DICOM, folder_cases, write_labels, write_nnunet

NNUNET = "nnunet"


@click.command(cls=Program, stopped="nothing was written")
@click.argument("mask", type=click.Path(path_type=Path))
@click.option(
    "--format", type=click.Choice((*FORMATS, NNUNET)), default="dicom_seg", show_default=True, help="What to write."
)
@path_option("--series", metavar="DIR", help="The DICOM files of the images that were segmented.")
@names_option
@path_option("--out", required=True, metavar="FILE", help="The file to write; with --format nnunet a new folder.")
@click.option(
    "--kind", type=click.Choice(tuple(FAMILIES)), default="AUTOMATIC", show_default=True, help="How it was made."
)
@click.option("--creator", default="", metavar="NAME", help="Who accepted the mask, as Family^Given.")
@click.option("--description", default="Segmentation", show_default=True)
@click.option(
    "--only",
    type=click.Choice(("finished", "annotated")),
    default="finished",
    show_default=True,
    help="With --format nnunet: finished images, or all that are annotated.",
)
@click.option("--modality", default="", metavar="CODE", help="With --format nnunet: only images of this one, as in CT.")
@json_option
def command(
    *,
    mask: Path,
    format: str,
    series: Path | None,
    names: Sequence[str],
    out: Path,
    kind: str,
    creator: str,
    description: str,
    only: str,
    modality: str,
    record: Path | None,
) -> None:
    """Write a label map (MASK) as BINARY DICOM SEG or RT Structure Set of the series that it lies on, or a folder of
    annotated studies as a data set of nnU-Net.

    \b
    ssmsam export liver.nii.gz --series ct_folder --names liver=1 --out liver.dcm
    ssmsam export liver.nii.gz --series ct_folder --names liver=1 --out rt.dcm --format rtstruct
    ssmsam export studies --format nnunet --out Dataset001_liver

    Names that are known get their SNOMED codes. A DICOM file is read back and compared before it appears.
    """
    try:
        if format == NNUNET:
            labels = sorted(parse_names(names).items(), key=lambda named: named[1]) if names else []
            report = write_nnunet(
                folder_cases(mask),
                _new(out),
                labels=[name for name, _ in labels],
                finished=only == "finished",
                modality=modality,
            )
            print(f"{out}: {len(report['cases'])} images, {', '.join(report['labels'])}")
            for name, why in report["left_out"].items():
                print(f"left out: {name}: {why}")
            return
        _require(format, series, names, out)
        labels_by_name = parse_names(names) if names else {}
        notes = AlgorithmNotes(name="ssmsam", version=__version__, kind=kind, creator=creator, description=description)
        write_labels(read_volume(mask), labels_by_name, out, format=format, source=series, notes=notes)
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from None
    print(f"{out}: {', '.join(labels_by_name)}")
    if record:
        data = {"files": [mask.name], "sha256": files_digest([mask])}
        record_run(record, {"file": out.name, "labels": labels_by_name}, protocol="export", data=data)


def _require(format: str, series: Path | None, names: Sequence[str], out: Path) -> None:
    """Raises UsageError for what is missing."""
    if format in OF_DICOM and not names:
        raise click.UsageError("give --names: a DICOM file says what each number means, as in liver=1.")
    if format in OF_DICOM and series is None:
        raise click.UsageError(f"give --series: the file of format {format} refers to the images it belongs to.")
    if not out.name.endswith(FORMATS[format]):
        raise click.UsageError(f"--out {out.name}: the name of a file of format {format} ends in {FORMATS[format]}.")


def _new(folder: Path) -> Path:
    if folder.exists() and any(folder.iterdir()):
        raise click.UsageError(f"--out {folder}: it holds something already; name a new folder.")
    return folder
