"""Which voxel value means which label in a submitted mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ssmsam.annotation.truth import InvalidSubmission

BACKGROUND = "background"
NEGATIVE = "not_"
"""``not_liver`` is painted where the user says that there is no liver."""
_SCRIBBLES = "_scribbles"


def read_label_info(value: Any, *, fallback: Sequence[str] = ()) -> dict[str, int]:
    """Label -> voxel value, from ``label_info`` as clients send it.

    A list of objects with ``name`` and perhaps ``idx`` (or ``id``), an object label -> value, or a JSON string of
    either. In a list, order decides: viewers number voxels by position among the saved segments, while ``idx`` also
    counts segments that were not saved. ``idx`` is believed only when the numbers are 1 to the number of labels.
    ``background`` and scribbles are no labels and have no voxels. Without ``label_info`` the labels are ``fallback``,
    in order.
    Raises :class:`InvalidSubmission` for entries without a name, repeated names or values.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except ValueError:
            raise InvalidSubmission(f"label_info is not valid JSON: {value[:80]!r}") from None
    if value is None or value == [] or value == {}:
        return {name: number for number, name in enumerate(fallback, start=1)}
    if isinstance(value, Mapping):
        pairs = [(_name(name), _value(number)) for name, number in value.items()]
        return _distinct([(name, number) for name, number in pairs if number and _is_label(name)])
    if not isinstance(value, (list, tuple)):
        raise InvalidSubmission(
            f'label_info must be a list such as [{{"name": "liver", "idx": 1}}], got {str(value)[:80]!r}'
        )
    named = [(name, _number(entry)) for entry in value if _is_label(name := _name(entry))]
    positions = range(1, len(named) + 1)
    if {number for _, number in named} == set(positions):
        return _distinct([(name, number) for name, number in named if number is not None])
    return _distinct([(name, position) for position, (name, _) in zip(positions, named, strict=True)])


def negative_of(name: str) -> str:
    """The label that ``name`` is the negative of, or ""."""
    return name[len(NEGATIVE) :].strip() if name.casefold().startswith(NEGATIVE) else ""


def is_reserved(name: str) -> bool:
    """Whether a name, in any spelling, means something else than a label: background, scribbles, or a negative."""
    return not _is_label(name) or name.strip().casefold().startswith(NEGATIVE)


def _is_label(name: str) -> bool:
    folded = name.strip().casefold()
    return folded != BACKGROUND and not folded.endswith(_SCRIBBLES)


def _name(entry: Any) -> str:
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if not isinstance(name, str) or not name.strip():
        raise InvalidSubmission(f"every entry of label_info needs a name, got {str(entry)[:80]!r}")
    return name.strip()


def _number(entry: Any) -> int | None:
    if not isinstance(entry, Mapping):
        return None
    number = entry.get("idx", entry.get("id"))
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _value(number: Any) -> int:
    """A voxel value, 0 that of background."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise InvalidSubmission(f"the values of label_info must be whole numbers from 1, got {number!r}")
    return number


def _distinct(pairs: list[tuple[str, int]]) -> dict[str, int]:
    values = dict(pairs)
    if len(values) < len(pairs) or len(set(values.values())) < len(pairs):
        raise InvalidSubmission(
            f"label_info names a label or a value twice ({', '.join(name for name, _ in pairs)}): rename one segment"
        )
    return values
