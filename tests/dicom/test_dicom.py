"""Small DICOM series, whole and spoilt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.fileset import FileSet

from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, derived_uid, write_dicom_series
from ssmsam.reading import UnreadableVolume, read_grid, read_volume
from ssmsam.volume.volume import Volume, reoriented

PATIENT = DicomPatient("Test^Tessa", "T-1", "five slices")
JPEG_2000 = Path("../shared/data/totalseg_examples/dicom_ct")


@pytest.fixture
def folder(tmp_path: Path, ct: Volume) -> Path:
    write_dicom_series(ct, tmp_path / "series", patient=PATIENT)
    return tmp_path / "series"


def edit(folder: Path, change: Callable[[pydicom.Dataset, int], None]) -> None:
    """Apply ``change(header, slice index)`` to every file."""
    for index, path in enumerate(sorted(folder.iterdir())):
        header = pydicom.dcmread(path)
        change(header, index)
        header.save_as(path)


def test_a_series_reads_back_with_everything_known_of_it(folder: Path, ct: Volume) -> None:
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, ct.array)
    assert read.grid.matches(ct.grid)
    assert read.modality == "CT"
    header = pydicom.dcmread(folder / "0001.dcm")
    assert (read.series_uid, read.frame_of_reference_uid) == (header.SeriesInstanceUID, header.FrameOfReferenceUID)
    assert read.series_uid


def test_file_names_extensions_and_folders_do_not_matter(folder: Path, ct: Volume) -> None:
    names = ["z", "b.9", "IM0007", "sub/a", "sub/deeper/0"]
    for name, path in zip(names, sorted(folder.iterdir()), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(folder / name)
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, ct.array)
    assert read.grid.matches(ct.grid)


def test_hidden_files_and_folders_are_not_looked_at(folder: Path, ct: Volume) -> None:
    for copy in (folder / ".0001.dcm", folder / ".trash" / "0001.dcm"):
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((folder / "0001.dcm").read_bytes())
    np.testing.assert_array_equal(read_volume(folder).array, ct.array)


def test_slices_are_ordered_by_place_not_by_instance_number(folder: Path, ct: Volume) -> None:
    edit(folder, lambda header, n: setattr(header, "InstanceNumber", [3, 1, 5, 2, 4][n]))
    np.testing.assert_array_equal(read_volume(folder).array, ct.array)


@pytest.mark.parametrize("codes", ["LPS", "LIP", "PSL", "RAS", "PIR"])
def test_axial_coronal_and_sagittal_series_lie_where_they_should(tmp_path: Path, ct: Volume, codes: str) -> None:
    stored = reoriented(ct, codes)
    if np.linalg.det(stored.affine[:3, :3]) < 0:
        stored = Volume(stored.array[::-1].copy(), stored.affine @ _reversed(stored.shape[0]), "CT")
    write_dicom_series(stored, tmp_path, patient=PATIENT)
    read = read_volume(tmp_path)
    np.testing.assert_array_equal(read.array, stored.array)
    assert read.grid.matches(stored.grid)
    assert read_grid(tmp_path).matches(stored.grid)


def _reversed(count: int) -> np.ndarray:
    """Voxel index of a stack -> voxel index of the same stack upside down."""
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = count - 1
    return flip


def test_simpleitk_agrees(folder: Path) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    itk = reader.Execute()
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, sitk.GetArrayFromImage(itk))
    for ijk in ((0, 0, 0), (8, 6, 4), (3, 2, 1)):
        place = itk.TransformIndexToPhysicalPoint(ijk)
        np.testing.assert_allclose(read.grid.to_lps(np.array([ijk]))[0], place, atol=1e-3)


def test_every_slice_is_rescaled_by_its_own_numbers(folder: Path, ct: Volume) -> None:
    def rescale(header: pydicom.Dataset, n: int) -> None:
        header.RescaleSlope, header.RescaleIntercept = str(n + 1), "-1024"

    edit(folder, rescale)
    read = read_volume(folder)
    np.testing.assert_array_equal(read.array, ct.array * np.arange(1, 6)[:, None, None] - 1024)
    assert read.array.dtype == np.int16


def test_fractional_rescale_gives_float32(folder: Path, ct: Volume) -> None:
    edit(folder, lambda header, n: setattr(header, "RescaleSlope", "0.25"))
    read = read_volume(folder)
    assert read.array.dtype == np.float32
    np.testing.assert_allclose(read.array, ct.array * 0.25)


def test_a_single_slice_takes_its_thickness_as_spacing(folder: Path, ct: Volume) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()
    assert read_volume(folder).spacing == pytest.approx(ct.spacing)


def test_what_is_no_image_is_ignored(folder: Path, ct: Volume) -> None:
    for number, modality in enumerate(("SEG", "SR", "RTSTRUCT", "PR")):
        other = pydicom.dcmread(folder / "0001.dcm")
        other.Modality, other.SeriesInstanceUID, other.NumberOfFrames = modality, derived_uid(modality), 9
        if modality != "SEG":
            del other.Rows, other.Columns, other.PixelData
        other.save_as(folder / f"other{number}.dcm")
    (folder / "readme.txt").write_text("not DICOM")
    (folder / ".DS_Store").write_bytes(b"\0" * 500)
    np.testing.assert_array_equal(read_volume(folder).array, ct.array)


def test_a_disc_with_its_directory_is_read(folder: Path, ct: Volume, tmp_path: Path) -> None:
    disc = FileSet()
    for path in folder.iterdir():
        disc.add(path)
    disc.write(tmp_path / "disc")
    assert (tmp_path / "disc" / "DICOMDIR").is_file()
    np.testing.assert_array_equal(read_volume(tmp_path / "disc").array, ct.array)


def shift(header: pydicom.Dataset, millimetres: np.ndarray | float, axis: int) -> None:
    """Move the slice along its rows (0), columns (1) or normal (2)."""
    along = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    axes = [*along, np.cross(*along)]
    moved = np.array(header.ImagePositionPatient, float) + millimetres * axes[axis]
    header.ImagePositionPatient = [f"{value:.6f}" for value in moved]


def other_series(header: pydicom.Dataset, n: int) -> None:
    if n > 2:
        header.SeriesInstanceUID, header.SeriesDescription = derived_uid("other"), "arterial"


def localizer(header: pydicom.Dataset, n: int) -> None:
    if n == 0:
        a, b, c, *rest = header.ImageOrientationPatient
        header.ImageOrientationPatient = [*rest, a, b, c]


def tilt(header: pydicom.Dataset, n: int) -> None:
    shift(header, 0.9 * n, 1)


def uneven(header: pydicom.Dataset, n: int) -> None:
    shift(header, 0.3 * n**2, 2)


def copies(header: pydicom.Dataset, n: int) -> None:
    if n == 2:
        shift(header, -3.5, 2)


def frames(header: pydicom.Dataset, n: int) -> None:
    header.NumberOfFrames, header.PixelData = 2, header.PixelData * 2


def colour(header: pydicom.Dataset, n: int) -> None:
    header.SamplesPerPixel, header.PhotometricInterpretation = 3, "RGB"


def placeless(header: pydicom.Dataset, n: int) -> None:
    if n == 3:
        del header.ImagePositionPatient


def blank_place(header: pydicom.Dataset, n: int) -> None:
    header.PixelSpacing = None


def backwards(header: pydicom.Dataset, n: int) -> None:
    header.PixelSpacing = ["-1.5", "0.75"]


def one_direction(header: pydicom.Dataset, n: int) -> None:
    header.ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


def sizes(header: pydicom.Dataset, n: int) -> None:
    if n == 4:
        header.PixelSpacing = ["1.6", "0.75"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_series, "2 series in one folder.*arterial.*own folder"),
        (localizer, "different orientations"),
        (tilt, "gantry tilt.*dcm2niix"),
        (uneven, "uneven slices"),
        (copies, "at one position"),
        (frames, "multi-frame.*dcm2niix"),
        (colour, "colour"),
        (placeless, "no ImagePositionPatient"),
        (blank_place, "no PixelSpacing"),
        (backwards, "PixelSpacing no distance above 0"),
        (one_direction, "no two directions at right angles"),
        (sizes, "different sizes or pixel spacings"),
    ],
)
def test_what_is_no_straight_even_stack_is_refused(
    folder: Path, spoil: Callable[[pydicom.Dataset, int], None], message: str
) -> None:
    edit(folder, spoil)
    for read in (read_volume, read_grid):
        with pytest.raises(UnreadableVolume, match=message):
            read(folder)


def test_slices_of_some_micrometres_are_apart(tmp_path: Path) -> None:
    small = Volume(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([0.002, 0.002, 0.005, 1.0]), "CT")
    write_dicom_series(small, tmp_path / "oct", patient=DicomPatient("Doe^Jane", "1"))
    read = read_volume(tmp_path / "oct")
    np.testing.assert_array_equal(read.array, small.array)
    np.testing.assert_allclose(read.spacing, small.spacing)


def test_a_missing_slice_is_named(folder: Path) -> None:
    (folder / "0003.dcm").unlink()
    with pytest.raises(UnreadableVolume, match=r"7\.00 mm between slices 2 and 3 of 4"):
        read_volume(folder)


def test_positions_rounded_by_the_scanner_are_no_fault(folder: Path) -> None:
    def rounded(header: pydicom.Dataset, n: int) -> None:
        header.ImagePositionPatient = [f"{float(v):.2f}" for v in header.ImagePositionPatient]
        header.ImageOrientationPatient = [f"{float(v):.5f}" for v in header.ImageOrientationPatient]

    edit(folder, rounded)
    assert read_volume(folder).spacing == pytest.approx((3.5, 1.5, 0.75), abs=0.01)


def test_pixels_that_cannot_be_decoded_are_refused(folder: Path) -> None:
    path = folder / "0002.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UnreadableVolume, match=r"0002\.dcm"):
        read_volume(folder)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVolume, match="no DICOM images"):
        read_volume(tmp_path)


def test_a_single_dicom_file_is_refused_in_favour_of_its_folder(folder: Path) -> None:
    with pytest.raises(UnreadableVolume, match="folder that holds"):
        read_volume(folder / "0001.dcm")


def test_written_headers_are_valid_and_the_same_every_time(tmp_path: Path, ct: Volume) -> None:
    for name in ("one", "two"):
        write_dicom_series(ct, tmp_path / name, patient=PATIENT)
    files = sorted((tmp_path / "one").iterdir())
    assert all(path.read_bytes() == (tmp_path / "two" / path.name).read_bytes() for path in files)
    headers = [pydicom.dcmread(path) for path in files]
    assert len({header.SOPInstanceUID for header in headers}) == 5
    for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        uids = {header[name].value for header in headers}
        assert len(uids) == 1
        assert uids.pop().is_valid
    assert str(headers[0].PatientName) == "Test^Tessa"
    assert find_series(tmp_path / "one").files == tuple(files)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (Volume(np.zeros((2, 2, 2), np.int16), np.eye(4), "PT"), "CT or MR"),
        (Volume(np.zeros((2, 2, 2), np.float32), np.eye(4), "CT"), "int16"),
        (Volume(np.zeros((2, 2, 2), np.int16), np.diag([1.0, 1, -1, 1]), "MR"), "right-handed"),
    ],
)
def test_volumes_that_dicom_cannot_hold_are_refused(tmp_path: Path, volume: Volume, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_dicom_series(volume, tmp_path, patient=PATIENT)


def test_mr_series_are_written_and_read(tmp_path: Path, ct: Volume) -> None:
    mr = Volume(ct.array.astype(np.uint16), ct.affine, "MR")
    write_dicom_series(mr, tmp_path, patient=PATIENT)
    assert read_volume(tmp_path).modality == "MR"
    np.testing.assert_array_equal(read_volume(tmp_path).array, mr.array)


@pytest.mark.skipif(not JPEG_2000.is_dir(), reason=f"needs {JPEG_2000}")
def test_jpeg_2000_with_blank_uids() -> None:
    read = read_volume(JPEG_2000)
    assert read.shape == (20, 512, 512)
    assert read.array.dtype == np.int16
    assert read.array.min() <= -1000
    assert read.spacing == pytest.approx((2.0, 0.9766, 0.9766), abs=1e-3)
