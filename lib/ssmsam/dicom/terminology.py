"""What a label's name means, in the codes of SNOMED CT that DICOM uses, a private code where it is not known; and
colours that tell segments apart on a screen."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np
from skimage.color import rgb2lab

TABLE = Path(__file__).with_name("terminology.json")
PRIVATE_SCHEME = "99SSMSAM"


@dataclass(frozen=True)
class Code:
    """One entry of a coding scheme: ``value`` has at most 16 characters, ``meaning`` at most 64."""

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class Concept:
    """What a segment shows.

    ``side`` says left, right or both where ``type`` leaves that open. ``region`` is the organ that an abnormality lies
    in, with its own ``region_side``. ``colour`` is the usual one in anatomy (sRGB, 0 to 255), None for the unknown.
    """

    category: Code
    type: Code
    side: Code | None = None
    region: Code | None = None
    region_side: Code | None = None
    colour: tuple[int, int, int] | None = None

    @property
    def is_private(self) -> bool:
        """Whether the name is not in the table, so that the code carries it as it is."""
        return self.type.scheme == PRIVATE_SCHEME


CATEGORIES = {
    "structure": Code("123037004", "Anatomical Structure"),
    "tissue": Code("85756007", "Tissue"),
    "abnormality": Code("49755003", "Morphologically Abnormal Structure"),
    "substance": Code("91720002", "Body Substance"),
    "object": Code("260787004", "Physical object"),
}

LEFT, RIGHT, BOTH = Code("7771000", "Left"), Code("24028007", "Right"), Code("51440002", "Bilateral")
SIDES = {"left": LEFT, "l": LEFT, "lt": LEFT, "right": RIGHT, "r": RIGHT, "rt": RIGHT, "both": BOTH, "bilateral": BOTH}

SPELLINGS = {
    "oesophagus": "esophagus", "tumour": "tumor", "tumours": "tumors", "caecum": "cecum", "coeliac": "celiac",
    "haematoma": "hematoma", "haematomas": "hematomas", "haemorrhage": "hemorrhage", "haemorrhages": "hemorrhages",
    "oedema": "edema", "grey": "gray",
}  # fmt: skip
"""British words of the table in the American spelling that the codes use."""

ADJECTIVES = {
    "hepatic": "liver", "renal": "kidney", "splenic": "spleen", "pulmonary": "lung", "pancreatic": "pancreas",
    "gastric": "stomach", "cerebral": "brain", "prostatic": "prostate", "esophageal": "esophagus", "ovarian": "ovary",
}  # fmt: skip
"""Where an abnormality lies, said with an adjective."""

FILLERS = frozenset({"of", "in", "the"})


def concept_of(label: str) -> Concept:
    """The concept that ``label`` names: "left kidney", "Kidney_L", "oesophagus", "tumour of the liver".

    A name counts as known only when all of its words are understood. Any other gets a private code that carries the
    label as its meaning: an organ is never coded as its neighbour because the names are alike.
    """
    words = _words(label)
    return _anatomy(words) or _abnormality_somewhere(words) or _private(label)


@dataclass(frozen=True)
class _Entry:
    code: Code
    category: str
    colour: tuple[int, int, int]
    side: str = ""
    numbered: bool = False

    def concept(self) -> Concept:
        return Concept(CATEGORIES[self.category], self.code, colour=self.colour)


@cache
def _table() -> Mapping[tuple[str, ...], _Entry]:
    """Every name of the table, as words, and what it stands for."""
    names = {}
    for name, row in json.loads(TABLE.read_text()).items():
        code = Code(row["code"], row["meaning"])
        red, green, blue = row["colour"]
        entry = _Entry(code, row["category"], (red, green, blue), row.get("side", ""), row.get("numbered", False))
        for known in (name, *row.get("also", ())):
            names[_words(known)] = entry
    return MappingProxyType(names)


def _words(label: str) -> tuple[str, ...]:
    """A label's words in lower case and American spelling. Signs that join two things stay, so that nothing matches."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", unicodedata.normalize("NFKC", label))  # LeftKidney
    text = re.sub(r",\s*(?=(left|right|l|r|lt|rt)$)", " ", text.casefold())  # kidney, left
    words = (SPELLINGS.get(word, word) for word in re.split(r"[\s_.:()\[\]-]+", text) if word)
    return tuple(word for word in words if word not in FILLERS)


def _entry(words: tuple[str, ...]) -> _Entry | None:
    """The row whose name is exactly these words, in the singular or the plural, with a number where things have one."""
    table = _table()
    if words in table:
        return table[words]
    if len(words) > 1 and words[-1].isdecimal():
        entry = _entry(words[:-1])
        return entry if entry and entry.numbered else None
    singular = (*words[:-1], words[-1].removesuffix("s")) if words else ()
    return table.get(singular)


def _anatomy(words: tuple[str, ...]) -> Concept | None:
    """One thing of the table, with a side where it has one."""
    if entry := _entry(words):
        return entry.concept()
    sides = [SIDES[word] for word in words if word in SIDES]
    entry = _entry(tuple(word for word in words if word not in SIDES))
    if entry is None or len(sides) != 1:
        return None
    if entry.side == "either":
        return replace(entry.concept(), side=sides[0])
    return entry.concept() if entry.side == "right" and sides[0] is RIGHT else None


def _abnormality_somewhere(words: tuple[str, ...]) -> Concept | None:
    """ "Liver lesion", "cyst of the left kidney", "kidney_cyst_left", "pulmonary nodule 2"."""
    if len(words) > 2 and words[-1] in SIDES:
        words = (words[-1], *words[:-1])
    for what, where in _two_parts(words):
        entry = _entry(what)
        place = _anatomy(tuple(ADJECTIVES.get(word, word) for word in where))
        if entry and entry.category == "abnormality" and place and place.category == CATEGORIES["structure"]:
            return replace(entry.concept(), region=place.type, region_side=place.side)
    return None


def _two_parts(words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    for cut in range(1, len(words)):
        yield words[cut:], words[:cut]
        yield words[:cut], words[cut:]


def _private(label: str) -> Concept:
    digest = hashlib.sha256(label.encode()).hexdigest()[:12].upper()  # the same label has the same code everywhere
    return Concept(CATEGORIES["tissue"], Code(digest, label, PRIVATE_SCHEME))


RGB = tuple[int, int, int]

APART = 12.0
"""Distance in CIELab from which two colours are taken for different ones at a glance: a *guess*."""


def distinct_colours(wanted: Sequence[RGB | None]) -> list[RGB]:
    """One sRGB colour (0 to 255) for each of ``wanted``, no two alike.

    The first to want a colour gets it; a later one that is too near gets the nearest that is free. None gets the one
    farthest from all others. The same wishes give the same colours.
    """
    given: dict[int, RGB] = {}
    rgb, lab = _palette()
    gaps = np.full(len(lab), np.inf)  # from every colour of the palette to the nearest one given
    for index, preferred in sorted(enumerate(wanted), key=lambda pair: pair[1] is None):
        if preferred is None or not _is_free(preferred, given.values()):
            preferred = _triple(rgb[_nearest_free(preferred, lab, gaps)])
        given[index] = preferred
        np.minimum(gaps, np.linalg.norm(lab - cielab(preferred), axis=1), out=gaps)
    return [given[index] for index in range(len(wanted))]


def cielab(colour: RGB | np.ndarray) -> np.ndarray:
    """sRGB (..., 3) of 0 to 255 -> CIELab (..., 3) under D65, the white that viewers assume when they turn it back."""
    return rgb2lab(np.asarray(colour, dtype=np.float64) / 255)


@cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """Clear colours, neither dark nor pale nor grey: (N, 3) sRGB and (N, 3) CIELab."""
    levels = np.arange(0, 256, 17)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cielab(rgb)
    clear = (lab[:, 0] > 35) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 20)
    return rgb[clear], lab[clear]


def _is_free(preferred: RGB, given: Collection[RGB]) -> bool:
    if not given:
        return True
    return bool(np.linalg.norm(cielab(np.array(list(given))) - cielab(preferred), axis=1).min() >= APART)


def _nearest_free(preferred: RGB | None, lab: np.ndarray, gaps: np.ndarray) -> int:
    """Index into the palette: nearest to the preferred among the free ones, else the farthest from all given."""
    free = np.flatnonzero(gaps >= APART)
    if preferred is None or not len(free):
        return int(gaps.argmax())
    return int(free[np.linalg.norm(lab[free] - cielab(preferred), axis=1).argmin()])


def _triple(rgb: np.ndarray) -> RGB:
    red, green, blue = (int(value) for value in rgb)
    return red, green, blue
