"""One name for one label: spellings that differ only in case, spaces or composed characters mean the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

from ssmsam.annotation.label_info import NEGATIVE, negative_of
from ssmsam.annotation.truth import InvalidSubmission

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
