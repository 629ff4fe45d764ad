"""Which images a DICOM SEG is of, from its metadata in a DICOMweb answer. The standard has several places for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

REFERENCED_SERIES, OTHER_STUDIES, SERIES_UID = "00081115", "00081200", "0020000E"
SHARED_GROUPS, FRAME_GROUPS, DERIVATION = "52009229", "52009230", "00089124"
IMAGES = ("00081140", "00082112", "0008114A")
"""ReferencedImageSequence, SourceImageSequence, ReferencedInstanceSequence."""
INSTANCE_UID = "00081155"


def value_of(answer: Mapping[str, Any], tag: str) -> str:
    """The first value of an element, "" where there is none."""
    values = (answer.get(tag) or {}).get("Value") or [""]
    return str(values[0] if values[0] is not None else "").strip()


def referenced_series(header: Mapping[str, Any]) -> list[str]:
    """The UIDs of the series that the object names, in its order."""
    holders = (header, *_items(header, OTHER_STUDIES))
    found = [value_of(series, SERIES_UID) for holder in holders for series in _items(holder, REFERENCED_SERIES)]
    return [uid for uid in dict.fromkeys(found) if uid]


def referenced_instance(header: Mapping[str, Any]) -> str:
    """The UID of an image that the object, or one of its frames, names; "" where there is none."""
    return next((uid for uid in _instances(header) if uid), "")


def _instances(header: Mapping[str, Any]) -> Iterator[str]:
    holders = [header, *_items(header, REFERENCED_SERIES), *_items(header, SHARED_GROUPS)]
    for holder in (*holders, *_items(header, FRAME_GROUPS)):
        for source in (holder, *_items(holder, DERIVATION)):
            for tag in IMAGES:
                for image in _items(source, tag):
                    yield value_of(image, INSTANCE_UID)


def _items(holder: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    return [item for item in (holder.get(tag) or {}).get("Value") or () if isinstance(item, Mapping)]
