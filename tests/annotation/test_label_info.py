"""Which voxel value is which label, as viewers really send it."""

from __future__ import annotations

import pytest

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.annotation.labels import read_label_info


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 2}], {"spleen": 1, "liver": 2}),
        ([{"name": "spleen", "idx": 2}, {"name": "liver", "idx": 3}], {"spleen": 1, "liver": 2}),
        ([{"name": "background", "idx": 0}, {"name": "spleen", "idx": 1}], {"spleen": 1}),
        ([{"name": "background", "idx": 1}, {"name": "spleen", "idx": 2}], {"spleen": 1}),
        ([{"name": "spleen", "idx": 1}, {"name": "liver", "idx": 4}], {"spleen": 1, "liver": 2}),
        ([{"name": "liver", "idx": 2}, {"name": "spleen", "idx": 1}], {"spleen": 1, "liver": 2}),
        ([{"name": "liver"}, {"name": "spleen"}], {"liver": 1, "spleen": 2}),
        ([{"name": "spleen", "id": 1}, {"name": "foreground_scribbles", "id": 4}], {"spleen": 1}),
        ({"background": 0, "spleen": 7}, {"spleen": 7}),
        ('[{"name": "spleen", "idx": 1}]', {"spleen": 1}),
        (None, {"a": 1, "b": 2}),
        ([], {"a": 1, "b": 2}),
    ],
)
def test_values(sent: object, expected: dict) -> None:
    assert read_label_info(sent, fallback=["a", "b"]) == expected


@pytest.mark.parametrize(
    "sent",
    ["{", 3, [{"idx": 1}], [{"name": " "}], [{"name": "a"}, {"name": "a"}], {"a": 1, "b": 1}, {"a": -1}, {"a": "1"}],
)
def test_what_cannot_be_used_is_named(sent: object) -> None:
    with pytest.raises(InvalidSubmission, match="label_info"):
        read_label_info(sent)


BY_IDX = {"liver": 2, "spleen": 5}
BY_POSITION = {"liver": 1, "spleen": 2}


def numbered(*numbers: object, names: str = "liver spleen heart") -> list[dict]:
    return [{"name": name, "idx": number} for name, number in zip(names.split(), numbers, strict=False)]


@pytest.mark.parametrize(
    ("sent", "values", "expected"),
    [
        (numbered(2, 5), [0, 2, 5], BY_IDX),
        (numbered(2, 5), [5], BY_IDX),
        (numbered(2, 5), [1], BY_POSITION),
        (numbered(2, 5), [0, 1, 2], BY_POSITION),
        (numbered(1, 3), [1], {"liver": 1, "spleen": 3}),
        (numbered(2, 1), [1, 2], {"liver": 2, "spleen": 1}),
        (numbered(5, 2), [2], {"liver": 5, "spleen": 2}),  # no position exceeds its idx, and idx counts upwards
        (numbered(0, 1), [1, 2], BY_POSITION),
        (numbered(2.0, 5), [2.0, 5.0], BY_IDX),
        ({"liver": 2, "spleen": 5}, [2], BY_IDX),
        ('{"liver": 2.0, "BG": 0}', [2], {"liver": 2}),
        (["liver", "spleen"], [2], BY_POSITION),
    ],
)
def test_the_masks_values_tell_two_readings_apart(sent: object, values: list, expected: dict) -> None:
    assert read_label_info(sent, values=values) == expected


@pytest.mark.parametrize(
    ("sent", "values", "first", "second"),
    [
        (numbered(2, 5), [2], "liver", "spleen"),
        (numbered(2, 3), [0, 2], "liver", "spleen"),
        (numbered(0, 1), [1], "spleen", "liver"),
        (numbered(2, 3, 4), [2, 3], "liver", "spleen"),
    ],
)
def test_what_can_be_read_in_two_ways_is_not_guessed(sent: object, values: list, first: str, second: str) -> None:
    with pytest.raises(InvalidSubmission, match=f"two ways: by idx .* '{first}', by position .* '{second}'.*object"):
        read_label_info(sent, values=values)


@pytest.mark.parametrize(
    "word",
    ["background", "Background", "BACKGROUND", "unlabelled", "Unlabeled", "BG", "Clear Label", "no_label"],
)
def test_what_is_numbered_0_is_no_label(word: str) -> None:
    for sent in ([{"name": word, "idx": 0}, {"name": "liver", "idx": 1}], {word: 0, "liver": 1}):
        assert read_label_info(sent, values=[0, 1]) == {"liver": 1}
    assert read_label_info([{"name": word, "idx": 0}, {"name": "liver", "idx": 7}], values=[7]) == {"liver": 7}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (numbered(2, 2), "twice"),
        ([{"name": "liver", "idx": 1}, {"name": "spleen"}], "none to 'spleen'"),
        (numbered(-1, 2), "whole numbers"),
        (numbered(1.5, 2), "whole numbers"),
        (numbered("1", 2), "whole numbers"),
        (numbered(True, 2), "whole numbers"),
        (numbered(10**30, 2), "whole numbers"),
        ({"liver": float("inf")}, "whole numbers"),
        (numbered(3, 9), "value 7"),
        ("[" * 20_000, "deep|JSON"),
    ],
)
def test_numbers_that_cannot_be_meant_are_refused(sent: object, words: str) -> None:
    with pytest.raises(InvalidSubmission, match=words):
        read_label_info(sent, values=[7])
