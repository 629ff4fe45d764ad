"""``ssmsam samples``: the sample volumes into a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import click
import numpy as np

from ssmsam.cli.command import Program, ProgressBar, Several, json_option, path_option, require_research
from ssmsam.dicom.series_writer import DicomPatient, derived_uid, write_dicom_series
from ssmsam.reading import read_volume
from ssmsam.report import record_run
from ssmsam.volume.volume import Volume, reoriented

LABELS = {1: "liver", 2: "spleen", 3: "right kidney", 4: "left kidney", 5: "aorta", 6: "lesion"}
"""What the numbers of the sample volumes' labels mean."""
IMAGES, TRUTH, SERIES = "abdomen", "abdomen_labels", "abdomen_dicom"
"""Folders of the sample dataset: images, their labels under the same names, and DICOM series."""
_PLACES = (Path(__file__).parents[1] / "sample_datasets", Path(__file__).parents[3] / "sample-datasets")
"""In the installed package, which has some of the volumes, and in a clone, which has all."""


@dataclass(frozen=True)
class SampleCase:
    """An image with its labels, not read yet."""

    image: Path
    labels: Path

    @property
    def name(self) -> str:
        return self.image.name.partition(".")[0]

    @property
    def number(self) -> int:
        return int(self.name.rpartition("_")[2])

    @property
    def seed(self) -> int:
        """What its anatomy was drawn from."""
        return self.number + 10

    @property
    def contrast(self) -> str:
        """ "CT", or "T2" or "T1" for MR."""
        return {"ct_": "CT", "mr_": "T2"}[self.name[:3]] if self.number < 5 else "T1"

    def read(self) -> tuple[Volume, np.ndarray]:
        """The image, and the label numbers (slices, rows, columns) on the same grid."""
        return read_volume(self.image), read_volume(self.labels).array.astype(np.int32)


def sample_folder() -> Path:
    """The folder of the sample dataset. Raises FileNotFoundError, with what to do."""
    for folder in _PLACES:
        if (folder / IMAGES).is_dir():
            return folder
    raise FileNotFoundError("the sample volumes are not here: install ssmsam again, or clone its repository")


def sample_cases(only: Sequence[str] | None = None) -> list[SampleCase]:
    """The sample volumes, or those that are named. Raises ValueError for another name, and FileNotFoundError."""
    folder = sample_folder()
    found = {
        path.name.partition(".")[0]: SampleCase(path, folder / TRUTH / path.name)
        for path in sorted((folder / IMAGES).glob("*.nii.gz"))
    }
    missing = [name for name in only or () if name not in found]
    if missing:
        raise ValueError(f"there is no sample volume {', '.join(missing)}; there are {', '.join(found)}")
    return [found[name] for name in only or found]


def copy_samples(out: Path, only: Sequence[str] | None = None) -> list[Path]:
    """Write the sample volumes and their labels below ``out``; returns the images. What is there is replaced."""
    written = []
    for case in sample_cases(only):
        for source, folder in ((case.image, IMAGES), (case.labels, TRUTH)):
            (out / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / folder / source.name)
        written.append(out / IMAGES / case.image.name)
    return written


def write_sample_studies(samples: Path, out: Path) -> list[Path]:
    """Write one folder for each case of the sample dataset in ``samples``; returns the folders, in order.

    Cases that the dataset holds as DICOM already are taken from there as they are. The others are stored the way
    scanners do it (LPS), whatever the order of their axes in the dataset.
    """
    folders = []
    for case in sample_cases():
        name, ready = case.name, samples / SERIES / case.name
        folders.append(ready if ready.is_dir() else out / name)
        if not ready.is_dir():
            volume = replace(
                reoriented(read_volume(samples / IMAGES / f"{name}.nii.gz"), "LPS"),
                modality="CT" if case.contrast == "CT" else "MR",
                series_uid=derived_uid("ssmsam", name),
                frame_of_reference_uid=derived_uid("ssmsam frame", name),
            )
            described = f"Synthetic abdomen {case.contrast}, not a real patient"
            patient = DicomPatient(f"Sample^{name.upper()}", f"SAMPLE-{case.seed}", described)
            write_dicom_series(volume, out / name, patient=patient)
    return folders


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
    names = [path.name for path in written]
    record_run(record, {"images": names}, protocol="samples", data={"files": names})
