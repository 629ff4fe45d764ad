"""Thousands of damaged files of every kind: one kind of error, no hang, bounded memory. And files that are bombs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from fuzzing import Outcome, damaged, damaged_inside, fuzz
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from ssmsam.imaging.dicom import find_series
from ssmsam.imaging.dicom_seg import AlgorithmNotes, write_seg
from ssmsam.imaging.dicom_seg_reading import read_seg
from ssmsam.imaging.dicom_writing import DicomPatient, write_dicom_series
from ssmsam.imaging.reading import read_volume
from ssmsam.imaging.volume import Volume

MOST_MIB = 400.0
"""How much more memory than before may have been in use at the worst moment. The libraries' own tables are in it; a
header that is believed asks for thousands."""

SERIES = ("series", "rle", "jpeg2000", "deflated")
FILES = ("nii", "nii.gz", "nrrd", "raw.nrrd", "mha")
KINDS = (*FILES, *SERIES, "seg", "labelmap")


def some_volume() -> Volume:
    array = np.random.default_rng(0).integers(-1000, 1000, (3, 16, 20)).astype(np.int16)
    affine = np.diag([0.75, 1.5, 3.5, 1.0])
    affine[:3, 3] = (-31.5, 20.25, -7.0)
    return Volume(array, affine, "CT")


def sound(kind: str, folder: Path) -> tuple[dict[Path, bytes], Callable[[], object]]:
    """Sound files of a kind, and what reads them."""
    if kind in FILES:
        path = folder / f"image.{kind}"
        image = sitk.GetImageFromArray(some_volume().array)
        sitk.WriteImage(image, str(path), useCompression=not kind.startswith("raw"))
        return {path: path.read_bytes()}, lambda: read_volume(path)
    series = folder / "series"
    write_dicom_series(some_volume(), series, patient=DicomPatient("Doe^Jane", "1"))
    for path in series.iterdir():
        pack(path, kind)
    if kind in SERIES:
        return {path: path.read_bytes() for path in series.iterdir()}, lambda: read_volume(series)
    seg, grid = folder / "seg.dcm", find_series(series).grid
    mask = some_volume().with_array((some_volume().array > 300).astype(np.uint8))
    mask.array[1, 3:9, 4:12] = 2
    write_seg(mask, {"liver": 1, "spleen": 2}, series, seg, algorithm=AlgorithmNotes(name="t", version="1"))
    if kind == "labelmap":
        as_label_map(seg)
    return {seg: seg.read_bytes()}, lambda: read_seg(seg, grid)


def pack(path: Path, kind: str) -> None:
    """Compress a slice."""
    header = pydicom.dcmread(path)
    if kind == "rle":
        header.compress(RLELossless, generate_instance_uid=False)
    elif kind == "jpeg2000":
        data = io.BytesIO()
        Image.fromarray((header.pixel_array + 1024).astype("<u2")).save(
            data, "JPEG2000", irreversible=False, no_jp2=True
        )
        header.PixelRepresentation, header.RescaleIntercept = 0, "-1024"
        header.PixelData = encapsulate([data.getvalue()])
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    elif kind == "deflated":
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, write_like_original=False)


def as_label_map(path: Path) -> None:
    seg = pydicom.dcmread(path)
    seg.SOPClassUID = seg.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    seg.SegmentationType, seg.BitsAllocated, seg.BitsStored, seg.HighBit = "LABELMAP", 8, 8, 7
    seg.NumberOfFrames = 3
    frames = {tuple(f.PlanePositionSequence[0].ImagePositionPatient): f for f in seg.PerFrameFunctionalGroupsSequence}
    seg.PerFrameFunctionalGroupsSequence = list(frames.values())
    seg.PixelData = np.random.default_rng(1).integers(0, 3, (3, 16, 20), dtype=np.uint8).tobytes()
    seg.save_as(path)


def run(kind: str, folder: Path, count: int, seed: int) -> Outcome:
    files, read = sound(kind, folder)
    read()
    outcome = fuzz(files, read, count=count, seed=seed, damage=damaged_inside if kind.endswith("gz") else damaged)
    print(
        f"{kind}: {count} damaged, {outcome.read} read, {outcome.refused} refused, {len(outcome.escaped)} otherwise, "
        f"slowest {outcome.slowest_s:.2f} CPU s, {outcome.grown_mib:.0f} MiB more"
    )
    return outcome


def expect_good(outcome: Outcome) -> None:
    assert outcome.escaped[:5] == []
    assert outcome.read and outcome.refused
    assert outcome.slowest_s < 10
    assert outcome.grown_mib < MOST_MIB


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_kind_of_error(kind: str, tmp_path: Path) -> None:
    expect_good(run(kind, tmp_path, count=40, seed=1))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_times(kind: str, tmp_path: Path) -> None:
    expect_good(run(kind, tmp_path, count=10_000, seed=2))
