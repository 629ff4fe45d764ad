"""Names of labels and the codes they get."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.sr._concepts_dict import concepts

from ssmsam.dicom.terminology import BOTH, CATEGORIES, LEFT, PRIVATE_SCHEME, RIGHT, SIDES, TABLE, concept_of

ROWS = json.loads(TABLE.read_text())


def test_every_code_of_the_table_is_the_standards_with_its_meaning() -> None:
    known: dict[str, set[str]] = {}
    for entries in concepts["SCT"].values():
        for value, (meaning, _) in entries.items():
            known.setdefault(value, set()).add(meaning.lower())
    used = [row["code"] for row in ROWS.values()]
    assert len(set(used)) == len(used)
    for name, row in ROWS.items():
        if name.endswith(" vertebra"):
            continue  # of these pydicom's copy of the standard has only the first
        meaning = row["meaning"].lower()
        assert any(full.startswith(meaning) for full in known[row["code"]]), name
    for category in CATEGORIES.values():
        assert category.meaning.lower() in known[category.value]
    for side in (LEFT, RIGHT, BOTH):
        assert side.meaning.lower() in known[side.value]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_name_of_the_table_finds_its_own_code(name: str) -> None:
    for known in (name, *ROWS[name].get("also", ())):
        for written in (known, known.upper(), known.replace(" ", "_"), known.title()):
            assert concept_of(written).type.value == ROWS[name]["code"], written


@pytest.mark.parametrize(
    ("label", "meaning", "side"),
    [
        ("left kidney", "Kidney", LEFT),
        ("Kidney_R", "Kidney", RIGHT),
        ("kidney (left)", "Kidney", LEFT),
        ("Kidney, right", "Kidney", RIGHT),
        ("LeftKidney", "Kidney", LEFT),
        ("kidneys", "Kidney", None),
        ("oesophagus", "Esophagus", None),
        ("esophagus", "Esophagus", None),
        ("caecum", "Cecum", None),
        ("lung_upper_lobe_left", "Upper lobe of lung", LEFT),
        ("lung_middle_lobe_right", "Middle lobe of right lung", None),
        ("vertebrae_L1", "L1 vertebra", None),
        ("rib_left_10", "Rib", LEFT),
        ("left atrium", "Left atrium", None),
        ("lesion 2", "Lesion", None),
        ("tumour", "Neoplasm", None),
    ],
)
def test_known_names_in_many_spellings(label: str, meaning: str, side: object) -> None:
    concept = concept_of(label)
    assert (concept.type.meaning, concept.side) == (meaning, side)
    assert concept.type.scheme == "SCT"


@pytest.mark.parametrize(
    ("label", "what", "region", "side"),
    [
        ("liver tumour", "Neoplasm", "Liver", None),
        ("tumor of the liver", "Neoplasm", "Liver", None),
        ("kidney_cyst_left", "Cyst", "Kidney", LEFT),
        ("pulmonary nodule 3", "Nodule", "Lung", None),
    ],
)
def test_an_abnormality_is_coded_as_itself_within_its_organ(label: str, what: str, region: str, side: object) -> None:
    concept = concept_of(label)
    assert concept.region is not None
    assert (concept.type.meaning, concept.region.meaning, concept.region_side) == (what, region, side)
    assert concept.category == CATEGORIES["abnormality"]


@pytest.mark.parametrize(
    "label",
    [
        "left liver", "liver+lesion", "liver, lesion", "liver/spleen", "liver and spleen", "liver vessels", "Milz",
        "spleen?", "left middle lobe", "liver 2", "kidney left right", "T2", "cord", "left lesion", "remainder", "肝臓",
    ],
)  # fmt: skip
def test_a_name_that_is_not_wholly_understood_gets_a_private_code_with_the_name(label: str) -> None:
    concept = concept_of(label)
    assert concept.is_private
    assert concept.type.scheme == PRIVATE_SCHEME
    assert concept.type.meaning == label
    assert concept.side is concept.region is concept.colour is None


@given(st.text(min_size=1, max_size=64))
def test_any_text_has_a_valid_code(label: str) -> None:
    concept = concept_of(label)
    assert 1 <= len(concept.type.value) <= 16
    assert concept.is_private or concept.type.value in {row["code"] for row in ROWS.values()}
    assert concept == concept_of(label)


@given(st.lists(st.sampled_from(["no", "non", "peri", "wall", "x"]), min_size=1), st.sampled_from(sorted(ROWS)))
def test_a_further_word_is_never_overlooked(more: list[str], name: str) -> None:
    assert concept_of(" ".join([*more, name])).is_private


def test_different_unknown_names_have_different_codes() -> None:
    names = [f"thing {chr(97 + n)}" for n in range(26)]
    assert len({concept_of(name).type.value for name in names}) == 26


def test_words_for_sides_are_no_names_themselves() -> None:
    assert all(concept_of(word).is_private for word in SIDES)
