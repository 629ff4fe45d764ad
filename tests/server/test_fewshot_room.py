"""When a room adapts again, and when the head that it has is good enough."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pocket_room import annotate, make_room
from safetensors.torch import save_file

from ssmsam.cache import Cache
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import FewShotConfig
from ssmsam.fewshot.pipeline import segment
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint
from ssmsam.server.fewshot_room import FewShotService


@pytest.fixture
def room(tmp_path: Path) -> FewShotService:
    room = make_room(tmp_path)
    annotate(room, "a", {"liver": (3, 6)}, tmp_path)
    return room


def quick(room: FewShotService, *, steps: int = 1) -> FewShotConfig:
    adaptation = room.config.adaptation
    adaptation = replace(adaptation, steps=steps, views=replace(adaptation.views, views=0))
    return replace(room.config, adaptation=adaptation, folds=0)


def test_nothing_is_learned_twice_and_new_slices_are(room: FewShotService, tmp_path: Path) -> None:
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


def test_an_unadapted_head_is_no_answer_to_who_wants_it_adapted(room: FewShotService) -> None:
    support = room.labelled.support("")
    plain, name, _ = room.head(support, quick(room, steps=0))
    assert not plain.card["adapted"]
    assert room.head(support, quick(room, steps=0))[1:] == (name, False)
    adapted, _, fresh = room.head(support, quick(room))
    assert fresh
    assert adapted.card["adapted"]
    assert not room.head(support, quick(room, steps=0))[0].card["adapted"]


def test_a_pinned_head_answers_whatever_is_asked(room: FewShotService, tmp_path: Path) -> None:
    _, name, _ = room.head(room.labelled.support(""), quick(room))
    room.shelf.activate(name, pin=True)
    annotate(room, "a", {"liver": (4,)}, tmp_path)
    assert room.head(room.labelled.support(""), quick(room, steps=0))[1:] == (name, False)


def test_labelled_volumes_are_completed_once_another_volume_needs_it(room: FewShotService) -> None:
    labelled, other = (room.images.open(room.images.from_datastore(name)).embeddings.key.digest for name in "ab")
    support = room.labelled.support("")
    head, name, _ = room.head(support, quick(room), volume=labelled)
    assert not head.completed
    again, same, fresh = room.head(support, quick(room), volume=other)
    assert (same, fresh) == (name, False)
    assert again.completed == ("liver",)
    assert again.banks["liver"].pseudo_labelled.any()
    kept = room.kept(name)
    assert kept is not None
    assert kept.completed == ("liver",), "it was not written down"
    assert not kept.lacks(other)


def test_an_exported_head_lacks_nothing(room: FewShotService) -> None:
    labelled = room.images.open(room.images.from_datastore("a")).embeddings.key.digest
    _, name, _ = room.head(room.labelled.support(""), quick(room), volume=labelled)
    assert not room.shelf.card(name)["completed"]
    path = room.whole(name)
    assert room.shelf.card(name)["completed"] == ["liver"]
    written = path.stat().st_mtime_ns
    assert room.whole(name).stat().st_mtime_ns == written


def same_masks(room: FewShotService, one: AdaptedTask, other: AdaptedTask) -> bool:
    queries = [room.images.open(room.images.from_datastore(name)).embeddings for name in "ab"]
    return all(np.array_equal(segment(query, one).logits, segment(query, other).logits) for query in queries)


def forgetful(room: FewShotService) -> FewShotService:
    """The same room after a restart."""
    return replace(room, _read=Cache(2))


def test_a_lost_support_cache_is_made_again_of_the_annotations(room: FewShotService) -> None:
    support = room.labelled.support("")
    head, name, _ = room.head(support, quick(room))
    checkpoint = room.shelf.path(name).read_bytes()
    assert room.shelf.cache.clear() > 0
    later = forgetful(room)
    again, same, fresh = later.head(support, quick(room))
    assert (same, fresh) == (name, False)
    assert not again.summarised
    assert same_masks(room, head, again)
    assert room.shelf.path(name).read_bytes() == checkpoint
    loaded = room.shelf.load(name, room.decoder, weights_sha256="pocket")
    assert not loaded.summarised, "it is in the cache again"


def test_without_the_slices_that_it_was_adapted_to_a_head_answers_from_its_summary(
    room: FewShotService, tmp_path: Path
) -> None:
    _, name, _ = room.head(room.labelled.support(""), quick(room))
    room.shelf.activate(name, pin=True)
    room.shelf.cache.clear()
    annotate(room, "a", {"spleen": (5,)}, tmp_path)
    later = forgetful(room)
    assert not later.head(room.labelled.support(""), quick(room))[0].summarised, "the liver is as it was"
    room.shelf.cache.clear()
    (tmp_path / "studies" / "a.nii.gz").unlink()
    head, same, _ = forgetful(room).head({}, quick(room))
    assert (same, head.summarised) == (name, True)


def test_a_checkpoint_answers_in_another_room(room: FewShotService, tmp_path: Path) -> None:
    _, name, _ = room.head(room.labelled.support(""), quick(room))
    data = room.whole(name).read_bytes()
    assert len(data) < 4_000_000
    (tmp_path / "elsewhere").mkdir()
    other = make_room(tmp_path / "elsewhere", images=("c",))
    assert other.take(data, "imported") == "imported"
    other.shelf.activate("imported", pin=True)
    head, used, _ = other.head({}, quick(other))
    assert (used, head.summarised, head.learned_from) == ("imported", True, {"liver": 2})
    assert segment(other.images.open(other.images.from_datastore("c")).embeddings, head).labels == ("liver",)
    assert other.whole("imported").read_bytes() == data


def test_files_of_earlier_versions_are_not_exported(room: FewShotService) -> None:
    room.shelf.folder.mkdir()
    card = {"format": 5, "weights_sha256": "of another encoder", "encoder": "other"}
    save_file({"decoder.a": torch.zeros(1)}, room.shelf.folder / "old.safetensors", {"card": json.dumps(card)})
    with pytest.raises(UnusableCheckpoint, match="holds copies of patients' images"):
        room.whole("old")
