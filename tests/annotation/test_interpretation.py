"""What a submission says: every rule, their order, and that zeros alone say nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import AFFINE, GRID, SHAPE, drawn, empty, masks, sources, submission

from ssmsam.annotation.annotations import Annotations, InvalidSubmission, SliceKey
from ssmsam.annotation.interpretation import Context, Submission, interpret, interpret_mark
from ssmsam.annotation.log import Assignment, Mark, Served, Verdict
from ssmsam.annotation.partial import read_partial, write_partial
from ssmsam.annotation.service import summarise
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Volume

FRESH = Context(empty())


def served(*slices: int, **kwargs) -> dict[str, Served]:
    return {"liver": Served.of(drawn(*slices) > 0, label="liver", client="reader", when="2026-01-01", **kwargs)}


def test_drawn_slices_count_where_nothing_was_served() -> None:
    update = interpret(submission(drawn(2, 5), ("liver", "spleen")), FRESH)
    assert sources(update) == {2: "nonempty", 5: "nonempty"}
    assert sources(update, "spleen") == {}
    assert summarise(update) == "counted as annotated: 2, 5 (liver)"


def test_partial_rules_alone() -> None:
    partial = {"version": 1, "axis": 2, "slices": {"liver": {"annotated": [2, 3], "empty": [7]}}}
    update = interpret(submission(drawn(2, 5), ("liver", "spleen"), partial=partial), FRESH)
    assert sources(update) == {2: "client", 3: "client", 7: "client"}
    assert [update.entries[SliceKey("liver", 0, k)].empty for k in (2, 3, 7)] == [False, True, True]


def test_complete_labels_are_truth_everywhere() -> None:
    partial = {"complete": ["liver"]}
    update = interpret(submission(drawn(2), ("liver", "spleen"), partial=partial), FRESH)
    assert set(sources(update)) == set(range(8)) and sources(update, "spleen") == {}
    assert update.complete == {"liver"}


def test_other_planes() -> None:
    partial = [{"axis": 0, "slices": {"liver": {"annotated": [2]}}}, {"axis": 1, "slices": {"liver": {"empty": [4]}}}]
    update = interpret(submission(drawn(2), partial=partial), FRESH)
    assert sources(update, axis=2) == {2: "client"} and sources(update, axis=1) == {4: "client"}
    assert np.array_equal(update.entries[SliceKey("liver", 2, 2)].mask.array, drawn(2)[:, :, 2] > 0)


def test_a_mark_needs_no_submission() -> None:
    context = Context(empty(), served=served(2))
    accepted = interpret_mark(Mark("liver", 2, Verdict.ACCEPTED), context)
    assert not accepted.entries[SliceKey("liver", 0, 2)].empty
    assert interpret_mark(Mark("liver", 2, Verdict.EMPTY), context).entries[SliceKey("liver", 0, 2)].empty
    with pytest.raises(InvalidSubmission, match="no mask of liver on slice 2"):
        interpret_mark(Mark("liver", 2, Verdict.ACCEPTED), FRESH)
    with pytest.raises(InvalidSubmission, match="slices 0 to 7"):
        interpret_mark(Mark("liver", 9, Verdict.EMPTY), context)


def test_negatives_are_known_only_where_painted() -> None:
    array = drawn(2)
    array[2, 4, 5] = array[6, 0, 0] = 2
    update = interpret(submission(array, ("liver", "not_liver")), FRESH)
    assert sources(update) == {2: "negative", 6: "negative"} and update.labels == {"liver"}
    entry = update.entries[SliceKey("liver", 0, 2)]
    assert np.array_equal(entry.weight > 0, array[2] > 0)
    assert np.array_equal(entry.mask.array, array[2] == 1)
    beside = interpret(submission(array, ("liver", "not_liver")), Context(empty(), served=served(2)))
    assert np.array_equal(beside.entries[SliceKey("liver", 0, 2)].weight > 0, array[2] == 2)


def test_assigned_slices_are_empty_only_when_somebody_says_so() -> None:
    task = Assignment("a1", "case", (2, 3, 6), labels=("liver",), client="reader")
    context = Context(empty(), assignments=[task], served=served(2))
    silent = interpret(submission(drawn(2), ("liver", "spleen")), context)
    assert sources(silent) == {2: "assigned"} and not sources(silent, "spleen")
    assert "left unknown: slices 3, 6 (liver)" in silent.notes[0] and "empty_assigned" in silent.notes[0]
    for said in (True, ["liver"], ["LIVER "], "true"):
        update = interpret(submission(drawn(2), ("liver", "spleen"), empty_assigned=said), context)
        assert sources(update) == {2: "assigned", 3: "assigned", 6: "assigned"} and not sources(update, "spleen")
    assert summarise(update).splitlines() == [
        "counted as annotated: 2 (liver)",
        "counted as empty: 3, 6 (liver)",
    ]
    assert sources(interpret(submission(drawn(2), empty_assigned=["spleen"]), context)) == {2: "assigned"}
    other = replace(context, assignments=[replace(task, client="another")])
    assert sources(interpret(submission(drawn(2), empty_assigned=True), other)) == {}
    unnamed = Context(empty(), assignments=[replace(task, labels=())])
    update = interpret(submission(drawn(2), ("liver", "spleen"), empty_assigned=True), unnamed)
    assert set(sources(update)) == {2, 3, 6} and not sources(update, "spleen")
    with pytest.raises(InvalidSubmission, match="empty_assigned must be"):
        interpret(submission(drawn(2), empty_assigned=3), context)


def test_an_answered_assignment_is_not_emptied_by_a_fresh_start() -> None:
    context = Context(empty(), assignments=[Assignment("a1", "case", (2, 3))])
    known = empty().merge(interpret(submission(drawn(2)), context))
    update = interpret(submission(drawn(5)), replace(context, annotations=known))
    assert not known.merge(update).slices[SliceKey("liver", 0, 2)].empty


def test_what_differs_from_the_served_mask_is_a_persons_work() -> None:
    changed = drawn(2, 3, 6)
    changed[3, 0, 0] = 1
    update = interpret(submission(changed), Context(empty(), served=served(2, 3, 4)))
    assert sources(update) == {3: "delta", 4: "delta", 6: "delta"}  # 2 shows what it was made from: 4 was erased
    assert update.entries[SliceKey("liver", 0, 4)].empty
    assert {key.index for key in update.predicted} == {2}


def test_a_fresh_start_erases_nothing() -> None:
    update = interpret(submission(drawn(6)), Context(empty(), served=served(2, 3)))
    assert sources(update) == {6: "delta"}
    assert "missing on slices 2, 3" in update.notes[0]


def test_clicked_slices_count_unchanged() -> None:
    update = interpret(submission(drawn(2, 3)), Context(empty(), served=served(2, 3, prompted=[2, 7])))
    assert sources(update) == {2: "prompted"} and {key.index for key in update.predicted} == {3}


def test_a_later_automatic_answer_ends_a_click() -> None:
    clicked = served(2, 3, prompted=[2, 3], only=[2, 3])["liver"]
    automatic = Served.of((drawn(3) > 0) | (drawn(2) > 0) & (np.arange(6) < 2), label="liver", client="reader")
    assert automatic.after(clicked).prompted == {3}
    assert set(served(4, only=[4])["liver"].after(clicked).slices) == {2, 3, 4}


def test_comparison_is_along_the_plane_that_was_served() -> None:
    update = interpret(submission(drawn(2, 3)), Context(empty(), served=served(2, 3, plane=Plane(1))))
    assert not update.entries and {key.axis for key in update.predicted} == {1}


def test_union_of_submissions_and_own_corrections() -> None:
    first = interpret(submission(drawn(2, 3)), FRESH)
    known = empty().merge(first)
    context = Context(known, served=served(2, 3, 4))
    second = interpret(submission(drawn(2, 3, 4)), context)
    assert second.predicted == {SliceKey("liver", 0, 4)} and set(known.merge(second).slices) == set(known.slices)
    third = interpret(submission(drawn(3, 4, 5)), context)  # a slice of its own was erased
    merged = known.merge(third)
    assert merged.slices[SliceKey("liver", 0, 2)].empty and set(merged.annotated("liver")) == {2, 3, 5}


@settings(max_examples=60)
@given(masks(SHAPE), masks(SHAPE), st.booleans(), st.booleans())
def test_zeros_alone_never_mean_empty(array, before, was_served: bool, mirrored: bool) -> None:
    shown = array if mirrored else before
    context = Context(empty(), served={"liver": Served.of(shown, label="liver")} if was_served else {})
    update = interpret(submission(array.astype(np.uint8)), context)
    for key, entry in update.entries.items():
        erased = was_served and shown[key.index].any()
        assert not entry.empty or erased
        assert not (was_served and np.array_equal(shown[key.index], array[key.index]))


def test_all_zero_submission_says_nothing() -> None:
    for context in (FRESH, Context(empty(), served=served(2))):
        update = interpret(submission(drawn()), context)
        assert not update.entries and "no slice counts" in summarise(update)


@pytest.mark.parametrize(
    ("partial", "message"),
    [
        ("{", "valid JSON"),
        (5, "must be an object"),
        ({"version": 2}, "version"),
        ({"axis": 3}, "axis"),
        ({"space": "mm"}, "space"),
        ({"shape": [8, 5, 6]}, "shape"),
        ({"slices": {"liver": {"annotated": [8]}}}, "slices 0 to 7"),
        ({"slices": {"liver": {"annotated": ["2"]}}}, "list of slice numbers"),
        ({"slices": {"liver": [2]}}, "list of slice numbers"),
        ({"slices": [2]}, "must be an object"),
        ({"slices": {"kidney": {}}}, "kidney"),
        ({"complete": "yes"}, "complete"),
        ({"slices": {"liver": {"annotated": [2], "empty": [2]}}}, "list it once"),
        ({"slices": {"liver": {"empty": [2]}}}, "has voxels"),
    ],
)
def test_malformed_partial(partial: object, message: str) -> None:
    with pytest.raises(InvalidSubmission, match=message):
        interpret(submission(drawn(2), partial=partial), FRESH)


def test_wrong_masks_are_refused() -> None:
    with pytest.raises(InvalidSubmission, match="value 2"):
        interpret(submission(drawn(2, value=2)), FRESH)
    with pytest.raises(InvalidSubmission, match="grid"):
        interpret(submission(drawn(2)[:4]), FRESH)
    shifted = AFFINE + np.eye(4, k=3)
    with pytest.raises(InvalidSubmission, match="grid"):
        interpret(Submission(Volume(drawn(2), shifted)), Context(empty(), labels=["liver"]))


def test_partial_both_ways() -> None:
    partial = {"slices": {"liver": {"annotated": [2], "empty": [5, 7]}, "spleen": {"annotated": [], "empty": [1]}}}
    said = submission(drawn(2), ("liver", "spleen"), partial=partial)
    known: Annotations = empty().merge(interpret(said, FRESH))
    written = write_partial(known)
    assert isinstance(written, dict)
    assert written["slices"] == partial["slices"]
    assert (written["axis"], written["shape"], written["revision"]) == (2, [6, 5, 8], 1)
    assert written["source"] == {"1": "client", "2": "client", "5": "client", "7": "client"}
    assert written["complete"] is False
    again = read_partial(written, grid=GRID, labels=("liver", "spleen"))
    assert again is not None and again.annotated | again.empty == known.slices.keys()
