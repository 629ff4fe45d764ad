"""A folder with one DICOM series to a volume: the order of its slices, and what its pixels mean (HU for CT).

pydicom decodes what is not compressed, and RLE. GDCM decodes the rest, from a copy that says nothing but how the pixels
are stored: left to itself it inverts MONOCHROME1, refuses a spacing of 0 and signed intercepts, and ignores padding.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_pixel_data_frame
from pydicom.pixel_data_handlers.util import apply_modality_lut
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from ssmsam.dicom.file import (
    APART,
    ONE_VOLUME,
    OWN,
    SHARED,
    frame_headers,
    looks_like_dicom,
    new_file,
    read_dataset,
    what_differs,
)
from ssmsam.volume.errors import UnreadableVolume, expect_held, one_error, reason_of
from ssmsam.volume.formats import compact, rescaled
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


STORAGE = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
"""All that GDCM is told of an image."""

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
"""The elements that may hold the pixels."""

JPEG_START, JPEG_2000_START = b"\xff\xd8", b"\xff\x4f\xff\x51"
FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""What begins the segment of a JPEG or JPEG-LS stream that states its size."""

ALWAYS_ALLOWED = 1 << 26
"""Bytes of pixels that any compressed file may claim: nothing bounds how small an even image becomes. *Guess*."""


def read_pixels(files: Sequence[Path], frames: Sequence[int]) -> np.ndarray:
    """(slices, rows, columns) of the ``frames`` of ``files``, one of each for each slice, from 0; each is rescaled by
    its own slope and intercept.

    Pixels that the header calls padding are no tissue: where they lie outside the values of the others, they get the
    lowest of these. MONOCHROME1 says how pixels are shown, not what they mean, and changes nothing.
    Raises UnreadableVolume.
    """
    wanted: dict[Path, list[int]] = {}
    for path, frame in zip(files, frames, strict=True):
        wanted.setdefault(path, []).append(frame)
    found = {path: iter(_read(path, of_it)) for path, of_it in wanted.items()}
    read = [next(found[path]) for path in files]
    kind = np.result_type(*(values for values, _ in read))
    kind = np.dtype(np.float32) if kind.kind == "f" else kind
    array = np.stack([values for values, _ in read], dtype=kind, casting="same_kind")
    if any(padding is not None for _, padding in read):
        none = np.zeros(array.shape[1:], dtype=bool)
        _fill(array, np.stack([none if padding is None else padding for _, padding in read]))
    return compact(array)


def decoded(header: FileDataset, path: Path) -> np.ndarray:
    """The stored numbers (frames, rows, columns) of a file. ``path`` is for messages.

    Raises UnreadableVolume where there are no pixels, fewer than the header says, or of an unknown compression.
    """
    if not any(name in header for name in PIXELS):
        raise UnreadableVolume(f"{path}: no pixels in it. Send the image again.")
    if not hasattr(header, "file_meta"):
        header.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in header.file_meta:
        explicit = ExplicitVRLittleEndian if header.is_little_endian else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if header.is_implicit_VR else explicit
    _complete(header, path)
    syntax = header.file_meta.TransferSyntaxUID
    shape = int(header.get("NumberOfFrames") or 1), int(header.Rows), int(header.Columns)
    try:
        claimed = float(np.prod(shape, dtype=np.float64)) * int(header.BitsAllocated) / 8
        if syntax.is_encapsulated and claimed > ALWAYS_ALLOWED:
            expect_held(claimed, path)
        by_pydicom = not syntax.is_encapsulated or syntax == RLELossless
        return (header.pixel_array if by_pydicom else _decompressed(header)).reshape(shape)
    except UnreadableVolume:
        raise
    except Exception as error:  # the decoders raise what they like
        raise UnreadableVolume(
            f"{path}: the pixels cannot be decoded ({syntax.name}). The file is damaged or cut short, or its "
            f"compression is not known here: export it again, uncompressed. ({reason_of(error)})"
        ) from error


def _complete(header: Dataset, path: Path) -> None:
    """What anonymised files lack of the description of pixels, where nothing else can be meant."""
    for name, usual in (("SamplesPerPixel", 1), ("PhotometricInterpretation", "MONOCHROME2"), ("BitsStored", None)):
        if header.get(name) in (None, ""):
            setattr(header, name, header.BitsAllocated if usual is None else usual)
    if (
        "FloatPixelData" not in header
        and "DoubleFloatPixelData" not in header
        and header.get("PixelRepresentation") is None
    ):
        raise UnreadableVolume(
            f"{path}: no PixelRepresentation, so whether pixels may be negative is unknown. Export the series again."
        )


def _decompressed(header: FileDataset) -> np.ndarray:
    copy = new_file(SecondaryCaptureImageStorage, UID("1.2.3"))
    copy.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    copy.PhotometricInterpretation = "MONOCHROME2"
    for name in STORAGE:
        setattr(copy, name, int(header.get(name) or 0))
    copy.NumberOfFrames = frames = int(header.get("NumberOfFrames") or 1)
    copy.HighBit = copy.BitsStored - 1
    # GDCM divides by what it reads, and believes the lengths of pieces: nothing senseless may reach it
    if min(copy.Rows, copy.Columns, frames) < 1 or copy.SamplesPerPixel != 1 or copy.PixelRepresentation not in (0, 1):
        raise ValueError("an image without pixels, or of several colours")
    if copy.BitsAllocated not in (8, 16) or not 0 < copy.BitsStored <= copy.BitsAllocated:
        raise ValueError(f"{copy.BitsStored} of {copy.BitsAllocated} bits")
    streams = list(generate_pixel_data_frame(header.PixelData, frames))
    for stream in streams:
        if _stream_size(stream) not in (None, (copy.Rows, copy.Columns)):
            raise ValueError(f"compressed pixels of another size {_stream_size(stream)} than the header's")
    copy.PixelData = encapsulate(streams)
    copy["PixelData"].is_undefined_length = True
    with TemporaryDirectory(prefix="ssmsam-") as folder:
        file = Path(folder) / "pixels.dcm"
        copy.save_as(file, write_like_original=False)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        return sitk.GetArrayFromImage(reader.Execute())


def _stream_size(stream: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG 2000, JPEG or JPEG-LS stream itself states, None where it does not at its start."""
    at = stream.find(JPEG_2000_START, 0, 4096)
    if at >= 0 and len(stream) >= at + 24:
        right, bottom, left, top = struct.unpack_from(">4L", stream, at + 8)
        return bottom - top, right - left
    at = 2 if stream.startswith(JPEG_START) else len(stream)
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        if stream[at + 1] in FRAME_MARKERS:
            rows, columns = struct.unpack_from(">2H", stream, at + 5)
            return rows, columns
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None


def _fill(array: np.ndarray, padding: np.ndarray) -> None:
    real = array[~padding]
    if real.size:
        low, high = real.min(), real.max()
        array[padding & ((array < low) | (array > high))] = low


def _read(path: Path, frames: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The values (rows, columns) of frames of one file, and which of them are padding (None: the header names none)."""
    with one_error(path):
        header = read_dataset(path)
        headers = frame_headers(header, path)
        some = len(frames) < len(headers) and _keep_frames(header, frames)
        raw = decoded(header, path)
        return [_values(headers[frame], raw[n if some else frame], path) for n, frame in enumerate(frames)]


def _keep_frames(header: FileDataset, frames: Sequence[int]) -> bool:
    """Take the pixels of all but some frames out of a file before they are decoded; whether it was possible."""
    count = int(header.get("NumberOfFrames") or 1)
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    if syntax is not None and syntax.is_encapsulated:
        streams = list(generate_pixel_data_frame(header.PixelData, count))
        if len(streams) != count:
            return False
        header.PixelData = encapsulate([streams[frame] for frame in frames])
        header["PixelData"].is_undefined_length = True
    else:
        name = next((name for name in PIXELS if name in header), "")
        bits, data = int(header.BitsAllocated), header.get(name) or b""
        size = int(header.Rows) * int(header.Columns) * bits // 8
        if bits % 8 or len(data) < size * count:
            return False
        setattr(header, name, b"".join(data[size * frame : size * (frame + 1)] for frame in frames))
    header.NumberOfFrames = len(frames)
    return True


def _values(header: Dataset, raw: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    stored = _without_unused_bits(header, raw)
    padding = _padding(header, raw, stored)
    if header.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, header), padding
    slope, intercept = (header.get(name) for name in ("RescaleSlope", "RescaleIntercept"))
    slope, intercept = 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise UnreadableVolume(
            f"{path}: RescaleSlope {slope:g} and RescaleIntercept {intercept:g} make no values of the pixels. "
            "Export the series again."
        )
    return rescaled(stored, slope, intercept), padding


def _padding(header: Dataset, raw: np.ndarray, stored: np.ndarray) -> np.ndarray | None:
    """Which pixels are padding: its value may use bits that others do not."""
    if header.get("PixelPaddingValue") is None or stored.dtype.kind not in "iu":
        return None
    bits, signed = int(header.BitsAllocated), int(header.get("PixelRepresentation") or 0) == 1
    limit = header.get("PixelPaddingRangeLimit")
    ends = [header.PixelPaddingValue, header.PixelPaddingValue if limit is None else limit]
    first, last = sorted(_number(end, bits, signed) for end in ends)
    return ((raw >= first) & (raw <= last)) | ((stored >= first) & (stored <= last))


def _number(value: object, bits: int, signed: bool) -> int:
    """A padding value in the sign of the pixels: the header may hold it in the other one, or as bytes."""
    number = int.from_bytes(value, "little") if isinstance(value, bytes) else int(str(value))
    number %= 1 << bits
    return number - (1 << bits) if signed and number >= 1 << (bits - 1) else number


def _without_unused_bits(header: Dataset, stored: np.ndarray) -> np.ndarray:
    """Without what lies beside the stored bits, such as old overlays; signed numbers get their sign."""
    allocated, used = int(header.BitsAllocated), int(header.get("BitsStored") or header.BitsAllocated)
    high = int(header.get("HighBit", used - 1))
    if stored.dtype.kind not in "iu" or used >= allocated or stored.dtype.itemsize * 8 != allocated:
        return stored
    if not 0 < used <= high + 1 <= allocated:
        return stored
    return (stored << (allocated - 1 - high)) >> (allocated - used)
