"""Submissions merge: nothing is lost, nothing counts twice, labels are independent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import AFFINE, GRID, SHAPE, empty, updates

from ssmsam.annotation.annotations import Annotations, InvalidSubmission, SliceAnnotation, SliceKey, Source, Update
from ssmsam.ops import PackedMask
from ssmsam.volume.geometry import Plane
from ssmsam.volume.volume import Grid


def entry(value: bool = True, *, source: Source = Source.CLIENT, known: np.ndarray | None = None) -> SliceAnnotation:
    mask = PackedMask.of(np.full(SHAPE[1:], value))
    return SliceAnnotation(mask, source, known=None if known is None else PackedMask.of(known))


def state(annotations: Annotations) -> tuple:
    return annotations.slices, annotations.predicted, annotations.complete, annotations.labels


@settings(max_examples=40)
@given(st.lists(updates(), max_size=4))
def test_merging_loses_nothing(submitted: list[Update]) -> None:
    known = empty()
    for update in submitted:
        before, known = known, known.merge(update)
        assert before.slices.keys() | update.entries.keys() == known.slices.keys()
        for key, old in before.slices.items():  # the latest word counts, the earlier ones stay in their revisions
            assert old in [revision.entries.get(key) for revision in known.revisions]
        assert known.revisions[: before.revision] == before.revisions
    assert [revision.number for revision in known.revisions] == list(range(1, known.revision + 1))


@settings(max_examples=40)
@given(updates(), updates())
def test_merging_the_same_again_changes_nothing(earlier: Update, update: Update) -> None:
    once = empty().merge(earlier).merge(update)
    assert once.merge(update) is once


@settings(max_examples=40)
@given(st.data())
def test_order_of_disjoint_submissions_does_not_matter(data: st.DataObject) -> None:
    one = data.draw(updates())
    other = data.draw(updates(excluded=frozenset(one.entries)))
    assert state(empty().merge(one).merge(other)) == state(empty().merge(other).merge(one))


def test_a_later_annotation_replaces_and_the_earlier_stays() -> None:
    key = SliceKey("liver", 0, 3)
    first = empty().merge(Update(GRID, {key: entry(True)}))
    second = first.merge(Update(GRID, {key: entry(False)}))
    assert second.slices[key].empty
    assert [(one.number, one.entries[key].empty) for one in second.revisions] == [(1, False), (2, True)]


def test_truth_is_per_label_and_plane() -> None:
    known = empty().merge(
        Update(GRID, {SliceKey("liver", 0, 3): entry()}, frozenset({SliceKey("liver", 0, 4), SliceKey("liver", 0, 3)}))
    )
    assert set(known.annotated("liver")) == {3} and known.predicted == {SliceKey("liver", 0, 4)}
    assert not known.annotated("spleen") and not known.annotated("liver", plane=Plane(1))
    with pytest.raises(InvalidSubmission, match="slices 0 to 7"):
        Update(GRID, {SliceKey("liver", 0, 8): entry()})


def test_less_is_no_news_but_disagreement_is() -> None:
    key = SliceKey("liver", 0, 3)
    whole = empty().merge(Update(GRID, {key: entry(True)}))
    corner = np.zeros(SHAPE[1:], bool)
    corner[0, 0] = True
    part = SliceAnnotation(PackedMask.of(corner), Source.NEGATIVE, known=PackedMask.of(corner))
    assert whole.merge(Update(GRID, {key: part})) is whole
    against = SliceAnnotation(PackedMask.of(corner & False), Source.NEGATIVE, known=PackedMask.of(corner))
    assert whole.merge(Update(GRID, {key: against})).slices[key] == against


def test_unknown_is_not_background() -> None:
    known = np.zeros(SHAPE[1:], bool)
    known[0] = True
    partly = SliceAnnotation(PackedMask.of(known & False), Source.NEGATIVE, known=PackedMask.of(known))
    column = SliceAnnotation(PackedMask.of(np.ones((8, 5), bool)), Source.CLIENT)
    annotations = empty().merge(
        Update(
            GRID, {SliceKey("liver", 0, 3): entry(), SliceKey("liver", 0, 5): partly, SliceKey("spleen", 2, 1): column}
        )
    )
    mask, weight = annotations.target("liver")
    assert mask.shape == weight.shape == SHAPE and weight.dtype == np.float32
    assert weight[3].all() and mask[3].all() and not weight[[0, 1, 2, 4, 6, 7]].any()
    assert np.array_equal(weight[5] > 0, known) and not mask[5].any()
    mask, weight = annotations.target("spleen")
    assert mask[:, :, 1].all() and weight.sum() == 40


def test_where_planes_cross_the_later_decides() -> None:
    row = SliceAnnotation(PackedMask.of(np.zeros((8, 6), bool)), Source.CLIENT)
    one, other = Update(GRID, {SliceKey("liver", 0, 3): entry()}), Update(GRID, {SliceKey("liver", 1, 2): row})
    assert not empty().merge(one).merge(other).target("liver")[0][3, 2].any()
    assert empty().merge(other).merge(one).target("liver")[0][3, 2].all()


def test_other_grids_and_shapes_are_refused() -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 5
    with pytest.raises(InvalidSubmission, match="another grid"):
        empty().merge(Update(Grid(SHAPE, moved)))
    with pytest.raises(InvalidSubmission, match="shape"):
        Update(GRID, {SliceKey("liver", 1, 3): entry()})
    with pytest.raises(InvalidSubmission, match="slices 0 to 7"):
        Update(GRID, {SliceKey("liver", 0, -1): entry()})
