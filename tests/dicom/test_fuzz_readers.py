"""Thousands of damaged files of every kind: one kind of error, no hang, bounded memory. And files that are bombs."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pillow_jpls  # noqa: F401  (Pillow writes JPEG-LS with it; highdicom needs it too)
import pydicom
import pytest
import SimpleITK as sitk
from fuzzing import Outcome, damaged, damaged_inside, fuzz, peak_memory
from multi_frame import multi_frame
from PIL import Image
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from ssmsam.dicom import file as dicom_file
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.volume.volume import Volume

MOST_MIB = 400.0
"""How much more memory than before may have been in use at the worst moment. The libraries' own tables are in it; a
header that is believed asks for thousands."""

SERIES = ("series", "rle", "jpeg2000", "jpegls", "jpeg", "deflated")
FILES = ("nii", "nii.gz", "nrrd", "raw.nrrd", "mha")
KINDS = (*FILES, *SERIES, "multi-frame", "seg", "labelmap")


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
    if kind == "multi-frame":
        folder = multi_frame(series, folder / kind / "1.dcm", order=(2, 0, 1))
        return {folder / "1.dcm": (folder / "1.dcm").read_bytes()}, lambda: read_volume(folder)
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
    elif kind in ("jpeg2000", "jpegls", "jpeg"):
        syntax, data = encoded(kind, (header.pixel_array + 1024).astype("<u2"))
        header.PixelRepresentation, header.RescaleIntercept = 0, "-1024"
        header.PixelData = encapsulate([data])
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = syntax
    elif kind == "deflated":
        header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path, write_like_original=False)


def encoded(kind: str, pixels: np.ndarray) -> tuple[UID, bytes]:
    """Pixels (rows, columns) uint16 without loss, and the transfer syntax that this is."""
    data = io.BytesIO()
    if kind == "jpeg2000":
        Image.fromarray(pixels).save(data, "JPEG2000", irreversible=False, no_jp2=True)
        return JPEG2000Lossless, data.getvalue()
    if kind == "jpegls":
        Image.fromarray(pixels).save(data, "JPEG-LS")
        return JPEGLSLossless, data.getvalue()
    with TemporaryDirectory() as folder:
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(f"{folder}/jpeg.dcm")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(pixels[None]))
        written = pydicom.dcmread(f"{folder}/jpeg.dcm")
        return written.file_meta.TransferSyntaxUID, next(generate_pixel_data_frame(written.PixelData, 1))


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
    expect_good(run(kind, tmp_path, count=25, seed=1))


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_times(kind: str, tmp_path: Path) -> None:
    expect_good(run(kind, tmp_path, count=10_000, seed=2))


BOMB_MIB = 60.0
"""What refusing, or reading what the header says, may take."""


def refused(read: Callable[[], object], message: str) -> None:
    with peak_memory() as grown, pytest.raises(UnreadableVolume, match=message):
        read()
    assert grown[0] < BOMB_MIB


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd"])
def test_a_gzip_stream_that_never_ends_is_read_as_far_as_the_header_says(kind: str, tmp_path: Path) -> None:
    files, read = sound(kind, tmp_path)
    (path, data), bomb = next(iter(files.items())), io.BytesIO()
    start = data.find(b"\n\n") + 2 if kind == "nrrd" else 0
    with gzip.GzipFile(fileobj=bomb, mode="wb", compresslevel=1) as file:
        file.write(gzip.decompress(data[start:]))
        for _ in range(200):
            file.write(bytes(1 << 20))
    path.write_bytes(data[:start] + bomb.getvalue())
    with peak_memory() as grown:
        try:
            assert read().shape == (3, 16, 20)
        except UnreadableVolume:
            assert kind == "nrrd"
    assert grown[0] < BOMB_MIB


@pytest.mark.parametrize("kind", ["nrrd", "raw.nrrd", "mha"])
def test_sizes_of_terabytes(kind: str, tmp_path: Path) -> None:
    files, read = sound(kind, tmp_path)
    path, data = next(iter(files.items()))
    for said in (b"sizes: 20 16 3", b"DimSize = 20 16 3"):
        data = data.replace(said, said.partition(b"20")[0] + b"30000 30000 3000")
    assert data != files[path]
    path.write_bytes(data)
    refused(read, "claims")


@pytest.mark.parametrize(
    ("kind", "message"), [("series", "cannot be decoded"), ("rle", "claims"), ("jpeg2000", "claims")]
)
@pytest.mark.parametrize("says", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 1_000_000}])
def test_slices_of_gigabytes(kind: str, message: str, says: dict[str, int], tmp_path: Path) -> None:
    files, read = sound(kind, tmp_path)
    for path in files:
        header = pydicom.dcmread(path)
        for name, value in says.items():
            setattr(header, name, value)
        header.save_as(path)
    refused(read, "multi-frame" if "NumberOfFrames" in says else message)


def test_a_jpeg_2000_stream_that_claims_more_than_its_header(tmp_path: Path) -> None:
    files, read = sound("jpeg2000", tmp_path)
    path, data = next(iter(files.items()))
    at = data.index(b"\xff\x4f\xff\x51") + 8
    size = struct.pack(">2L", 60000, 60000)
    path.write_bytes(data[:at] + size + data[at + 8 : at + 16] + size + data[at + 24 :])  # the image and its one tile
    refused(read, "cannot be decoded")


def test_a_deflated_file_that_inflates_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_file, "MOST_INFLATED", 1 << 24)
    files, read = sound("deflated", tmp_path)
    path, data = next(iter(files.items()))
    (length,) = struct.unpack_from("<L", data, 140)
    inflated, start = zlib.decompress(data[144 + length :], -zlib.MAX_WBITS), 144 + length
    deflate = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(data[:start] + deflate.compress(inflated + bytes(1 << 27)) + deflate.flush())
    refused(read, "inflates to more than 16 MiB")
