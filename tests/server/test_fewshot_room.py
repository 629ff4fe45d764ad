"""When a room adapts again, and when the head that it has is good enough."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pocket_room import annotate, make_room

from ssmsam.fewshot.method import FewShotConfig
from ssmsam.server.fewshot_room import FewShotRoom


@pytest.fixture
def room(tmp_path: Path) -> FewShotRoom:
    room = make_room(tmp_path)
    annotate(room, "a", {"liver": (3, 6)}, tmp_path)
    return room


def quick(room: FewShotRoom, *, steps: int = 1) -> FewShotConfig:
    adaptation = room.config.adaptation
    adaptation = replace(adaptation, steps=steps, views=replace(adaptation.views, views=0))
    return replace(room.config, adaptation=adaptation, folds=0)


def test_nothing_is_learned_twice_and_new_slices_are(room: FewShotRoom, tmp_path: Path) -> None:
    support = room.labelled.support("")
    head, name, fresh = room.head(support, quick(room))
    assert fresh
    assert (head.card["method"], head.card["start"]) == ("fewshot", "")
    assert room.head(support, quick(room))[1:] == (name, False)
    annotate(room, "a", {"liver": (4,)}, tmp_path)
    other, later, fresh = room.head(room.labelled.support(""), quick(room))
    assert fresh
    assert later > name
    assert len(other.card["support"]["liver"]) == 3


def test_an_unadapted_head_is_no_answer_to_who_wants_it_adapted(room: FewShotRoom) -> None:
    support = room.labelled.support("")
    plain, name, _ = room.head(support, quick(room, steps=0))
    assert not plain.card["adapted"]
    assert room.head(support, quick(room, steps=0))[1:] == (name, False)
    adapted, _, fresh = room.head(support, quick(room))
    assert fresh
    assert adapted.card["adapted"]
    assert not room.head(support, quick(room, steps=0))[0].card["adapted"]


def test_a_pinned_head_answers_whatever_is_asked(room: FewShotRoom, tmp_path: Path) -> None:
    _, name, _ = room.head(room.labelled.support(""), quick(room))
    room.shelf.activate(name, pin=True)
    annotate(room, "a", {"liver": (4,)}, tmp_path)
    assert room.head(room.labelled.support(""), quick(room, steps=0))[1:] == (name, False)


def test_labelled_volumes_are_completed_once_another_volume_needs_it(room: FewShotRoom) -> None:
    labelled, other = (room.images.open(room.images.from_datastore(name)).embeddings.key.digest for name in "ab")
    support = room.labelled.support("")
    head, name, _ = room.head(support, quick(room), volume=labelled)
    assert not head.completed
    again, same, fresh = room.head(support, quick(room), volume=other)
    assert (same, fresh) == (name, False)
    assert again.completed == ("liver",)
    assert again.banks["liver"].completed.any()
    kept = room.kept(name)
    assert kept is not None
    assert kept.completed == ("liver",), "it was not written down"
    assert not kept.lacks(other)


def test_an_exported_head_lacks_nothing(room: FewShotRoom) -> None:
    labelled = room.images.open(room.images.from_datastore("a")).embeddings.key.digest
    _, name, _ = room.head(room.labelled.support(""), quick(room), volume=labelled)
    assert not room.shelf.card(name)["completed"]
    path = room.whole(name)
    assert room.shelf.card(name)["completed"] == ["liver"]
    written = path.stat().st_mtime_ns
    assert room.whole(name).stat().st_mtime_ns == written
