"""One name for one label: spellings that differ only in case, spaces or composed characters mean the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable

from ssmsam.annotation.label_info import NEGATIVE, negative_of


def fold(name: str) -> str:
    """What two spellings of one label have in common.

    Example:
        >>> fold("  Left  Kidney ") == fold("left kidney")
        True
    """
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()


def known_label(name: str, known: Iterable[str]) -> str:
    """The label that a client means by ``name``: the one that is ``known`` in this or another spelling, else ``name``
    without superfluous spaces. The first of several known spellings counts, unless one is exactly the name.

    Example:
        >>> known_label("Liver ", ["spleen", "liver"])
        'liver'
    """
    if negative_of(name):
        return NEGATIVE + known_label(negative_of(name), known)
    known = list(known)
    if name in known:
        return name
    same = [label for label in known if fold(label) == fold(name)]
    return same[0] if same else " ".join(unicodedata.normalize("NFC", name).split())


def new_labels(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Those of the names that no known label has in any spelling, sorted."""
    folded = {fold(label) for label in known}
    return sorted({name for name in names if name and fold(name) not in folded})
