"""Which voxel value is which label, as viewers really send it."""

from __future__ import annotations

import pytest

from ssmsam.annotation.label_info import read_label_info
from ssmsam.annotation.truth import InvalidSubmission


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
