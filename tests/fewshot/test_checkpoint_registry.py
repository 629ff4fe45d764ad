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
def task(embedder: Embedder, decoder: PocketDecoder) -> AdaptedTask:
    return adapt(two_labels(embedder), embedder, decoder, config=quick())


@pytest.fixture
def registry(tmp_path: Path) -> CheckpointRegistry:
    return CheckpointRegistry(tmp_path / "heads", keep=3)


def exported(task: AdaptedTask) -> bytes:
    return task.checkpoint(PocketDecoder()).to_bytes()


def take(registry: CheckpointRegistry, data: bytes, name: str) -> str:
    return registry.add_file(data, name, PocketDecoder(), weights_sha256="pocket")


def half_written(registry: CheckpointRegistry) -> list[str]:
    return [path.name for path in registry.folder.iterdir() if path.name.startswith(".writing")]


def test_the_newest_checkpoint_answers(
    registry: CheckpointRegistry, task: AdaptedTask, embedder: Embedder, decoder: PocketDecoder
) -> None:
    assert registry.state == RegistryState("", False)
    assert registry.names() == []
    first, second = registry.publish(task, decoder=PocketDecoder()), registry.publish(task, decoder=PocketDecoder())
    assert first < second
    assert registry.state == CheckpointRegistry(registry.folder).state == RegistryState(second, False, first)
    loaded = registry.load(second, decoder, weights_sha256="pocket")
    assert state_digest(loaded.decoder) == state_digest(task.decoder)
    query = embedder.open(draw_volume())
    assert (segment(query, loaded).mask == segment(query, task).mask).all()
    assert registry.card(first) == registry.cards()[first]
    assert registry.card(first)["labels"] == ["organ", "other"]
    assert half_written(registry) == []


def test_a_checkpoint_that_is_not_to_answer_only_waits(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    first = registry.publish(task, decoder=PocketDecoder())
    second = registry.publish(task, decoder=PocketDecoder(), activate=False)
    assert registry.state.active == first
    assert registry.activate(second, pin=False) == RegistryState(second, False, first)


def test_a_pinned_checkpoint_answers_until_it_is_unpinned(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    first = registry.publish(task, decoder=PocketDecoder())
    registry.activate(first, pin=True)
    second = registry.publish(task, decoder=PocketDecoder())
    assert registry.state == RegistryState(first, True)
    assert registry.unpin() == RegistryState(first, False)
    assert registry.activate(second, pin=False).active == second


def test_old_checkpoints_go_but_never_the_one_that_answers(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    first = registry.publish(task, decoder=PocketDecoder())
    registry.activate(first, pin=True)
    later = [registry.publish(task, decoder=PocketDecoder()) for _ in range(4)]
    assert registry.names() == [first, *later[-3:]]
    cards = {path.stem for path in registry.folder.glob("*.json")} - {"shelf"}
    assert cards == set(registry.names()), "a card goes with its checkpoint"


def test_removing(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    first, second = registry.publish(task, decoder=PocketDecoder()), registry.publish(task, decoder=PocketDecoder())
    with pytest.raises(ValueError, match=f"{second} is the task checkpoint that answers: activate another one first"):
        registry.remove(second)
    registry.remove(first)
    assert registry.names() == [second]
    with pytest.raises(UnknownCheckpoint, match=f"there is no task checkpoint '{first}'; there are {second}"):
        registry.remove(first)


@pytest.mark.parametrize("name", ["../secret", "a/b", "", ".hidden", "x" * 101])
def test_names_cannot_leave_the_folder(registry: CheckpointRegistry, task: AdaptedTask, name: str) -> None:
    (registry.folder.parent / "secret.safetensors").write_bytes(exported(task))
    registry.publish(task, decoder=PocketDecoder())
    with pytest.raises(UnknownCheckpoint):
        registry.path(name)
    with pytest.raises(UnknownCheckpoint):
        registry.activate(name, pin=False)
    with pytest.raises(ValueError, match="a task checkpoint's name is made of letters"):
        take(registry, exported(task), name)


def test_an_exported_checkpoint_is_taken_over(registry: CheckpointRegistry, task: AdaptedTask, tmp_path: Path) -> None:
    name = registry.publish(task, decoder=PocketDecoder())
    other = CheckpointRegistry(tmp_path / "other")
    assert take(other, registry.path(name).read_bytes(), "from-elsewhere") == "from-elsewhere"
    assert other.state.active == "", "it answers only once it is activated"
    here = {key: value for key, value in registry.card(name).items() if key not in LOCAL}
    assert other.card("from-elsewhere") == here
    with pytest.raises(ValueError, match="there is a task checkpoint 'from-elsewhere' already"):
        take(other, exported(task), "from-elsewhere")


def test_a_damaged_file_leaves_nothing(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    name = registry.publish(task, decoder=PocketDecoder())
    with pytest.raises(UnusableCheckpoint, match="is no task checkpoint, or is damaged"):
        take(registry, exported(task)[:1000], "damaged")
    assert registry.names() == [name]
    assert half_written(registry) == []
    registry.path(name).write_bytes(b"damaged later")
    assert registry.cards() == {}, "one damaged task checkpoint hides no other and breaks no list"
    with pytest.raises(UnusableCheckpoint):
        registry.card(name)


def test_several_threads_publish_at_once(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    """Nobody ever reads half a state, and every task checkpoint is there afterwards."""
    wide = CheckpointRegistry(registry.folder, keep=100)
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.append(json.dumps(vars(wide.state)))

    def publish() -> None:
        for _ in range(3):
            wide.publish(replace(task, banks={}), decoder=PocketDecoder())

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


def test_going_back_to_what_answered_before(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    assert registry.roll_back() == RegistryState("", False, "")
    first, second = registry.publish(task, decoder=PocketDecoder()), registry.publish(task, decoder=PocketDecoder())
    assert registry.state == RegistryState(second, False, first)
    assert registry.roll_back() == RegistryState(first, False, second)
    assert registry.roll_back() == RegistryState(second, False, first)
    assert registry.deactivate() == RegistryState("", False, second)
    registry.activate(first, pin=False)
    assert registry.activate(first, pin=True) == RegistryState(first, True, ""), "pinning is no change of checkpoints"


def test_the_checkpoint_before_stays_too_until_it_is_removed(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    first = registry.publish(task, decoder=PocketDecoder())
    second = registry.publish(task, decoder=PocketDecoder())
    for _ in range(4):
        registry.publish(task, decoder=PocketDecoder(), activate=False)
    assert {first, second} <= set(registry.names())
    registry.remove(first)
    assert registry.roll_back() == RegistryState("", False, second)


def test_checkpoints_of_another_method_are_refused(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    other = replace(task, card={**task.card, "method": "ssm_sam"})
    with pytest.raises(UnusableCheckpoint, match="one of ssm_sam, not of fewshot: import it with method=ssm_sam"):
        take(registry, exported(other), "other")
    assert registry.names() == []
    assert take(CheckpointRegistry(registry.folder, method="ssm_sam"), exported(other), "other") == "other"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"active": 7}', '{"else": ""}', "\x00" * 20, "[" * 100_000])
def test_a_damaged_note_of_what_answers_stops_nobody(
    registry: CheckpointRegistry, task: AdaptedTask, content: str
) -> None:
    name = registry.publish(task, decoder=PocketDecoder())
    (registry.folder / "shelf.json").write_text(content)
    assert registry.state == RegistryState()
    assert list(registry.cards()) == [name]
    assert registry.activate(name, pin=True) == RegistryState(name, True, "")


@pytest.mark.parametrize("name", ["shelf", "training"])
def test_names_of_other_files_in_the_folder_are_taken(
    registry: CheckpointRegistry, task: AdaptedTask, name: str
) -> None:
    with pytest.raises(ValueError, match="and is not shelf or training"):
        take(registry, exported(task), name)


def test_a_checkpoint_of_other_weights_is_not_taken(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    with pytest.raises(UnusableCheckpoint, match=r"take that encoder .*, or adapt again"):
        registry.add_file(exported(task), "imported", PocketDecoder(), weights_sha256="another")
    with pytest.raises(UnusableCheckpoint, match="another version of the few-shot decoder"):
        registry.add_file(exported(task), "imported", PocketDecoder(seed=1), weights_sha256="pocket")
    assert registry.names() == []


def test_only_what_a_checkpoint_means_is_written(registry: CheckpointRegistry, task: AdaptedTask) -> None:
    """A card may bring along what it likes; it is not handed on."""
    data = exported(task)
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    card = json.loads(metadata["card"]) | {"support": {"organ": [{"image": "somebody"}]}, "PatientID": "4711"}
    take(registry, save(load(data), {"card": json.dumps(card), "more": "somebody"}), "imported")
    written = registry.path("imported").read_bytes()
    assert b"somebody" not in written
    assert set(registry.card("imported")) & {*LOCAL, "PatientID"} == set()
