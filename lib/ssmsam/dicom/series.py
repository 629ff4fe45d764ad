"""A folder with one DICOM series to a volume. The pixels' meaning is in :mod:`ssmsam.dicom.pixels`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom

from ssmsam.dicom.file import looks_like_dicom, read_dataset
from ssmsam.dicom.frames import APART, ONE_VOLUME, OWN, SHARED, frame_headers, what_differs
from ssmsam.dicom.pixels import read_pixels
from ssmsam.volume.errors import UnreadableVolume, one_error
from ssmsam.volume.geometry import orthogonal_grid
from ssmsam.volume.volume import Grid, Volume

HEADER_TAGS = [
    "SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "FrameOfReferenceUID", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", SHARED, OWN, *APART,
]  # fmt: skip

NOT_IMAGES = frozenset({"SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "REG", "FID", "DOC", "AU"})
"""Modalities whose objects accompany images: skipped."""

SAME_DIRECTION = 1e-3
"""Largest difference between direction cosines of slices that count as parallel."""

SAME_POSITION_MM = 1e-2
"""Slices closer than this, and than a tenth of a pixel, lie on one another."""

ONE_OF_EACH = "Export the one to be segmented as a series of its own, or convert the series to NIfTI (dcm2niix)."

EVEN_SPACING = 0.05
"""How far one gap between slices may be from the median gap, as a fraction of it."""


@dataclass(frozen=True)
class DicomSeries:
    """The images of one series in the order of their slices, and what their headers say.

    ``files`` and ``frames`` tell where each slice is: its file, and which frame of it, from 0.
    """

    files: tuple[Path, ...]
    frames: tuple[int, ...]
    grid: Grid
    modality: str
    series_uid: str
    frame_of_reference_uid: str


def find_series(folder: Path) -> DicomSeries:
    """The one series below ``folder``, from headers alone. File names and extensions do not matter.

    Raises UnreadableVolume when there is none, more than one, or one that is not a straight, even stack of slices.
    """
    with one_error(folder):
        return _find_series(folder)


def _find_series(folder: Path) -> DicomSeries:
    files = list(_image_headers(folder))
    if not files:
        raise UnreadableVolume(f"{folder}: no DICOM images here. Give the folder that holds the files of one series.")
    _expect_no_empty_file(folder, {path.suffix for path, _ in files})
    _expect_one_series(folder, [header for _, header in files])
    slices = [(path, n, one) for path, header in files for n, one in enumerate(frame_headers(header, path))]
    for path, _, header in slices:
        _expect_slice(path, header)
    headers = [header for _, _, header in slices]
    _expect_one_volume(folder, headers)
    order, grid = _stack(folder, headers)
    first = headers[order[0]]
    return DicomSeries(
        files=tuple(slices[n][0] for n in order),
        frames=tuple(slices[n][1] for n in order),
        grid=grid,
        modality=str(first.get("Modality") or ""),
        series_uid=str(first.get("SeriesInstanceUID") or ""),
        frame_of_reference_uid=str(first.get("FrameOfReferenceUID") or ""),
    )


def read_dicom(folder: Path) -> Volume:
    """The one series below ``folder`` as a volume, sorted along its normal, rescaled (HU for CT)."""
    series = find_series(folder)
    with one_error(folder):
        return Volume(
            read_pixels(series.files, series.frames), series.grid.affine, series.modality, series.series_uid,
            series.frame_of_reference_uid,
        )  # fmt: skip


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not is_hidden and path.name.upper() != "DICOMDIR":
            yield path


def _image_headers(folder: Path) -> Iterator[tuple[Path, pydicom.Dataset]]:
    for path in _files(folder):
        with one_error(path):
            if not looks_like_dicom(path):
                continue  # a text file, a preview
            header = read_dataset(path, tags=HEADER_TAGS, pixels=False)
            is_image = bool(header.get("Rows")) and str(header.get("Modality") or "") not in NOT_IMAGES
        if is_image:
            yield path, header


def _expect_no_empty_file(folder: Path, suffixes: set[str]) -> None:
    """A copy that was broken off leaves files without a byte: nothing else tells that the first or last is missing."""
    for path in _files(folder):
        if path.suffix in suffixes and path.stat().st_size == 0:
            raise UnreadableVolume(f"{path}: an empty file among the slices, one is missing. Copy the series again.")


def _expect_one_series(folder: Path, headers: list[pydicom.Dataset]) -> None:
    found = {
        str(h.get("SeriesInstanceUID") or ""): str(h.get("SeriesDescription") or "no description") for h in headers
    }
    if len(found) > 1:
        listed = "; ".join(f"{uid or 'no UID'} ({text})" for uid, text in sorted(found.items())[:8])
        raise UnreadableVolume(f"{folder}: {len(found)} series in one folder: {listed}. Move each to its own folder.")


def _expect_slice(path: Path, header: pydicom.Dataset) -> None:
    is_colour = str(header.get("PhotometricInterpretation") or "").startswith("PALETTE")
    if is_colour or int(header.get("SamplesPerPixel") or 1) != 1:
        raise UnreadableVolume(f"{path}: a colour image. Export the series as grey values.")
    sizes = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6, "PixelSpacing": 2}
    missing = [name for name, size in sizes.items() if np.size(header.get(name) or ()) != size]
    if missing:
        raise UnreadableVolume(
            f"{path}: no {', '.join(missing)}, so its place in the patient is unknown. "
            "Remove such images (screenshots, dose reports) from the folder or export the series again."
        )


def _expect_one_volume(folder: Path, headers: list[pydicom.Dataset]) -> None:
    frames = [header for header in headers if "ReferencedFrameNumber" in header]
    if differs := what_differs(frames, tuple(ONE_VOLUME)):
        raise UnreadableVolume(
            f"{folder}: a multi-frame image of {differs}, of which each is a volume of its own. {ONE_OF_EACH}"
        )


def _stack(folder: Path, headers: list[pydicom.Dataset]) -> tuple[list[int], Grid]:
    """The order of the slices along their normal, and the grid they make."""
    orientation = np.array([h.ImageOrientationPatient for h in headers], dtype=np.float64)
    position = np.array([h.ImagePositionPatient for h in headers], dtype=np.float64)
    _expect_parallel(folder, headers, orientation)
    along_row, along_column = (axis / np.linalg.norm(axis) for axis in orientation[0].reshape(2, 3))
    normal = np.cross(along_row, along_column)
    depth = position @ normal
    order = np.argsort(depth, kind="stable")
    _expect_apart(folder, depth[order], [headers[n] for n in order])
    spacing = _spacing(folder, depth[order], headers[0])
    between_rows, between_columns = (float(mm) for mm in headers[0].PixelSpacing)
    offset = position - position[order[0]]
    drift = np.linalg.norm(offset - np.outer(offset @ normal, normal), axis=1).max()
    if drift > min(between_rows, between_columns) / 2:
        raise UnreadableVolume(
            f"{folder}: the slices shift by {drift:.1f} mm against each other (gantry tilt). "
            "Resample the series to a straight stack first, for instance with dcm2niix."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.stack([along_row * between_columns, along_column * between_rows, normal * spacing], axis=1)
    affine[:3, 3] = position[order[0]]
    shape = (len(headers), int(headers[0].Rows), int(headers[0].Columns))
    return order.tolist(), orthogonal_grid(shape, affine, folder)


def _expect_parallel(folder: Path, headers: list[pydicom.Dataset], orientation: np.ndarray) -> None:
    axes = orientation.reshape(-1, 2, 3)
    lengths = np.linalg.norm(axes, axis=2)
    if not (lengths >= 0.5).all() or np.abs((axes[:, 0] * axes[:, 1]).sum(axis=1) / lengths.prod(axis=1)).max() > 0.1:
        raise UnreadableVolume(
            f"{folder}: ImageOrientationPatient holds no two directions at right angles. Export the series again."
        )
    places = np.array([[*h.ImagePositionPatient, *h.PixelSpacing] for h in headers], dtype=np.float64)
    if not np.isfinite(places).all() or not (places[:, 3:] > 0).all():
        raise UnreadableVolume(
            f"{folder}: ImagePositionPatient is no place, or PixelSpacing no distance above 0. Export the series again."
        )
    if np.abs(orientation - orientation[0]).max() > SAME_DIRECTION:
        raise UnreadableVolume(
            f"{folder}: slices of different orientations in one series (a localizer?). "
            "Remove those that do not belong to the stack."
        )
    sizes = {(int(h.Rows), int(h.Columns), *(round(float(mm), 4) for mm in h.PixelSpacing)) for h in headers}
    if len(sizes) > 1:
        raise UnreadableVolume(
            f"{folder}: slices of different sizes or pixel spacings in one series: {sorted(sizes)}. "
            "Remove those that do not belong to the stack."
        )


def _expect_apart(folder: Path, depth: np.ndarray, headers: list[pydicom.Dataset]) -> None:
    near = min(SAME_POSITION_MM, *(float(mm) / 10 for mm in headers[0].PixelSpacing))
    for n in np.flatnonzero(np.diff(depth) < near)[:1]:
        here = np.flatnonzero(np.abs(depth - depth[n]) < near)
        differs = what_differs([headers[k] for k in here]) or "phases, echoes or copies"
        raise UnreadableVolume(
            f"{folder}: several images at one position ({differs}). Keep one of each position. {ONE_OF_EACH}"
        )


def _spacing(folder: Path, depth: np.ndarray, header: pydicom.Dataset) -> float:
    """Millimetres between the slices at sorted ``depth`` (N,) along the normal."""
    if len(depth) == 1:
        return abs(float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1.0)) or 1.0
    gaps = np.diff(depth)
    usual = float(np.median(gaps))
    if np.abs(gaps - usual).max() > EVEN_SPACING * usual:
        at = int(np.abs(gaps - usual).argmax())
        raise UnreadableVolume(
            f"{folder}: uneven slices: {gaps[at]:.2f} mm between slices {at + 1} and {at + 2} of {len(depth)} where "
            f"{usual:.2f} mm is usual. A slice may be missing: export the series again, or resample it to even slices."
        )
    return float(depth[-1] - depth[0]) / (len(depth) - 1)
