"""Which voxel value means which label in a submitted mask."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.json_text import InvalidJson, read_json_text

LONGEST = 64
"""Characters of a name: what a segment's label in DICOM may hold."""


def fold(name: str) -> str:
    """What two spellings of one label have in common.

    Example:
        >>> fold("  Left  Kidney ") == fold("left kidney")
        True
    """
    return _visible(name).casefold()


def clean(name: str) -> str:
    """A name in composed characters, without invisible ones and superfluous spaces.

    Raises :class:`InvalidSubmission` for line breaks and other control characters within it, where nothing is left,
    and where what is left cannot be written.
    """
    if control := next((one for one in name.strip() if unicodedata.category(one) in ("Cc", "Zl", "Zp")), ""):
        raise InvalidSubmission(
            f"{name[:40]!r} cannot be a label's name: it holds a line break or another control character "
            f"(U+{ord(control):04X}); send one line of text"
        )
    found = _visible(name)
    if not found or len(found) > LONGEST or "\ufffd" in found or any(0xD800 <= ord(one) < 0xE000 for one in name):
        raise InvalidSubmission(f"{name[:40]!r} cannot be a label's name: send 1 to {LONGEST} visible characters")
    return found


def known_label(name: str, known: Iterable[str]) -> str:
    """The label that a client means by ``name``: the one that is ``known`` in this or another spelling, else ``name``
    as :func:`clean` has it. The first of several known spellings counts, unless one is exactly the name. Raises
    :class:`InvalidSubmission` for what cannot be a name.

    Example:
        >>> known_label("Liver ", ["spleen", "liver"])
        'liver'
    """
    if negative_of(name):
        return NEGATIVE + known_label(negative_of(name), known)
    known, name = list(known), clean(name)
    if name in known:
        return name
    folded = name.casefold()
    return next((label for label in known if fold(label) == folded), name)


def new_labels(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Those of the names that no known label has in any spelling, sorted."""
    folded = {fold(label) for label in known}
    return sorted({name for name in names if name and fold(name) not in folded})


def _visible(name: str) -> str:
    seen = "".join(one if unicodedata.category(one)[0] != "C" else " " * one.isspace() for one in name)
    return " ".join(unicodedata.normalize("NFC", seen).split())


BACKGROUND = "background"
NEGATIVE = "not_"
"""``not_liver`` is painted where the user says that there is no liver."""
NO_LABEL = frozenset(
    {
        *("background", "bg", "back", "clear", "clearlabel", "empty", "exterior", "nolabel", "none", "nothing", "null"),
        *("outside", "unknown", "unlabeled", "unlabelled", "void"),
    }
)
"""Names that other programs give to the number 0, without spaces and signs: a guess, from what segmentation programs
and public data sets write."""
LARGEST = 2**31 - 1
"""The largest voxel value that a label may have: what a mask of 32 bits holds."""
_SCRIBBLES = "_scribbles"
_OBJECT = 'send an object such as {"liver": 2}, which can be read in one way only'


def read_label_info(
    value: Any, *, fallback: Sequence[str] = (), values: Collection[float] | None = None
) -> dict[str, int]:
    """Label -> voxel value, from ``label_info`` as clients send it.

    An object label -> value, a list of names, a list of objects with ``name`` and perhaps ``idx`` (or ``id``), or a
    JSON string of one of them. A list with ``idx`` can be read in two ways: some clients number voxels by ``idx``,
    others by position among the segments that they saved, while ``idx`` also counts those that they did not save.
    ``values`` are the numbers that occur in the mask: what only one reading explains is read so, and where both do and
    disagree nothing is guessed. Without ``values`` order decides, unless ``idx`` is 1 to the number of labels.
    Background and scribbles are no labels and have no voxels. Without ``label_info`` the labels are ``fallback``, in
    order.
    Raises :class:`InvalidSubmission` for entries without a name, repeated names or values, numbers that no voxel can
    have, and what can be read in two ways.
    """
    if isinstance(value, str):
        try:
            value = read_json_text(value, name="label_info")
        except InvalidJson as error:
            raise InvalidSubmission(str(error)) from None
    if value is None or value == [] or value == {}:
        return {name: number for number, name in enumerate(fallback, start=1)}
    if isinstance(value, Mapping):
        pairs = [(_name(name), _value(number)) for name, number in value.items()]
        return _distinct([(name, number) for name, number in pairs if number and _is_label(name)])
    if not isinstance(value, (list, tuple)):
        raise InvalidSubmission(
            f'label_info must be a list such as [{{"name": "liver", "idx": 1}}], got {str(value)[:80]!r}'
        )
    entries = [(_name(entry), _number(entry)) for entry in value]
    # a name that says that no label is meant counts as one where it has a number
    named = [
        (name, number)
        for name, number in entries
        if _is_label(name) and (number or "".join(filter(str.isalnum, name.casefold())) not in NO_LABEL)
    ]
    by_position = _distinct([(name, position) for position, (name, _) in enumerate(named, start=1)])
    numbered = [(name, number) for name, number in named if number is not None]
    if not numbered:
        return by_position
    if len(numbered) < len(named):
        missing = next(name for name, number in named if number is None)
        raise InvalidSubmission(f"label_info gives some labels an idx, but none to {missing!r}: {_OBJECT}")
    by_idx = _distinct([(name, number) for name, number in numbered if number])  # 0 is where no label is
    return _chosen(by_idx, by_position, [number for _, number in numbered], values)


def _chosen(
    by_idx: dict[str, int], by_position: dict[str, int], numbers: Sequence[int], values: Collection[float] | None
) -> dict[str, int]:
    """The reading that the mask's values allow."""
    if values is None:
        return by_idx if set(by_idx.values()) == set(by_position.values()) else by_position
    # a position among saved segments counts upwards and never exceeds the idx, which counts all segments; a client that
    # counts from 0 may mean by idx 0 the value 1
    ascending = all(one < other for one, other in pairwise(numbers))
    counted = ascending and (numbers[0] == 0 or all(idx >= k for k, idx in enumerate(numbers, start=1)))
    found = {value for value in values if value}
    idx_fits, position_fits = found <= set(by_idx.values()), counted and found <= set(by_position.values())
    if idx_fits and position_fits:
        first, second = ({number: name for name, number in one.items()} for one in (by_idx, by_position))
        for number in sorted(found):
            if first[int(number)] != second[int(number)]:
                raise InvalidSubmission(
                    f"label_info can be read in two ways: by idx the voxels of value {number:g} are "
                    f"{first[int(number)]!r}, by position in the list they are {second[int(number)]!r}. List only the "
                    f"segments that are in the file, with idx from 1 in their order, or {_OBJECT}"
                )
    if position_fits and not idx_fits:
        return by_position
    if not idx_fits and counted and by_idx != by_position:
        named = ", ".join(f"{name} = {number}" for name, number in by_idx.items()) or "no label"
        odd = next(number for number in sorted(found) if number not in by_idx.values())
        raise InvalidSubmission(
            f"the mask has voxels of value {odd:g}, but label_info says {named} by idx, and counted by position "
            f"1 to {len(by_position)}: name every value in label_info"
        )
    return by_idx


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
    number = entry.get("idx", entry.get("id")) if isinstance(entry, Mapping) else None
    return None if number is None else _value(number)


def _value(number: Any) -> int:
    """A voxel value, 0 that of background."""
    whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
    if not whole or isinstance(number, bool) or not 0 <= number <= LARGEST:
        raise InvalidSubmission(
            f"the values of label_info must be whole numbers from 1 to {LARGEST}, got {str(number)[:40]!r}"
        )
    return int(number)


def _distinct(pairs: list[tuple[str, int]]) -> dict[str, int]:
    values = dict(pairs)
    if len(values) < len(pairs) or len(set(values.values())) < len(pairs):
        raise InvalidSubmission(
            f"label_info names a label or a value twice ({', '.join(name for name, _ in pairs)}): rename one segment"
        )
    return values
