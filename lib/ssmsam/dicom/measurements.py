"""What was measured on a series before: in reports (SR, as in TID 1500) and in presentation states (GSPS)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from ssmsam.dicom.file import looks_like_dicom, read_dataset
from ssmsam.dicom.series import DicomSeries
from ssmsam.volume.errors import UnreadableVolume
from ssmsam.volume.volume import Grid

logger = logging.getLogger(__name__)

MODALITIES = ("SR", "PR")
"""What may hold measurements."""
FINDING, FINDING_SITE, GROUP = "121071", "363698007", "125007"
"""Codes of TID 1500: what was found, where, and the container of what was measured at one place."""
POLYGON_POINTS = 32
"""Corners of the polygon that stands for an ellipse. *Guess*."""
AT_THE_TIP = 0.35
"""A part of an arrow nearer to one end than this share of its length is its head. *Guess*."""
OFF_SLICE = 0.5
"""How far from its slice, in distances of slices, a line in millimetres may be."""


@dataclass(frozen=True, eq=False)
class Measurement:
    """One line, point or outline on one stored slice."""

    kind: str
    """``point``, ``arrow`` (its tip first), ``line`` (of two points), ``polyline`` or ``polygon``."""
    source: str
    """One of :data:`MODALITIES`."""
    slice: int
    points: np.ndarray
    """(N, 2) as (column, row), whole numbers at pixel centres."""
    text: str = ""
    """What the report says of it, as in "Long Axis 23.1 mm, liver"."""


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of a series: SOP instance UID, and number of the frame where the file has several, -> slice."""

    grid: Grid
    slices: Mapping[tuple[str, int | None], int]

    @classmethod
    def of(cls, series: DicomSeries) -> _Images:
        named = {path: read_dataset(path, tags=["SOPInstanceUID"], pixels=False) for path in set(series.files)}
        several = {path for path, frame in zip(series.files, series.frames, strict=True) if frame}
        slices = {
            (str(named[path].SOPInstanceUID), frame + 1 if path in several else None): k
            for k, (path, frame) in enumerate(zip(series.files, series.frames, strict=True))
        }
        return cls(grid=series.grid, slices=slices)

    def named(self, references: Iterable[Dataset]) -> list[int]:
        """The slices that a sequence of references names. All frames of a file are no slice."""
        found = []
        for one in references:
            uid, numbers = str(one.get("ReferencedSOPInstanceUID") or ""), one.get("ReferencedFrameNumber")
            frames = [None] if numbers is None else [int(n) for n in np.atleast_1d(numbers)]
            found += [self.slices[uid, n] for n in [*frames, None] if (uid, n) in self.slices]
        return list(dict.fromkeys(found))


def measurements(objects: Iterable[Dataset], series: DicomSeries) -> list[Measurement]:
    """Everything in reports and presentation states that is drawn on a series, by slice. What is drawn elsewhere, on
    the screen instead of the image, or cannot be understood is left out, with a word in the log."""
    images, found = _Images.of(series), list[Measurement]()
    for one in objects:
        try:
            found += _in_state(one, images) if "GraphicAnnotationSequence" in one else _in_report(one, images)
        except (AttributeError, ValueError, TypeError, KeyError, IndexError) as error:
            logger.warning("A measurement is left out: its object is not as DICOM has it (%s)", type(error).__name__)
    rows, columns = series.grid.shape[1:]
    inside = [one for one in found if ((one.points >= -0.5) & (one.points <= np.array([columns, rows]) - 0.5)).all()]
    return sorted(inside, key=lambda one: one.slice)


def measurement_files(folder: Path) -> Iterator[Dataset]:
    """The reports and presentation states in a folder of DICOM files."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and looks_like_dicom(path):
            try:
                header = read_dataset(path, tags=["Modality"], pixels=False)
                if str(header.get("Modality") or "") in MODALITIES:
                    yield read_dataset(path)
            except (UnreadableVolume, OSError):
                continue


# --- presentation states


def _in_state(state: Dataset, images: _Images) -> Iterator[Measurement]:
    everywhere = [
        k
        for one in state.get("ReferencedSeriesSequence", ())
        for k in images.named(one.get("ReferencedImageSequence", ()))
    ]
    for annotation in state.GraphicAnnotationSequence:
        named = annotation.get("ReferencedImageSequence")
        slices = everywhere if not named else images.named(named)
        text = "; ".join(str(one.get("UnformattedTextValue") or "") for one in annotation.get("TextObjectSequence", ()))
        for kind, points in _graphics(annotation):
            for k in slices:
                yield Measurement(kind, "PR", k, points - 0.5, " ".join(text.split()))


def _graphics(annotation: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Kind and points of what is drawn in pixels. What is compound is drawn once more by simple graphics, of which only
    those of arrows say less."""
    simple = [
        one for one in annotation.get("GraphicObjectSequence", ()) if one.get("GraphicAnnotationUnits") == "PIXEL"
    ]
    arrows = {}
    for one in annotation.get("CompoundGraphicSequence", ()):
        if one.get("CompoundGraphicType") == "ARROW" and one.get("CompoundGraphicUnits") == "PIXEL":
            arrows[one.get("CompoundGraphicInstanceID")] = _pairs(one.GraphicData)
    for number, ends in arrows.items():
        parts = [_pairs(one.GraphicData) for one in simple if one.get("CompoundGraphicInstanceID") == number]
        yield "arrow", _tip_first(ends[:2], np.concatenate([np.zeros((0, 2)), *parts]))
    for one in simple:
        if one.get("CompoundGraphicInstanceID") is None or one.get("CompoundGraphicInstanceID") not in arrows:
            yield from _shape(str(one.GraphicType), _pairs(one.GraphicData))
    for one in annotation.get("TextObjectSequence", ()):
        if one.get("AnchorPointAnnotationUnits") == "PIXEL" and one.get("AnchorPoint") is not None:
            yield "arrow", _pairs(one.AnchorPoint)


def _tip_first(ends: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """The two ends of an arrow, the one first at which most of its parts are: its head."""
    away = np.linalg.norm(parts[:, None] - ends[None], axis=2)
    near = (away < AT_THE_TIP * np.linalg.norm(ends[1] - ends[0])).sum(axis=0)
    return ends[::-1] if near[1] > near[0] else ends


# --- reports


def _in_report(report: Dataset, images: _Images) -> Iterator[Measurement]:
    for item, text in _places(report):
        if item.ValueType == "SCOORD":
            slices = images.named(
                reference
                for child in item.get("ContentSequence", ())
                for reference in child.get("ReferencedSOPSequence", ())
            )
            drawn = [(k, _pairs(item.GraphicData) - 0.5) for k in slices]
        else:
            drawn = list(_in_space(np.reshape(np.asarray(item.GraphicData, float), (-1, 3)), images))
        for k, points in drawn:
            for kind, shape in _shape(str(item.GraphicType), points):
                yield Measurement(kind, "SR", k, shape, text)


def _places(item: Dataset, values: tuple[str, ...] = (), words: tuple[str, ...] = ()) -> Iterator[tuple[Dataset, str]]:
    """The regions in a report, each with what is said round it: values of its group, and what was found where."""
    children = list(item.get("ContentSequence", ()))
    if _code(item) == GROUP:
        values, words = (), ()
    words += tuple(_meaning(one) for one in children if _code(one) in (FINDING, FINDING_SITE))
    values += tuple(_value(one) for one in children if one.get("ValueType") == "NUM")
    for child in children:
        if child.get("ValueType") in ("SCOORD", "SCOORD3D"):
            own = _value(item) if item.get("ValueType") == "NUM" else ""
            said = (*((own,) if own else values), *words)
            yield child, ", ".join(dict.fromkeys(filter(None, said)))
        else:
            yield from _places(child, values, words)


def _code(item: Dataset) -> str:
    named = item.get("ConceptNameCodeSequence") or ()
    return str(named[0].get("CodeValue") or "") if named else ""


def _meaning(item: Dataset) -> str:
    coded = item.get("ConceptCodeSequence") or ()
    return str(coded[0].get("CodeMeaning") or "") if coded else str(item.get("TextValue") or "")


def _value(item: Dataset) -> str:
    """As in "Length 23.1 mm"."""
    measured, named = item.get("MeasuredValueSequence") or (), item.get("ConceptNameCodeSequence") or ()
    if not measured:
        return ""
    unit = (measured[0].get("MeasurementUnitsCodeSequence") or [Dataset()])[0].get("CodeValue", "")
    name = named[0].get("CodeMeaning", "") if named else ""
    return f"{name} {float(measured[0].NumericValue):.4g} {unit}".strip()


def _in_space(lps: np.ndarray, images: _Images) -> Iterator[tuple[int, np.ndarray]]:
    """The slice of points (N, 3) in millimetres, where they lie on one, and the points as (column, row)."""
    ijk = images.grid.to_ijk(lps)
    k = round(float(ijk[:, 2].mean()))
    if 0 <= k < images.grid.shape[0] and np.abs(ijk[:, 2] - k).max() <= OFF_SLICE:
        yield k, ijk[:, :2]


# --- shapes


def _pairs(data: Any) -> np.ndarray:
    return np.reshape(np.asarray(data, dtype=np.float64), (-1, 2))


def _shape(kind: str, points: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """What a DICOM graphic is, as one or several of ours."""
    closed = len(points) > 3 and np.allclose(points[0], points[-1])
    if kind in ("POINT", "MULTIPOINT"):
        yield from (("point", one[None]) for one in points)
    elif kind == "CIRCLE":  # its middle, and a point on it
        radius = np.linalg.norm(points[1] - points[0])
        yield "polygon", _ellipse(points[0], np.array([radius, 0.0]), np.array([0.0, radius]))
    elif kind == "ELLIPSE":  # the ends of its two axes
        yield "polygon", _ellipse(points[:4].mean(axis=0), (points[1] - points[0]) / 2, (points[3] - points[2]) / 2)
    elif closed or kind == "POLYGON":
        yield "polygon", points[:-1] if closed else points
    elif len(points) > 1:
        yield ("line" if len(points) == 2 else "polyline"), points


def _ellipse(middle: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)[:, None]
    found: np.ndarray = middle + np.cos(angles) * one + np.sin(angles) * other
    return found


def as_prompts(measurement: Measurement, *, shorten: float = 0.1) -> dict[str, Any]:
    """The keys of a click request that say the same, with voxels [i, j, k] = (column, row, slice).

    A line is a diameter, whose ends lie on the border: ``shorten`` is the share of it that is left out at each end.
    """
    k, points = measurement.slice, measurement.points

    def voxels(xy: Sequence[Any]) -> list[list[float]]:
        return [[round(float(x), 2), round(float(y), 2), k] for x, y in xy]

    if measurement.kind in ("point", "arrow"):
        return {"slice": k, "foreground": [[round(x), round(y), k] for x, y in points[:1].tolist()]}
    if measurement.kind == "polygon":
        return {"slice": k, "lasso": [{"points": voxels(points.tolist())}]}
    if measurement.kind == "line":
        points = points + shorten * (points[::-1] - points)
    return {"slice": k, "scribbles": [{"points": voxels(points.tolist())}]}
