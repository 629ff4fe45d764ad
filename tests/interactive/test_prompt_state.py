"""What is remembered of an object, for how long, and what makes it be forgotten."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ssmsam.interactive.segmenter import SliceMasks
from ssmsam.interactive.session import StateStore, extends, same
from ssmsam.models.prompt_decoder import SlicePrompt


def prompt(positive: list = [], negative: list = [], box: tuple | None = None) -> SlicePrompt:  # noqa: B006
    return SlicePrompt(np.reshape(positive, (-1, 2)), np.reshape(negative, (-1, 2)), box)


BOX = (1.0, 2.0, 8.0, 9.0)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (prompt([[1, 2]]), prompt([[1, 2], [3, 4]]), True),
        (prompt([[1, 2]]), prompt([[1, 2]], [[3, 4]]), True),
        (prompt([[1, 2]]), prompt([[1, 2]], box=BOX), True),
        (prompt([[1, 2], [3, 4]]), prompt([[1, 2]]), False),
        (prompt([[1, 2]], [[3, 4]]), prompt([[1, 2]]), False),
        (prompt([[1, 2]]), prompt([[1, 3]]), False),
        (prompt([[1, 2]]), prompt([], [[1, 2]]), False),
        (prompt(box=BOX), prompt([[1, 2]]), False),
        (prompt(box=BOX), prompt(box=(1.0, 2.0, 8.0, 10.0)), False),
    ],
)
def test_extends(old: SlicePrompt, new: SlicePrompt, expected: bool) -> None:
    assert extends(new, old) is expected


def test_same_is_blind_to_order() -> None:
    assert same(prompt([[1, 2], [3, 4]]), prompt([[3, 4], [1, 2]]))
    assert not same(prompt([[1, 2], [3, 4]]), prompt([[3, 4]]))


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_masks_come_back_as_they_were(mask: np.ndarray) -> None:
    masks = SliceMasks({7: mask, 3: ~mask})
    assert list(masks) == [3, 7]
    assert np.array_equal(masks[7], mask)
    assert np.array_equal(masks[3], ~mask)
    assert masks[7].dtype == bool


def test_masks_are_slices() -> None:
    with pytest.raises(ValueError, match="two axes"):
        SliceMasks({0: np.zeros((2, 2, 2), bool)})


def test_keys() -> None:
    store = StateStore(9)
    states = {
        id(store.open(*key))
        for key in [("a", "liver", "x"), ("b", "liver", "x"), ("a", "spleen", "x"), ("a", "liver", "y"), ("a", "liver")]
    }
    assert len(states) == 5
    assert store.open("a", "liver", "x") is store.open("a", "liver", "x")
    assert store.open("a", "liver", "") is store.open("a", "liver", None) is store.open("a", "liver", "anonymous")


def test_the_least_recently_used_goes_first() -> None:
    store = StateStore(2)
    a, b = store.open("a"), store.open("b")
    assert store.open("a") is a
    store.open("c")
    assert len(store) == 2
    assert store.open("a") is a
    assert store.open("b") is not b


def test_many_threads_get_one_state() -> None:
    store, barrier, found = StateStore(4), threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        found.append(store.open("a", "liver", "x"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(state) for state in found}) == 1


def test_one_object_does_not_wait_for_another() -> None:
    store = StateStore(4)
    entered = threading.Event()

    def work() -> None:
        with store.open("a", "spleen").lock:
            entered.set()

    with store.open("a", "liver").lock:
        thread = threading.Thread(target=work)
        thread.start()
        assert entered.wait(5)
    thread.join()
