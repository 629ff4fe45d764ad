"""Annotations as one label map."""

from __future__ import annotations

import numpy as np
from submissions import drawn, empty, submission

from ssmsam.annotation.annotations import label_map
from ssmsam.annotation.interpretation import Context, interpret


def known(*submitted):
    annotations = empty()
    for one in submitted:
        annotations = annotations.merge(interpret(one, Context(annotations)))
    return annotations


def test_values_follow_the_order_that_was_asked_for() -> None:
    both = known(submission(drawn(2, array=drawn(5, value=2)), ("zebra", "liver")))
    array, values = label_map(both, order=("spleen", "liver"))
    assert values == {"liver": 1, "zebra": 2}
    assert set(np.unique(array[5])) == {0, 1} and set(np.unique(array[2])) == {0, 2}
    assert label_map(both, only={"zebra"})[1] == {"zebra": 1}
    assert array.dtype == np.uint8


def test_the_later_revision_counts_where_two_labels_overlap() -> None:
    liver, spleen = submission(drawn(2)), submission(drawn(2), ("spleen",))
    array, values = label_map(known(liver, spleen))
    assert (array[2] == values["spleen"]).sum() == 6 and not (array == values["liver"]).any()
    array, values = label_map(known(spleen, liver))
    assert (array[2] == values["liver"]).sum() == 6


def test_only_what_is_known_now() -> None:
    first = drawn(2, 3)
    second = drawn(3)
    second[2, 0, 0] = 1
    array, _ = label_map(known(submission(first), submission(second)))
    assert np.array_equal(array, second)


def test_many_labels() -> None:
    names = tuple(f"label {n}" for n in range(300))
    array = np.zeros((8, 5, 6), np.uint16)
    array[0, 0, 0], array[1, 1, 1] = 1, 300
    found, values = label_map(known(submission(array, names)))
    assert len(values) == 2 and found.max() == 2
