"""The heads of a study folder: which one answers, what stays, and what other files cannot do to it."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from planted import PocketDecoder, draw_volume, quick, state_digest, two_labels
from safetensors.torch import load, save

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import LOCAL, AdaptedTask
from ssmsam.fewshot.checkpoint_registry import CheckpointRegistry, RegistryState, UnknownCheckpoint
from ssmsam.fewshot.pipeline import adapt, segment
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint


@pytest.fixture
def head(embedder: Embedder, decoder: PocketDecoder) -> AdaptedTask:
    return adapt(two_labels(embedder), embedder, decoder, config=quick())


@pytest.fixture
def shelf(tmp_path: Path) -> CheckpointRegistry:
    return CheckpointRegistry(tmp_path / "heads", keep=3)


def exported(head: AdaptedTask) -> bytes:
    return head.checkpoint(PocketDecoder()).to_bytes()


def take(shelf: CheckpointRegistry, data: bytes, name: str) -> str:
    return shelf.add_file(data, name, PocketDecoder(), weights_sha256="pocket")


def half_written(shelf: CheckpointRegistry) -> list[str]:
    return [path.name for path in shelf.folder.iterdir() if path.name.startswith(".writing")]


def test_the_newest_head_answers(
    shelf: CheckpointRegistry, head: AdaptedTask, embedder: Embedder, decoder: PocketDecoder
) -> None:
    assert shelf.state == RegistryState("", False)
    assert shelf.names() == []
    first, second = shelf.publish(head, decoder=PocketDecoder()), shelf.publish(head, decoder=PocketDecoder())
    assert first < second
    assert shelf.state == CheckpointRegistry(shelf.folder).state == RegistryState(second, False, first)
    loaded = shelf.load(second, decoder, weights_sha256="pocket")
    assert state_digest(loaded.decoder) == state_digest(head.decoder)
    query = embedder.open(draw_volume())
    assert (segment(query, loaded).mask == segment(query, head).mask).all()
    assert shelf.card(first) == shelf.cards()[first]
    assert shelf.card(first)["labels"] == ["organ", "other"]
    assert half_written(shelf) == []


def test_a_head_that_is_not_to_answer_only_waits(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    first = shelf.publish(head, decoder=PocketDecoder())
    second = shelf.publish(head, decoder=PocketDecoder(), activate=False)
    assert shelf.state.active == first
    assert shelf.activate(second, pin=False) == RegistryState(second, False, first)


def test_a_pinned_head_answers_until_it_is_unpinned(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    first = shelf.publish(head, decoder=PocketDecoder())
    shelf.activate(first, pin=True)
    second = shelf.publish(head, decoder=PocketDecoder())
    assert shelf.state == RegistryState(first, True)
    assert shelf.unpin() == RegistryState(first, False)
    assert shelf.activate(second, pin=False).active == second


def test_old_heads_go_but_never_the_one_that_answers(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    first = shelf.publish(head, decoder=PocketDecoder())
    shelf.activate(first, pin=True)
    later = [shelf.publish(head, decoder=PocketDecoder()) for _ in range(4)]
    assert shelf.names() == [first, *later[-3:]]
    cards = {path.stem for path in shelf.folder.glob("*.json")} - {"shelf"}
    assert cards == set(shelf.names()), "a card goes with its head"


def test_removing(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    first, second = shelf.publish(head, decoder=PocketDecoder()), shelf.publish(head, decoder=PocketDecoder())
    with pytest.raises(ValueError, match=f"{second} is the head that answers: activate another one first"):
        shelf.remove(second)
    shelf.remove(first)
    assert shelf.names() == [second]
    with pytest.raises(UnknownCheckpoint, match=f"there is no head '{first}'; there are {second}"):
        shelf.remove(first)


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".hidden", "x" * 101])
def test_names_cannot_leave_the_folder(shelf: CheckpointRegistry, head: AdaptedTask, name: str) -> None:
    (shelf.folder.parent / "secret.safetensors").write_bytes(exported(head))
    shelf.publish(head, decoder=PocketDecoder())
    with pytest.raises(UnknownCheckpoint):
        shelf.path(name)
    with pytest.raises(UnknownCheckpoint):
        shelf.activate(name, pin=False)
    with pytest.raises(ValueError, match="a head's name is made of letters"):
        take(shelf, exported(head), name)


def test_an_exported_head_is_carried_over(shelf: CheckpointRegistry, head: AdaptedTask, tmp_path: Path) -> None:
    name = shelf.publish(head, decoder=PocketDecoder())
    other = CheckpointRegistry(tmp_path / "other")
    assert take(other, shelf.path(name).read_bytes(), "from-elsewhere") == "from-elsewhere"
    assert other.state.active == "", "it answers only once it is activated"
    here = {key: value for key, value in shelf.card(name).items() if key not in LOCAL}
    assert other.card("from-elsewhere") == here
    with pytest.raises(ValueError, match="there is a head 'from-elsewhere' already"):
        take(other, exported(head), "from-elsewhere")


def test_a_damaged_file_leaves_nothing(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    name = shelf.publish(head, decoder=PocketDecoder())
    with pytest.raises(UnusableCheckpoint, match="is no task checkpoint, or is damaged"):
        take(shelf, exported(head)[:1000], "damaged")
    assert shelf.names() == [name]
    assert half_written(shelf) == []
    shelf.path(name).write_bytes(b"damaged later")
    assert shelf.cards() == {}, "one damaged head hides no other and breaks no list"
    with pytest.raises(UnusableCheckpoint):
        shelf.card(name)


def test_several_threads_publish_at_once(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    """Nobody ever reads half a state, and every head is there afterwards."""
    wide = CheckpointRegistry(shelf.folder, keep=100)
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(json.dumps(vars(wide.state)))

    def publish() -> None:
        for _ in range(3):
            wide.publish(replace(head, banks={}), decoder=PocketDecoder())

    watcher = threading.Thread(target=watch)
    writers = [threading.Thread(target=publish) for _ in range(3)]
    watcher.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    watcher.join()
    assert len(wide.names()) == 9
    assert wide.state.active in wide.names()
    assert {json.loads(one)["active"] for one in seen} <= {"", *wide.names()}


def test_going_back_to_what_answered_before(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    assert shelf.roll_back() == RegistryState("", False, "")
    first, second = shelf.publish(head, decoder=PocketDecoder()), shelf.publish(head, decoder=PocketDecoder())
    assert shelf.state == RegistryState(second, False, first)
    assert shelf.roll_back() == RegistryState(first, False, second)
    assert shelf.roll_back() == RegistryState(second, False, first)
    assert shelf.deactivate() == RegistryState("", False, second)
    shelf.activate(first, pin=False)
    assert shelf.activate(first, pin=True) == RegistryState(first, True, ""), "pinning is no change of heads"


def test_the_head_before_stays_too_until_it_is_removed(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    first = shelf.publish(head, decoder=PocketDecoder())
    second = shelf.publish(head, decoder=PocketDecoder())
    for _ in range(4):
        shelf.publish(head, decoder=PocketDecoder(), activate=False)
    assert {first, second} <= set(shelf.names())
    shelf.remove(first)
    assert shelf.roll_back() == RegistryState("", False, second)


def test_heads_of_another_method_are_refused(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    other = replace(head, card={**head.card, "method": "ssm_sam"})
    with pytest.raises(UnusableCheckpoint, match="one of ssm_sam, not of fewshot: import it with method=ssm_sam"):
        take(shelf, exported(other), "other")
    assert shelf.names() == []
    assert take(CheckpointRegistry(shelf.folder, method="ssm_sam"), exported(other), "other") == "other"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"active": 7}', '{"else": ""}', "\x00" * 20, "[" * 100_000])
def test_a_damaged_note_of_what_answers_stops_nobody(
    shelf: CheckpointRegistry, head: AdaptedTask, content: str
) -> None:
    name = shelf.publish(head, decoder=PocketDecoder())
    (shelf.folder / "shelf.json").write_text(content)
    assert shelf.state == RegistryState()
    assert list(shelf.cards()) == [name]
    assert shelf.activate(name, pin=True) == RegistryState(name, True, "")


@pytest.mark.parametrize("name", ["shelf", "training"])
def test_names_of_other_files_in_the_folder_are_taken(shelf: CheckpointRegistry, head: AdaptedTask, name: str) -> None:
    with pytest.raises(ValueError, match="and is not shelf or training"):
        take(shelf, exported(head), name)


def test_a_checkpoint_of_other_weights_is_not_taken(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    with pytest.raises(UnusableCheckpoint, match="start the server with that encoder, or adapt again"):
        shelf.add_file(exported(head), "imported", PocketDecoder(), weights_sha256="another")
    with pytest.raises(UnusableCheckpoint, match="another version of the few-shot decoder"):
        shelf.add_file(exported(head), "imported", PocketDecoder(seed=1), weights_sha256="pocket")
    assert shelf.names() == []


def test_only_what_a_checkpoint_means_is_written(shelf: CheckpointRegistry, head: AdaptedTask) -> None:
    """A card may bring along what it likes; it is not handed on."""
    data = exported(head)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    card = json.loads(metadata["card"]) | {"support": {"organ": [{"image": "somebody"}]}, "PatientID": "4711"}
    take(shelf, save(load(data), {"card": json.dumps(card), "more": "somebody"}), "imported")
    written = shelf.path("imported").read_bytes()
    assert b"somebody" not in written
    assert set(shelf.card("imported")) & {*LOCAL, "PatientID"} == set()
