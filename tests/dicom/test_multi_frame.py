"""Multi-frame CT and MR files are the volume that the same images make as files of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from highdicom.frame import encode_frame
from multi_frame import multi_frame, say
from planted_volume import volume_of
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.uid import JPEG2000Lossless, RLELossless

from ssmsam.dicom.rtstruct import read_rtstruct, write_rtstruct
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.dicom.series import find_series
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.reading import UnreadableVolume, read_grid, read_slice, read_volume
from ssmsam.volume.volume import Volume

PATIENT = DicomPatient("Doe^Jane", "M-1", "frames")
MIXED = (3, 0, 4, 1, 2)
NOTES = AlgorithmNotes(name="test", version="1")


def single(tmp_path: Path, modality: str = "CT") -> Path:
    """Five oblique slices, each with a rescale of its own."""
    write_dicom_series(volume_of(25, modality=modality), tmp_path / "single", patient=PATIENT)
    for n, path in enumerate(sorted((tmp_path / "single").iterdir())):
        header = pydicom.dcmread(path)
        header.RescaleSlope, header.RescaleIntercept = str(n + 1), str(-10 * n)
        header.save_as(path)
    return tmp_path / "single"


def expect_same(read: Volume, truth: Volume) -> None:
    np.testing.assert_array_equal(read.array, truth.array)
    np.testing.assert_allclose(read.affine, truth.affine)
    assert (read.array.dtype, read.modality) == (truth.array.dtype, truth.modality)
    assert (read.series_uid, read.frame_of_reference_uid) == (truth.series_uid, truth.frame_of_reference_uid)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_one_file_is_the_volume_of_the_files_it_came_from(modality: str, tmp_path: Path) -> None:
    series = single(tmp_path, modality)
    truth = read_volume(series)
    if modality == "MR":  # the conversion to multi-frame says no rescale of MR
        truth = volume_of(25, modality="MR")
        truth = Volume(truth.array, truth.affine, "MR", *(getattr(read_volume(series), n) for n in (
            "series_uid", "frame_of_reference_uid")))  # fmt: skip
    folder = multi_frame(series, tmp_path / "multi" / "all.dcm", order=MIXED)
    expect_same(read_volume(folder), truth)
    assert read_grid(folder).matches(truth.grid)
    for n in range(5):
        np.testing.assert_array_equal(read_slice(folder, n)[0], truth.array[n])


def test_what_frames_share_may_be_said_once_or_of_each(tmp_path: Path) -> None:
    series = single(tmp_path)
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.RescaleSlope, header.RescaleIntercept = "2", "-1000"
        header.save_as(path)
    folder = multi_frame(series, tmp_path / "shared" / "1.dcm", shared=["PixelValueTransformationSequence"])
    expect_same(read_volume(folder), read_volume(series))
    header = pydicom.dcmread(folder / "1.dcm")
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        for groups in header.PerFrameFunctionalGroupsSequence:
            groups[name] = header.SharedFunctionalGroupsSequence[0][name]
        del header.SharedFunctionalGroupsSequence[0][name]
    header.save_as(folder / "1.dcm")
    expect_same(read_volume(folder), read_volume(series))


def test_a_series_of_several_multi_frame_files(tmp_path: Path) -> None:
    series = single(tmp_path)
    multi_frame(series, tmp_path / "parts" / "b.dcm", order=(4, 0))
    multi_frame(series, tmp_path / "parts" / "a.dcm", order=(3, 1, 2))
    expect_same(read_volume(tmp_path / "parts"), read_volume(series))


def compressed(syntax: str, series: Path, path: Path) -> Path:
    """The files of ``series`` as one compressed file at ``path``, in the order :data:`MIXED`."""
    multi_frame(series, path, order=MIXED)
    header = pydicom.dcmread(path)
    if syntax == RLELossless:
        header.compress(RLELossless, generate_instance_uid=False)
    else:
        header.PixelRepresentation = 0
        frames = [
            encode_frame(one.astype(np.uint16), JPEG2000Lossless, 16, 16, "MONOCHROME2", pixel_representation=0)
            for one in header.pixel_array
        ]
        header.PixelData = encapsulate(frames)
        header["PixelData"].is_undefined_length = True
        header.file_meta.TransferSyntaxUID = JPEG2000Lossless
    header.save_as(path)
    return path


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_frames(syntax: str, tmp_path: Path) -> None:
    series = single(tmp_path)
    folder, truth = compressed(syntax, series, tmp_path / "multi" / "all.dcm").parent, read_volume(series)
    expect_same(read_volume(folder), truth)
    for n in range(5):
        np.testing.assert_array_equal(read_slice(folder, n)[0], truth.array[n])


def test_one_slice_is_decoded_alone(tmp_path: Path) -> None:
    """Where the others cannot even be decoded."""
    series = single(tmp_path)
    path, truth = compressed(JPEG2000Lossless, series, tmp_path / "multi" / "all.dcm"), read_volume(series)
    header = pydicom.dcmread(path)
    streams = list(generate_pixel_data_frame(header.PixelData, 5))
    streams[1:] = [stream[:40] for stream in streams[1:]]
    header.PixelData = encapsulate(streams)
    header["PixelData"].is_undefined_length = True
    header.save_as(path)
    np.testing.assert_array_equal(read_slice(path.parent, MIXED[0])[0], truth.array[MIXED[0]])
    for read in (lambda: read_slice(path.parent, MIXED[1]), lambda: read_volume(path.parent)):
        with pytest.raises(UnreadableVolume, match="cannot be decoded"):
            read()


@pytest.mark.parametrize("kind", ["one file", "several files"])
def test_a_seg_names_the_frames_and_comes_back(kind: str, tmp_path: Path) -> None:
    series, folder = single(tmp_path), tmp_path / "multi"
    for n, order in enumerate([MIXED] if kind == "one file" else [(4, 0), (3, 1, 2)]):
        multi_frame(series, folder / f"{n}.dcm", order=order)
    volume = read_volume(folder)
    array = np.zeros(volume.shape, np.uint8)
    array[1:4, 2:5, 3:7], array[4, 1, 1] = 1, 3
    labels = {"liver": 1, "spleen": 3}
    path = write_seg(volume.with_array(array), labels, folder, tmp_path / "seg.dcm", algorithm=NOTES)
    read = read_seg(path, volume.grid)
    np.testing.assert_array_equal(read.volume.array, array)
    assert read.labels == labels

    places = {}
    for file in folder.iterdir():
        header = pydicom.dcmread(file)
        for n, groups in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
            place = [float(mm) for mm in groups.PlanePositionSequence[0].ImagePositionPatient]
            places[header.SOPInstanceUID, n] = place
    seg = pydicom.dcmread(path)
    named = [one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(named) == sorted({uid for uid, _ in places})
    for frame in seg.PerFrameFunctionalGroupsSequence:
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        there = places[source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber]
        np.testing.assert_allclose(frame.PlanePositionSequence[0].ImagePositionPatient, there, atol=1e-6)


def test_a_structure_set_names_the_frames_too(tmp_path: Path) -> None:
    folder = multi_frame(single(tmp_path), tmp_path / "multi" / "all.dcm", order=MIXED)
    volume = read_volume(folder)
    array = np.zeros(volume.shape, np.uint8)
    array[1, 2:5, 3:7] = 1
    path = write_rtstruct(volume.with_array(array), {"liver": 1}, folder, tmp_path / "rt.dcm", algorithm=NOTES)
    np.testing.assert_array_equal(read_rtstruct(path, volume.grid)["liver"], array == 1)
    (contour,) = pydicom.dcmread(path).ROIContourSequence[0].ContourSequence
    assert contour.ContourImageSequence[0].ReferencedFrameNumber == 1 + MIXED.index(1)


@pytest.mark.parametrize(
    ("group", "name", "values", "message"),
    [
        ("FrameContentSequence", "StackID", ["1", "1", "1", "2", "2"], r"of 2 stacks \(1, 2\)"),
        ("MREchoSequence", "EffectiveEchoTime", [4.6, 9.2, 4.6, 9.2, 4.6], r"of 2 echoes \(4\.6, 9\.2\)"),
        ("MRDiffusionSequence", "DiffusionBValue", [0.0, 0.0, 500.0, 1000.0, 0.0], "of 3 b-values"),
    ],
)
def test_frames_of_several_volumes_are_refused_with_what_differs(
    group: str, name: str, values: list[object], message: str, tmp_path: Path
) -> None:
    folder = multi_frame(single(tmp_path, "MR"), tmp_path / "multi" / "all.dcm", edit=say(group, name, values))
    for read in (read_volume, read_grid):
        with pytest.raises(UnreadableVolume, match=message):
            read(folder)


def test_points_in_time_at_one_place_are_named(tmp_path: Path) -> None:
    series = single(tmp_path, "MR")
    once = say("FrameContentSequence", "TemporalPositionIndex", [1, 2, 3, 4, 5])  # a number of each slice: one volume
    assert read_volume(multi_frame(series, tmp_path / "one" / "1.dcm", edit=once)).shape == (5, 7, 9)
    for time in (1, 2):
        edit = say("FrameContentSequence", "TemporalPositionIndex", [time] * 5)
        folder = multi_frame(series, tmp_path / "two" / f"{time}.dcm", edit=edit)
    with pytest.raises(UnreadableVolume, match=r"at one position \(2 points in time \(1, 2\)\)"):
        read_volume(folder)


def test_frames_that_are_not_all_described(tmp_path: Path) -> None:
    path = multi_frame(single(tmp_path), tmp_path / "multi" / "all.dcm") / "all.dcm"
    header = pydicom.dcmread(path)
    del header.PerFrameFunctionalGroupsSequence[-1]
    header.save_as(path)
    with pytest.raises(UnreadableVolume, match="5 frames that describes 4"):
        find_series(path.parent)
