"""The segmentations that an archive holds, asked of the archive itself and read by a program that is not ours."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import requests
import SimpleITK as sitk

from ssmsam.cli.pacs import Orthanc
from ssmsam.volume.volume import Volume


def stored_seg(orthanc: Orthanc, image: str, file: Path) -> pydicom.Dataset:
    """The SEG that refers to a series, written to ``file`` too."""
    query = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    for name in requests.post(f"{orthanc.root}/tools/find", json=query, timeout=60).json():
        content = requests.get(f"{orthanc.root}/instances/{name}/file", timeout=60).content
        seg = pydicom.dcmread(io.BytesIO(content))
        if seg.ReferencedSeriesSequence[0].SeriesInstanceUID == image:
            file.write_bytes(content)
            return seg
    raise AssertionError("the archive has no SEG of this image")


def remove_series(archive: Orthanc, series_uid: str) -> None:
    """Delete a series, as its owner would in the archive."""
    query = {"Level": "Series", "Query": {"SeriesInstanceUID": series_uid}}
    for name in requests.post(f"{archive.root}/tools/find", json=query, timeout=60).json():
        requests.delete(f"{archive.root}/series/{name}", timeout=60).raise_for_status()


@contextmanager
def stored(archive: Orthanc, objects: Sequence[pydicom.Dataset], scratch: Path) -> Iterator[None]:
    """In the archive as long as the block lasts: it is that of other tests too."""
    for number, one in enumerate(objects):
        one.save_as(scratch / f"{number}.dcm", write_like_original=False)
    archive.upload(sorted(scratch.glob("*.dcm")))
    try:
        yield
    finally:
        for one in objects:
            remove_series(archive, str(one.SeriesInstanceUID))


def read_by_dcmqi(seg: Path, folder: Path) -> list[Volume]:
    """One mask for each segment."""
    folder.mkdir()
    program = Path(sys.executable).with_name("segimage2itkimage")
    command = [str(program), "--inputDICOM", str(seg), "--outputDirectory", str(folder), "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    files = sorted(folder.glob("*.nrrd"), key=lambda file: int(file.stem.rpartition("-")[2] or file.stem))
    return [_itk_volume(file) for file in files]


def _itk_volume(file: Path) -> Volume:
    image = sitk.ReadImage(str(file))
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Volume((sitk.GetArrayFromImage(image) > 0).astype(np.uint8), affine)
