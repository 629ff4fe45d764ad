"""What DICOM headers say of pixels: oddities that leave the image as it is, and those that are refused."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
)

from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.volume.volume import Volume

HU = np.random.default_rng(3).integers(-1000, 1200, (5, 7, 9)).astype(np.int16)
CIRCLE = (np.arange(7)[:, None] - 3) ** 2 + (np.arange(9) - 4) ** 2 < 12

Change = Callable[[pydicom.Dataset], None]


@pytest.fixture
def folder(tmp_path: Path, ct: Volume) -> Path:
    write_dicom_series(Volume(HU, ct.affine, "CT"), tmp_path / "series", patient=DicomPatient("Doe^Jane", "1"))
    return tmp_path / "series"


def edit(folder: Path, change: Change) -> None:
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        change(header)
        header.save_as(path)


def store(header: pydicom.Dataset, values: np.ndarray, **says: object) -> None:
    header.PixelData = values.tobytes()
    for name, value in says.items():
        setattr(header, name, value)


def stored(header: pydicom.Dataset) -> np.ndarray:
    return header.pixel_array.astype(np.int64)


def monochrome1(header: pydicom.Dataset) -> None:
    header.PhotometricInterpretation = "MONOCHROME1"


def no_gap(header: pydicom.Dataset) -> None:
    header.SpacingBetweenSlices = "0"


def signed_with_a_large_intercept(header: pydicom.Dataset) -> None:
    store(header, (stored(header) - 31000).astype("<i2"), RescaleIntercept="31000")


def unsigned_with_a_large_intercept(header: pydicom.Dataset) -> None:
    store(header, (stored(header) + 60000).astype("<u2"), RescaleIntercept="-60000", PixelRepresentation=0)


def old_overlay_in_unused_bits(header: pydicom.Dataset) -> None:
    values = ((stored(header) + 1024) | 0xA000).astype("<u2")
    store(header, values, RescaleIntercept="-1024", BitsStored=12, HighBit=11, PixelRepresentation=0)


def signed_in_twelve_bits(header: pydicom.Dataset) -> None:
    store(header, (stored(header) & 0xFFF).astype("<u2"), BitsStored=12, HighBit=11, PixelRepresentation=1)


def lookup_table(header: pydicom.Dataset) -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [2300, 0, 16], "HU"
    table.LUTData = np.arange(2300, dtype="<u2").tobytes()
    table["LUTData"].VR = "OW"
    del header.RescaleSlope, header.RescaleIntercept
    store(header, (stored(header) + 1000).astype("<u2"), PixelRepresentation=0, ModalityLUTSequence=[table])


def no_rescale(header: pydicom.Dataset) -> None:
    del header.RescaleSlope, header.RescaleIntercept


def empty_padding(header: pydicom.Dataset) -> None:
    header.add_new("PixelPaddingValue", "SS", None)


@pytest.mark.parametrize(
    "change",
    [
        monochrome1, no_gap, signed_with_a_large_intercept, unsigned_with_a_large_intercept, old_overlay_in_unused_bits,
        signed_in_twelve_bits, no_rescale, empty_padding,
    ],
)  # fmt: skip
def test_oddities_that_change_nothing(folder: Path, ct: Volume, change: Change) -> None:
    edit(folder, change)
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, HU)
    assert read.array.dtype == np.int16
    assert read.grid.matches(ct.grid)


def test_a_lookup_table_gives_its_values(folder: Path) -> None:
    edit(folder, lookup_table)
    np.testing.assert_array_equal(read_volume(folder).array, HU + 1000)


@pytest.mark.parametrize("padding", [-32768, -2000, 32767])
def test_padding_is_no_tissue(folder: Path, padding: int) -> None:
    def change(header: pydicom.Dataset) -> None:
        store(header, np.where(CIRCLE, stored(header), padding).astype("<i2"))
        header.add_new("PixelPaddingValue", "SS", padding)

    edit(folder, change)
    read = read_volume(folder).array
    np.testing.assert_array_equal(read[:, CIRCLE], HU[:, CIRCLE])
    assert (read[:, ~CIRCLE] == HU[:, CIRCLE].min()).all()


def test_padding_may_be_a_range_in_the_other_sign_or_beyond_the_stored_bits(folder: Path) -> None:
    def change(header: pydicom.Dataset) -> None:
        values = np.where(CIRCLE, stored(header) + 1024, 63536 + (np.arange(9) % 3))
        store(header, values.astype("<u2"), RescaleIntercept="-1024", BitsStored=12, HighBit=11, PixelRepresentation=0)
        header.add_new("PixelPaddingValue", "SS", -2000)
        header.add_new("PixelPaddingRangeLimit", "US", 63538)

    edit(folder, change)
    read = read_volume(folder).array
    np.testing.assert_array_equal(read[:, CIRCLE], HU[:, CIRCLE])
    assert len(np.unique(read[:, ~CIRCLE])) <= 3
    assert read.max() <= 4095 - 1024


def test_a_padding_value_that_tissue_has_too_stays(folder: Path) -> None:
    edit(folder, lambda header: header.add_new("PixelPaddingValue", "SS", int(np.median(HU))))
    np.testing.assert_array_equal(read_volume(folder).array, HU)


@pytest.mark.parametrize(
    ("slope", "intercept"), [("0", "0"), ("0", "5"), ("nan", "0"), ("1,0", "-1024"), ("1", "inf"), ("1e38", "0")]
)
def test_a_rescale_that_makes_no_values_is_refused(folder: Path, slope: str, intercept: str) -> None:
    def change(header: pydicom.Dataset) -> None:
        for tag, value in ((0x00281053, slope), (0x00281052, intercept)):
            raw = value.encode().ljust(len(value) + len(value) % 2)
            header[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), "DS", len(raw), raw, 0, False, True)

    edit(folder, change)
    with pytest.raises(UnreadableVolume):
        read_volume(folder)


def test_indices_into_a_palette_are_colour(folder: Path) -> None:
    edit(folder, lambda header: setattr(header, "PhotometricInterpretation", "PALETTE COLOR"))
    with pytest.raises(UnreadableVolume, match="colour"):
        read_volume(folder)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, None])
@pytest.mark.parametrize("preamble", [True, False])
def test_every_way_to_write_a_dataset(folder: Path, syntax: pydicom.uid.UID | None, preamble: bool) -> None:
    for path in folder.iterdir():
        header = pydicom.dcmread(path)
        values = header.pixel_array
        if syntax is None:  # no meta information at all, as from the time before it
            path.write_bytes(b"")
            header.file_meta, header.preamble = pydicom.dataset.FileMetaDataset(), None
            header.is_little_endian, header.is_implicit_VR = True, True
        else:
            header.file_meta.TransferSyntaxUID = syntax
            header.is_little_endian = syntax != ExplicitVRBigEndian
            header.is_implicit_VR = syntax == ImplicitVRLittleEndian
        header.PixelData = values.astype("<i2" if header.is_little_endian else ">i2").tobytes()
        header.save_as(path, write_like_original=syntax is None)
        if syntax is not None and not preamble:
            path.write_bytes(path.read_bytes()[132:])
    if syntax == DeflatedExplicitVRLittleEndian and not preamble:
        with pytest.raises(UnreadableVolume):
            read_volume(folder)
    else:
        np.testing.assert_array_equal(read_volume(folder).array, HU)


def test_a_seg_of_slices_without_a_preamble(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    mask = read_volume(folder)
    mask = mask.with_array((mask.array > 0).astype(np.uint8))
    notes = AlgorithmNotes(name="test", version="1")
    assert write_seg(mask, {"liver": 1}, folder, tmp_path / "seg.dcm", algorithm=notes).is_file()


def rle(header: pydicom.Dataset) -> None:
    header.compress(RLELossless, generate_instance_uid=False)


def jpeg_2000(header: pydicom.Dataset) -> None:
    data = io.BytesIO()
    image = Image.fromarray((stored(header) + 1024).astype("<u2"))
    image.save(data, "JPEG2000", irreversible=False, no_jp2=True)
    store(header, np.zeros(0), PixelRepresentation=0, RescaleIntercept="-1024")
    header.PixelData = encapsulate([data.getvalue()], fragments_per_frame=3)
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = JPEG2000Lossless


def rle_monochrome1_with_no_gap(header: pydicom.Dataset) -> None:
    rle(header)
    monochrome1(header)
    no_gap(header)


@pytest.mark.parametrize("change", [rle, jpeg_2000, rle_monochrome1_with_no_gap])
def test_compressed_slices(folder: Path, change: Change) -> None:
    edit(folder, change)
    np.testing.assert_array_equal(read_volume(folder).array, HU)


def test_a_compression_that_is_not_known_is_named(folder: Path) -> None:
    def video(header: pydicom.Dataset) -> None:
        rle(header)
        header.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML

    edit(folder, video)
    with pytest.raises(UnreadableVolume, match=r"MPEG2.*uncompressed"):
        read_volume(folder)


def test_a_slice_without_pixels_is_named(folder: Path) -> None:
    edit(folder, lambda header: header.pop("PixelData", None))
    with pytest.raises(UnreadableVolume, match=r"\.dcm: no pixels"):
        read_volume(folder)


def test_an_empty_file_among_the_slices_is_a_missing_one(folder: Path) -> None:
    (folder / "0005.dcm").write_bytes(b"")
    with pytest.raises(UnreadableVolume, match=r"0005\.dcm: an empty file"):
        read_volume(folder)


def test_files_of_other_kinds_do_not_matter(folder: Path) -> None:
    junk = {
        "AAA.csv": b"a,b\n" * 99,
        "Thumbs.db": bytes(512),
        "._0001.dcm": b"\0\5\x16\7" * 40,
        "notes": b"",
        "x.dat": b"",
    }
    junk["clip.bin"] = b"\x08\0\x16\0" + bytes(60) + b"nothing of it is DICOM" * 9
    for name, data in junk.items():
        (folder / name).write_bytes(data)
    np.testing.assert_array_equal(read_volume(folder).array, HU)


@pytest.mark.parametrize("turn", itertools.islice(itertools.permutations([0, 1, 2]), 4))
def test_orientation_and_oddities_do_not_meet(tmp_path: Path, ct: Volume, turn: tuple[int, int, int]) -> None:
    """Axial, coronal, sagittal and oblique series of MR, with a rescale of their own in every slice."""
    affine = ct.affine.copy()
    affine[:3, :3] = affine[:3, :3][list(turn)]
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 0] *= -1
    write_dicom_series(Volume(HU, affine, "MR"), tmp_path, patient=DicomPatient("Doe^Jane", "1"))

    def change(header: pydicom.Dataset) -> None:
        store(header, (stored(header) - int(header.InstanceNumber)).astype("<i2"))
        header.RescaleSlope, header.RescaleIntercept = "1", str(int(header.InstanceNumber))

    edit(tmp_path, change)
    read = read_volume(tmp_path)
    np.testing.assert_array_equal(read.array, HU)
    np.testing.assert_allclose(read.affine, find_series(tmp_path).grid.affine)
    assert read.grid.matches(Volume(HU, affine).grid)


def test_a_description_of_pixels_that_lacks_what_cannot_be_otherwise(folder: Path) -> None:
    def bare(header: pydicom.Dataset) -> None:
        for name in ("SamplesPerPixel", "PhotometricInterpretation", "BitsStored", "HighBit"):
            delattr(header, name)

    edit(folder, bare)
    np.testing.assert_array_equal(read_volume(folder).array, HU)
    edit(folder, lambda header: delattr(header, "PixelRepresentation"))  # negative or not: both can be
    with pytest.raises(UnreadableVolume, match="no PixelRepresentation"):
        read_volume(folder)
