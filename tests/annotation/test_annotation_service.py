"""What clients do to annotations beside submitting: verdicts, changes without a mask, finishing, taking back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import AFFINE, GRID, SHAPE, drawn, submission

from ssmsam.annotation.annotations import Annotations, InvalidSubmission, SliceAnnotation, SliceKey, Source, Update, now
from ssmsam.annotation.labels import is_reserved, known_label, read_label_info
from ssmsam.annotation.log import UNNAMED, Assignment, Mark, Served, Verdict, reader_of
from ssmsam.annotation.service import AnnotationService
from ssmsam.ops import PackedMask
from ssmsam.volume.volume import Grid


@pytest.fixture
def service(tmp_path: Path) -> AnnotationService:
    return AnnotationService(tmp_path, ("liver", "spleen"))


def serve(
    service: AnnotationService,
    *slices: int,
    label: str = "liver",
    client: str = "reader",
    when: str = "2026-01-01",
    **more,
) -> None:
    service.log.serve("case", Served.of(drawn(*slices) > 0, label=label, client=client, when=when, **more))


def submit(service: AnnotationService, array: np.ndarray, when: str = "2026-01-02", **params) -> Annotations:
    labels = params.pop("labels", ("liver",))
    said = replace(submission(array, labels, **params), when=when)
    return service.merge("case", service.submitted("case", said, GRID))


def annotated(known: Annotations, label: str = "liver") -> set[int]:
    return set(known.annotated(label))


def test_the_union_of_submissions(service: AnnotationService) -> None:
    submit(service, drawn(2))
    known = submit(service, drawn(5))
    assert annotated(known) == {2, 5} and known.revision == 2 and not known.finished


def test_accepting_what_was_served_and_what_was_merged(service: AnnotationService) -> None:
    serve(service, 2, 3)
    submit(service, drawn(5))
    for index in (2, 5):
        update = service.marked("case", Mark("liver", index, Verdict.ACCEPTED, client="reader"), GRID)
        assert update.entries[SliceKey("liver", 0, index)].mask.array.any()
    with pytest.raises(InvalidSubmission, match="no mask of liver on slice 2"):
        service.marked("case", Mark("liver", 2, Verdict.ACCEPTED, client="another"), GRID)


def test_a_click_without_a_label_is_accepted_under_the_chosen_one(service: AnnotationService) -> None:
    serve(service, 2, 3, when="2026-01-01")
    other = np.zeros(SHAPE, bool)
    other[3, 4, 5] = True
    later = Served.of(other, label=UNNAMED, client="reader", only=[3], prompted=[3], when="2026-01-02")
    service.log.serve("case", later)
    for index, expected in ((2, drawn(2)[2] > 0), (3, other[3])):
        update = service.marked("case", Mark("liver", index, Verdict.ACCEPTED, client="reader"), GRID)
        assert np.array_equal(update.entries[SliceKey("liver", 0, index)].mask.array, expected)


def click(service: AnnotationService, index: int, yx: tuple[int, int] | None) -> str:
    return service.clicked_label("case", GRID, client="reader", axis=0, index=index, yx=yx)


def test_the_label_that_a_click_means(service: AnnotationService) -> None:
    with pytest.raises(InvalidSubmission, match="for_label"):
        click(service, 2, (1, 1))
    serve(service, 2, label="liver", when="2026-01-01")
    assert click(service, 7, (4, 5)) == "liver"
    far = np.zeros(SHAPE, bool)
    far[2, 4, 5] = True
    service.log.serve("case", Served.of(far, label="spleen", client="reader", when="2026-01-02"))
    assert click(service, 7, None) == "spleen"  # served last
    assert click(service, 2, (1, 1)) == "liver"  # under the click
    serve(service, 3, label="liver", when="2026-01-02")
    with pytest.raises(InvalidSubmission, match=r"liver or spleen.*click inside"):
        click(service, 7, None)
    serve(service, 4, label=UNNAMED, when="2026-01-03")
    with pytest.raises(InvalidSubmission, match="not known which label"):
        click(service, 7, None)


def test_masks_of_unnamed_clicks_are_predictions_too(service: AnnotationService) -> None:
    serve(service, 2, 3, 4, label=UNNAMED, client="reader", prompted=[3])
    known = submit(service, drawn(2, 3, 4))
    assert annotated(known) == {3} and {key.index for key in known.predicted} == {2, 4}
    assert annotated(submit(service, drawn(2, value=2), labels=("liver", "aorta")), "aorta") == set()
    fresh = np.zeros(SHAPE, np.uint8)
    fresh[6, 4, 4] = 1
    update = service.submitted("case", submission(fresh, ("kidney",)), GRID)
    assert update.entries[SliceKey("kidney", 0, 6)].source is Source.NONEMPTY and not update.notes


def test_withdrawing_a_slice_and_annotating_it_again(service: AnnotationService) -> None:
    submit(service, drawn(2, 3))
    known = service.merge("case", service.changed("case", {"slices": {"liver": {"withdraw": [3]}}}, GRID, client=""))
    assert annotated(known) == {2} and known.withdrawn == {SliceKey("liver", 0, 3)}
    assert not known.target("liver")[1][3].any()
    assert annotated(submit(service, drawn(2, 3))) == {2}  # still on the screen, as a prediction
    assert 3 not in annotated(known) and SliceKey("liver", 0, 3) not in known.predicted
    changed = drawn(2, 3)
    changed[3, 0, 0] = 1
    assert annotated(submit(service, changed)) == {2, 3}
    assert service.store.support().images == ("case",) and len(service.store.support()) == 2


def test_withdrawing_in_a_submission(service: AnnotationService) -> None:
    submit(service, drawn(2, 3))
    partial = {"slices": {"liver": {"annotated": [5], "withdraw": [2]}}}
    known = submit(service, drawn(2, 3, 5), partial=partial)
    assert annotated(known) == {3, 5}
    assert annotated(AnnotationService(service.root).known("case", GRID)) == {3, 5}


def test_what_was_asked_for_and_withdrawn_is_not_emptied_later(service: AnnotationService) -> None:
    service.log.assign(Assignment("a", "case", (2, 3), client="reader"))
    assert annotated(submit(service, drawn(2), empty_assigned=True)) == {2, 3}
    service.merge("case", service.changed("case", {"slices": {"liver": {"withdraw": [3]}}}, GRID, client="reader"))
    assert annotated(submit(service, drawn(2, 6), empty_assigned=True)) == {2, 6}


@pytest.mark.parametrize(
    ("partial", "message"),
    [
        ({"slices": {"liver": {"withdraw": [2], "empty": [2]}}}, "list it once"),
        ({"complete": ["liver"], "reopen": ["liver"]}, "one of the two"),
        ({"complete": ["liver"], "slices": {"liver": {"withdraw": [2]}}}, "one of the two"),
        ({"reopen": "liver"}, "reopen must be true"),
        ({"slices": {"liver": {"annotated": [7]}}}, "no mask of liver on slice 7"),
        ({"slices": {"no such": {"empty": [7]}}}, "no such"),
        (None, "missing"),
    ],
)
def test_changes_that_cannot_be(service: AnnotationService, partial: object, message: str) -> None:
    submit(service, drawn(2))
    with pytest.raises(InvalidSubmission, match=message):
        service.changed("case", partial, GRID, client="")


def test_changing_without_a_mask(service: AnnotationService) -> None:
    serve(service, 2, 3)
    partial = {"slices": {"liver": {"annotated": [3], "empty": [6]}}}
    known = service.merge("case", service.changed("case", partial, GRID, client="reader"))
    assert annotated(known) == {3, 6} and known.slices[SliceKey("liver", 0, 6)].empty


def test_finishing_takes_annotated_slices_and_else_what_was_served(service: AnnotationService) -> None:
    mine = np.zeros(SHAPE, np.uint8)
    mine[3, 0, 0] = 1
    serve(service, 2, 3, 4, when="2026-01-01")
    submit(service, mine, partial={"slices": {"liver": {"annotated": [3]}}})
    known = service.merge("case", service.finished("case", GRID, client="reader"))
    assert known.finished and known.complete == {"liver"}
    expected = drawn(2, 4) > 0
    expected[3] = mine[3] > 0
    mask, weight = known.target("liver")
    assert np.array_equal(mask, expected) and weight.all()
    assert known.slices[SliceKey("liver", 0, 3)].source is Source.CLIENT


def test_finishing_across_planes(service: AnnotationService) -> None:
    row = {"axis": 1, "slices": {"liver": {"annotated": [2]}}}
    submit(service, drawn(3, 4), partial=row)
    known = service.merge("case", service.changed("case", {"complete": ["liver"]}, GRID, client="reader"))
    assert np.array_equal(np.flatnonzero(known.target("liver")[0].any(axis=(0, 2))), [2])


def test_only_what_was_shown_and_checked_is_finished(service: AnnotationService) -> None:
    with pytest.raises(InvalidSubmission, match="nothing of this image was shown"):
        service.finished("case", GRID, client="reader")
    serve(service, 2, 3)
    with pytest.raises(InvalidSubmission, match="no slice that shows it was checked"):
        service.finished("case", GRID, client="reader")
    accept(service, 2)
    serve(service, 5, label="spleen")
    update = service.finished("case", GRID, client="reader")
    assert update.complete == {"liver"} and update.notes == ("spleen stays open: no slice that shows it was checked",)
    with pytest.raises(InvalidSubmission, match="nothing of this image was shown"):
        service.finished("case", GRID, client="another")


def test_a_screen_is_empty_after_the_image_was_opened(service: AnnotationService) -> None:
    submit(service, drawn(2))
    serve(service, 2, 3)
    service.opened("case", client="reader")
    with pytest.raises(InvalidSubmission, match="nothing of this image was shown"):
        service.finished("case", GRID, client="reader")
    service.shown_again("case", drawn(2, 3), {"liver": 1}, service.known("case", GRID), client="reader")
    assert service.finished("case", GRID, client="reader").complete == {"liver"}
    service.opened("case", client="another")
    assert service.finished("case", GRID, client="reader").complete == {"liver"}


def test_what_was_shown_before_the_image_was_opened_again_does_not_count(service: AnnotationService) -> None:
    serve(service, 2, 3)
    accept(service, 2)
    service.opened("case", client="reader")
    serve(service, 5, only=[5], when=now())  # a click on the empty screen
    with pytest.raises(InvalidSubmission, match="only some of its slices were shown"):
        service.finished("case", GRID, client="reader")


def test_viewers_without_a_name_are_told_apart_by_their_machine() -> None:
    one, other = reader_of("user-xyz", "10.0.0.1"), reader_of("user-xyz", "10.0.0.2")
    assert one != other and reader_of("", "10.0.0.1") not in (one, other)
    assert reader_of("reader-a", "10.0.0.1") == reader_of("reader-a", "10.0.0.2") == "reader-a"


@pytest.mark.parametrize(
    "partial", [{"axis": 0, "slices": {"liver": {"empty": [0]}}}, {"slices": {"liver": {"empty": [0]}}}]
)
def test_a_slice_that_shows_nothing_is_no_check(service: AnnotationService, partial: dict[str, object]) -> None:
    serve(service, 2, 3)
    service.merge("case", service.changed("case", partial, GRID, client="another"))
    with pytest.raises(InvalidSubmission, match="no slice that shows it was checked"):
        service.finished("case", GRID, client="reader")


def test_slices_that_were_never_shown_are_not_finished_as_empty(service: AnnotationService) -> None:
    serve(service, 2, only=[2], when=now())
    service.merge("case", service.marked("case", Mark("liver", 2, Verdict.ACCEPTED, client="reader", when=now()), GRID))
    with pytest.raises(InvalidSubmission, match="only some of its slices were shown"):
        service.finished("case", GRID, client="reader")


def test_a_label_that_is_named_at_the_end_is_finished(service: AnnotationService) -> None:
    serve(service, 2, label=UNNAMED, prompted=[2])
    accept(service, 2)
    known = service.merge("case", service.finished("case", GRID, client="reader", labels=["liver"]))
    assert known.finished and known.target("liver")[0].any()


def accept(service: AnnotationService, index: int, client: str = "reader") -> Annotations:
    mark = Mark("liver", index, Verdict.ACCEPTED, client=client, when=now())
    return service.merge("case", service.marked("case", mark, GRID))


def undo(service: AnnotationService, client: str = "reader") -> Annotations:
    return service.merge("case", service.known("case", GRID).taken_back(client, when=now()))


def test_actions_are_taken_back_one_after_the_other(service: AnnotationService) -> None:
    serve(service, 2, 3)
    accept(service, 2)
    accept(service, 3)
    service.merge("case", service.marked("case", Mark("liver", 2, Verdict.EMPTY, client="reader", when=now()), GRID))
    known = undo(service)
    assert annotated(known) == {2, 3} and not known.slices[SliceKey("liver", 0, 2)].empty
    assert annotated(undo(service)) == {2} and annotated(undo(service)) == set()
    with pytest.raises(InvalidSubmission, match="nothing of yours to take back"):
        undo(service)
    assert annotated(accept(service, 3)) == {3} and annotated(undo(service)) == set()
    accepted = accept(service, 2)  # what was taken back is on screen still, as a prediction
    assert accepted.slices[SliceKey("liver", 0, 2)].mask.array.any()


def test_taking_back_leaves_what_others_said_since(service: AnnotationService) -> None:
    submit(service, drawn(2, 3))
    other = drawn(2)
    other[2] = 1
    submit(service, other, client_id="another", partial={"slices": {"liver": {"annotated": [2]}}})
    known = undo(service)
    assert annotated(known) == {2} and known.slices[SliceKey("liver", 0, 2)].mask.array.all()
    assert known.revisions[-1].notes == ("slice 2 of liver was changed since then: left as it is",)


def test_what_changed_nothing_is_not_taken_back(service: AnnotationService) -> None:
    submit(service, drawn(2))
    submit(service, drawn(), labels=("gizmo",))  # a viewer sends an empty segment too
    assert annotated(undo(service)) == set()


def test_what_its_author_took_back_is_not_restored(service: AnnotationService) -> None:
    own, other, third = drawn(5), drawn(), drawn()
    other[5], other[6], third[5, 0, 0] = 1, 1, 1
    said = {"slices": {"liver": {"annotated": [5]}}}
    submit(service, own, partial=said)
    both = {"slices": {"liver": {"annotated": [5, 6]}}}
    submit(service, other, client_id="another", partial=both, when="2026-01-03")
    submit(service, third, partial=said, when="2026-01-04")
    undo(service, client="another")
    known = undo(service)
    assert np.array_equal(known.slices[SliceKey("liver", 0, 5)].mask.array, drawn(5)[5] > 0)


def test_what_others_changed_is_skipped(service: AnnotationService) -> None:
    submit(service, drawn(2))
    submit(service, drawn(2, 3), when="2026-01-03")
    service.merge("case", service.changed("case", {"slices": {"liver": {"withdraw": [3]}}}, GRID, client="another"))
    assert annotated(undo(service)) == set()


@pytest.mark.parametrize("name", ["", " ", "\u200b", "a" * 65, "a\ud800"])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidSubmission, match="cannot be a label's name"):
        known_label(name, ["liver"])


def test_reserved_names_in_any_spelling() -> None:
    assert all(map(is_reserved, ("Background", " BACKGROUND", "Liver_Scribbles", "Not_liver", "not_")))
    assert not is_reserved("liver") and known_label("li\u200bver", ["Liver"]) == "Liver"
    assert read_label_info(["Background", "Liver", "x_SCRIBBLES"]) == {"Liver": 1}


def test_a_finished_label_is_opened_again_by_taking_back(service: AnnotationService) -> None:
    serve(service, 2, 3, when=now())
    accept(service, 2)
    known = service.merge("case", service.finished("case", GRID, client="reader"))
    assert known.finished and annotated(known) == set(range(8))
    known = undo(service)
    assert not known.finished and annotated(known) == {2}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 7), st.booleans()), min_size=1, max_size=6))
def test_taking_everything_back_leaves_what_was_there_before(actions: list[tuple[int, bool]]) -> None:
    known = Annotations(GRID)
    states = [dict(known.slices)]
    for step, (index, draws) in enumerate(actions):
        mask = PackedMask.of(drawn(index)[index] if draws else np.zeros(SHAPE[1:], bool))
        entry = SliceAnnotation(mask, Source.CLIENT, "reader", f"{step}")
        merged = known.merge(Update(GRID, {SliceKey("liver", 0, index): entry}, client="reader", when=f"{step}"))
        if merged is not known:
            known, states = merged, [*states, dict(merged.slices)]
    for before in reversed(states[:-1]):
        known = known.merge(known.taken_back("reader", when="later"))
        assert {key: entry.mask for key, entry in known.slices.items()} == {k: e.mask for k, e in before.items()}


def test_spellings_of_a_label_are_one_label(service: AnnotationService) -> None:
    known = submit(service, drawn(2), labels=("Liver ",))
    assert known.labels == ("liver",)
    submit(service, drawn(3), labels=("Milz links",))
    known = submit(service, drawn(4), labels=("milz  LINKS",))
    assert annotated(known, "Milz links") == {3, 4}
    assert submit(service, drawn(5), labels=("not_LIVER",)).labels == ("Milz links", "liver")
    with pytest.raises(InvalidSubmission, match="one label"):
        submit(service, drawn(2), labels=("liver", "LIVER"))
    partial = {"slices": {"LIVER": {"withdraw": [2]}}}
    known = service.merge("case", service.changed("case", partial, GRID, client="reader"))
    assert 2 not in annotated(known)


def test_a_volume_is_finished_with_its_last_label(service: AnnotationService) -> None:
    both = drawn(2, array=drawn(5, value=2))
    known = submit(service, both, labels=("liver", "spleen"))
    known = service.merge("case", service.changed("case", {"complete": ["liver"]}, GRID, client="reader"))
    assert known.complete == {"liver"} and not known.finished
    known = service.merge("case", service.changed("case", {"complete": True}, GRID, client="reader"))
    assert known.finished
    assert service.store.overview("case").finished


def test_complete_does_not_mean_labels_that_are_nowhere(service: AnnotationService) -> None:
    known = submit(service, drawn(2), labels=("liver", "spleen"), partial={"complete": True})
    assert known.complete == {"liver"} and known.finished
    known = submit(service, drawn(2), labels=("liver", "spleen"), partial={"complete": ["spleen"]})
    assert known.complete == {"liver", "spleen"} and not known.target("spleen")[0].any()


def test_reopening_gives_back_what_only_completion_had_made_truth(service: AnnotationService) -> None:
    serve(service, 2, 3, 4)
    submit(service, drawn(2, 3, 4), partial={"slices": {"liver": {"annotated": [3]}}})
    service.merge("case", service.finished("case", GRID, client="reader"))
    known = service.merge("case", service.changed("case", {"reopen": True}, GRID, client="reader"))
    assert annotated(known) == {3} and not known.finished and not known.complete
    assert not service.store.overview("case").finished
    again = service.merge("case", service.finished("case", GRID, client="reader"))
    assert np.array_equal(again.target("liver")[0], drawn(2, 3, 4) > 0)  # nothing was lost


def test_another_image_under_the_same_name_is_not_mixed_in(service: AnnotationService) -> None:
    submit(service, drawn(2))
    with pytest.raises(InvalidSubmission, match="another image of this name"):
        service.known("case", Grid((9, 5, 6), AFFINE))
    service.forget("case")
    assert not service.known("case", Grid((9, 5, 6), AFFINE)).revisions


def test_the_overview_follows_the_file(service: AnnotationService) -> None:
    assert not service.store.overview("case").annotated
    submit(service, drawn(2))
    assert service.store.overview("case").annotated == {"liver"}
    elsewhere = AnnotationService(service.root)  # another process
    elsewhere.merge("case", elsewhere.changed("case", {"complete": True}, GRID, client=""))
    assert service.store.overview("case").finished


def test_an_update_outside_the_volume_is_refused() -> None:
    with pytest.raises(InvalidSubmission, match="slices 0 to 7"):
        Update(GRID, withdrawn=frozenset({SliceKey("liver", 0, 8)}))
