"""The ``partial`` parameter: which slices of a mask are truth, as clients say it and as the server answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ssmsam.annotation.annotations import Annotations, InvalidSubmission, SliceKey, Source
from ssmsam.annotation.labels import known_label
from ssmsam.json_text import InvalidJson, read_json_text
from ssmsam.volume.volume import Grid

VERSION = 1
SPACE = "image_ijk"
_LISTS = ("annotated", "empty", "withdraw")
_EXAMPLE = '{"version": 1, "axis": 2, "slices": {"liver": {"annotated": [31], "empty": [5]}}}'


@dataclass(frozen=True)
class Partial:
    """What a client says explicitly of its mask."""

    annotated: frozenset[SliceKey] = frozenset()
    """Slices whose mask is truth."""
    empty: frozenset[SliceKey] = frozenset()
    """Slices on which the label is not."""
    complete: frozenset[str] = frozenset()
    """Labels whose mask is truth on the whole volume."""
    withdrawn: frozenset[SliceKey] = frozenset()
    """Slices that are not to count any longer."""
    reopened: frozenset[str] = frozenset()
    """Labels that are not finished after all."""


def read_partial(
    value: Any, *, grid: Grid, labels: Collection[str], present: Collection[str] | None = None
) -> Partial | None:
    """The ``partial`` parameter: an object, a list of them (one per plane), or a JSON string; None when absent.

    ``axis`` counts the client's voxel axes [i, j, k]: 2 (default) for stored slices, 1 rows, 0 columns.
    ``slices`` holds, per label, the lists ``annotated``, ``empty`` and ``withdraw``. ``complete`` and ``reopen`` are
    true or a list of labels; true means the labels in ``present``, by default all ``labels``. ``version``, ``space``
    and ``shape`` are checked when given; other keys are ignored.
    Raises :class:`InvalidSubmission` for anything malformed, unknown labels, and contradictions.
    """
    value = _from_text(value)
    if value is None:
        return None
    found: dict[str, set[SliceKey]] = {name: set() for name in _LISTS}
    complete: set[str] = set()
    reopened: set[str] = set()
    for plane in value if isinstance(value, list) else [value]:
        axis = _read_header(plane, grid)
        slices = plane.get("slices")
        if not isinstance(slices if slices is not None else {}, Mapping):
            raise InvalidSubmission(f"partial.slices must be an object label -> lists, such as {_EXAMPLE}")
        for label, lists in (slices or {}).items():
            _check_label(label, labels)
            for name in _LISTS:
                found[name] |= _read_slices(lists, name, label, axis, grid)
        complete |= _read_labels(plane.get("complete", False), "complete", labels, present)
        reopened |= _read_labels(plane.get("reopen", False), "reopen", labels, None)
    _check_agree(found, complete, reopened)
    annotated, empty, withdrawn = (frozenset(found[name]) for name in _LISTS)
    return Partial(annotated, empty, frozenset(complete), withdrawn, frozenset(reopened))


def with_known_labels(value: Any, known: Sequence[str]) -> Any:
    """The same ``partial`` with each label under the name by which it is known. What is malformed stays as it is.

    Raises :class:`InvalidSubmission` where two spellings of one label are named.
    """
    value = _from_text(value)
    if isinstance(value, list):
        return [with_known_labels(plane, known) for plane in value]
    if not isinstance(value, Mapping):
        return value
    found = dict(value)
    if isinstance(value.get("slices"), Mapping):
        found["slices"] = {known_label(str(label), known): lists for label, lists in value["slices"].items()}
        if len(found["slices"]) < len(value["slices"]):
            names = ", ".join(map(str, value["slices"]))
            raise InvalidSubmission(f"partial.slices names a label twice in different spellings ({names}): send one")
    for name in ("complete", "reopen"):
        if isinstance(value.get(name), list):
            found[name] = [known_label(one, known) if isinstance(one, str) else one for one in value[name]]
    return found


def write_partial(annotations: Annotations) -> dict[str, Any] | list[dict[str, Any]]:
    """What is known, as the ``partial`` parameter says it: an object, or a list of them for several planes.

    Partly known slices are left out: the lists speak of whole slices.
    """
    axes = sorted({key.axis for key in annotations.slices}) or [0]
    planes = [_write_plane(annotations, axis) for axis in axes]
    return planes[0] if len(planes) == 1 else planes


def _write_plane(annotations: Annotations, axis: int) -> dict[str, Any]:
    slices: dict[str, dict[str, list[int]]] = {}
    sources: dict[int, Source] = {}
    strength = list(Source)
    for key, entry in annotations.slices.items():
        if key.axis != axis or entry.known is not None:
            continue
        lists = slices.setdefault(key.label, {"annotated": [], "empty": []})
        lists["empty" if entry.empty else "annotated"].append(key.index)
        sources[key.index] = min(entry.source, sources.get(key.index, entry.source), key=strength.index)
    return {
        "version": VERSION,
        "axis": 2 - axis,
        "space": SPACE,
        "shape": list(annotations.grid.shape[::-1]),
        "complete": annotations.finished or sorted(annotations.complete) or False,
        "slices": slices,
        "source": {str(index): source.value for index, source in sorted(sources.items())},
        "revision": annotations.revision,
    }


def _from_text(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = read_json_text(value, name="partial")
        except InvalidJson as error:
            raise InvalidSubmission(f"{error}; send {_EXAMPLE}") from None
    return value


def _read_header(plane: Any, grid: Grid) -> int:
    """Check what one plane says of itself: its array axis."""
    if not isinstance(plane, Mapping):
        raise InvalidSubmission(f"partial must be an object such as {_EXAMPLE}, got {str(plane)[:80]!r}")
    if plane.get("version", VERSION) != VERSION:
        raise InvalidSubmission(f"partial.version {plane['version']!r} is not known: send {VERSION}")
    if plane.get("space", SPACE) != SPACE:
        raise InvalidSubmission(f"partial.space {plane['space']!r} is not known: number slices in {SPACE!r}")
    shape = plane.get("shape")
    if shape is not None and shape != list(grid.shape[::-1]):
        raise InvalidSubmission(
            f"partial.shape {shape} is not the image's {list(grid.shape[::-1])} (columns, rows, slices): "
            "number the slices of the stored image"
        )
    axis = plane.get("axis", 2)
    if isinstance(axis, bool) or axis not in (0, 1, 2):
        raise InvalidSubmission(f"partial.axis must be 2 (stored slices), 1 (rows) or 0 (columns), got {axis!r}")
    return 2 - int(axis)


def _read_slices(lists: Any, name: str, label: str, axis: int, grid: Grid) -> set[SliceKey]:
    numbers = lists.get(name, []) if isinstance(lists, Mapping) else None
    if not isinstance(numbers, list) or not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        raise InvalidSubmission(
            f"partial.slices.{label}.{name} must be a list of slice numbers, got {str(numbers)[:80]}; send {_EXAMPLE}"
        )
    count = grid.shape[axis]
    for number in numbers:
        if not 0 <= number < count:
            raise InvalidSubmission(
                f"partial.slices.{label}.{name} has slice {number}, but along this axis the volume has slices "
                f"0 to {count - 1}"
            )
    return {SliceKey(label, axis, number) for number in numbers}


def _check_agree(found: Mapping[str, set[SliceKey]], complete: set[str], reopened: set[str]) -> None:
    for one, other in combinations(_LISTS, 2):
        for key in sorted(found[one] & found[other]):
            raise InvalidSubmission(
                f"partial lists slice {key.index} of {key.label} under {one} and under {other}: list it once"
            )
    for label in sorted(complete & (reopened | {key.label for key in found["withdraw"]})):
        raise InvalidSubmission(f"partial declares {label} complete and takes it back at once: send one of the two")


def _read_labels(value: Any, name: str, labels: Collection[str], present: Collection[str] | None) -> set[str]:
    if value is None or isinstance(value, bool):
        return set(labels if present is None else present) if value else set()
    if not isinstance(value, list):
        raise InvalidSubmission(f"partial.{name} must be true, false or a list of labels, got {value!r}")
    for label in value:
        _check_label(label, labels)
    return set(value)


def _check_label(label: Any, labels: Collection[str]) -> None:
    if not isinstance(label, str) or label not in labels:
        raise InvalidSubmission(
            f"partial names {label!r}, which label_info does not: it has {', '.join(labels) or 'no labels'}"
        )
