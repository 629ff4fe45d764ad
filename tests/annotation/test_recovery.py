"""Damaged files of annotations: what can be rebuilt is, what is damaged is kept, and there is one kind of error."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from submissions import drawn, empty, submission

from ssmsam.annotation.interpretation import Context, interpret
from ssmsam.annotation.log import Assignment, Served, WorkLog
from ssmsam.annotation.store import (
    SCHEMA,
    AnnotationStore,
    CorruptAnnotations,
    MaskFile,
    UnknownSchema,
    image_folder,
    read_index,
    read_json,
)

IMAGE = "case"
INDEX = "annotations.json"


def submitted(root: Path, *slices: int) -> AnnotationStore:
    store = AnnotationStore(root)
    for index in slices:
        store.merge(IMAGE, interpret(submission(drawn(index)), Context(empty())))
    return store


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda data: b"",
    "cut": cut,
    "changed": lambda data: data.replace(b'"liver"', b'"heart"'),
    "zeros": lambda data: bytes(len(data)),
    "nested": lambda data: b"[" * 20_000,
}


@pytest.mark.parametrize("damage", [*DAMAGES, "removed"])
def test_the_index_is_rebuilt_from_the_revisions(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    before = submitted(tmp_path, 2, 5).load(IMAGE)
    path = image_folder(tmp_path, IMAGE) / INDEX
    whole = path.read_bytes()
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](whole))
    store = AnnotationStore(tmp_path)
    assert store.images() == [IMAGE] and store.overview(IMAGE).annotated == {"liver"}
    after = store.load(IMAGE)
    assert {key: entry.mask for key, entry in after.slices.items()} == {
        key: entry.mask for key, entry in before.slices.items()
    }
    assert after.revision == 2 and path.read_bytes() == whole
    kept = list(path.parent.glob(f"{INDEX}.damaged-*"))
    assert len(kept) == (damage != "removed")
    assert str(path) in caplog.text and "rebuilt" in caplog.text
    assert len(submitted(tmp_path, 6).load(IMAGE).slices) == 3


def test_an_index_is_rebuilt_by_whoever_meets_it_first(tmp_path: Path) -> None:
    submitted(tmp_path, 2, 5)
    (image_folder(tmp_path, IMAGE) / INDEX).write_bytes(b"")
    assert len(submitted(tmp_path, 6).load(IMAGE).slices) == 3
    assert [one.index for one in AnnotationStore(tmp_path).support()] == [2, 5, 6]


@pytest.mark.parametrize("damage", ["emptied", "cut", "zeros", "removed"])
def test_damaged_masks_cost_their_slices_and_no_others(tmp_path: Path, damage: str) -> None:
    submitted(tmp_path, 2, 5, 6)
    path = image_folder(tmp_path, IMAGE) / "revision-000002.npz"
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    store = AnnotationStore(tmp_path)
    assert [one.index for one in store.support()] == [2, 6]
    known = store.load(IMAGE)
    assert [one.number for one in known.revisions] == [1, 2, 3]
    assert "lost: annotate again liver on slice 5" in known.revisions[1].notes[-1]
    assert [one.index for one in submitted(tmp_path, 5).support()] == [2, 5, 6]


def test_a_folder_of_nothing_but_damage_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    submitted(tmp_path, 2)
    folder = image_folder(tmp_path, IMAGE)
    for path in folder.glob("*.json"):
        path.write_bytes(b"")
    store = AnnotationStore(tmp_path)
    assert store.images() == [] and store.load(IMAGE) is None
    assert [path.name for path in tmp_path.glob("*/revision-000001.npz")]
    assert "kept as" in caplog.text
    assert len(submitted(tmp_path, 5).load(IMAGE).slices) == 1
    assert len(list(tmp_path.glob("*/revision-000001.npz"))) == 2


def reseal(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a sealed file and seal it again."""
    content = json.loads(path.read_bytes())
    content.pop("sha256")
    change(content)
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({"sha256": seal, **content}))


def test_what_another_version_wrote_is_left_alone_and_stops_nobody(tmp_path: Path) -> None:
    submitted(tmp_path, 2)
    AnnotationStore(tmp_path).merge("other", interpret(submission(drawn(3)), Context(empty())))
    path = image_folder(tmp_path, IMAGE) / INDEX
    reseal(path, lambda content: content.update(schema=SCHEMA + 1))
    before, store = path.read_bytes(), AnnotationStore(tmp_path)
    assert store.images() == ["other"] and len(store.support()) == 1 and str(path) in store.troubles
    with pytest.raises(UnknownSchema, match="use the version that wrote it"):
        store.load(IMAGE)
    with pytest.raises(UnknownSchema):
        submitted(tmp_path, 5)
    assert path.read_bytes() == before


def worked(root: Path) -> WorkLog:
    log = WorkLog(root)
    log.assign(Assignment("a", IMAGE, (2, 3), labels=("liver",)))

    log.serve(IMAGE, Served.of(drawn(2) > 0, label="liver", client="reader", when="2026-01-01"))
    log.open(IMAGE, "reader", "2026-01-01")
    return log


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_work_log_begins_anew(tmp_path: Path, damage: str) -> None:
    submitted(tmp_path, 2)
    log = worked(tmp_path)
    path = image_folder(tmp_path, IMAGE) / "work.json"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert log.assignments(IMAGE) == [] and log.served(IMAGE, client="reader") == {}
    assert len(list(path.parent.glob("work.json.damaged-*"))) == 1
    assert worked(tmp_path).served(IMAGE, client="reader")["liver"].slices[2].array.any()
    assert len(AnnotationStore(tmp_path).load(IMAGE).slices) == 1


def test_a_mask_that_was_shown_and_is_damaged_is_forgotten(tmp_path: Path) -> None:
    log = worked(tmp_path)
    (image_folder(tmp_path, IMAGE) / "served-000001.npz").write_bytes(b"PK")
    assert log.served(IMAGE, client="reader") == {} and len(log.assignments(IMAGE)) == 1
    assert worked(tmp_path).served(IMAGE, client="reader")["liver"]


def test_what_was_forgotten_does_not_come_back(tmp_path: Path) -> None:
    from ssmsam.annotation.service import AnnotationService

    submitted(tmp_path, 2)
    AnnotationService(tmp_path).forget(IMAGE)
    assert AnnotationStore(tmp_path).images() == [] and AnnotationStore(tmp_path).load(IMAGE) is None


# --- whatever is done to a file, there is one error, or the record is whole

_ODD = (None, -1, 0, 10**30, 1e308, float("nan"), "", "x", "\ud800", [], {}, [[]], True, [1, "a"], {"a": 1})


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Bytes changed as disks and people do it, and JSON with values of another kind, sealed again."""
    kind = chance.randrange(6)
    if kind == 0:
        return data[: chance.randrange(len(data))]
    if kind == 1:
        position = chance.randrange(len(data))
        return data[:position] + bytes([chance.randrange(256)]) + data[position + 1 :]
    if kind == 2:
        start, length = chance.randrange(len(data)), chance.randrange(1, 64)
        return data[:start] + bytes(length) + data[start + length :]
    content = json.loads(data)
    content.pop("sha256", None)
    places = list(_places(content))
    for _ in range(chance.randrange(1, 3)):
        holder, key = chance.choice(places)
        if kind == 3 and isinstance(holder, dict):
            holder.pop(key, None)
        else:
            holder[key] = chance.choice(_ODD)
    seal = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"sha256": seal, **content}).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


ROUNDS = [200, pytest.param(10_000, marks=pytest.mark.faults)]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_indices(tmp_path: Path, rounds: int) -> None:
    submitted(tmp_path, 2, 5)
    folder, chance = image_folder(tmp_path, IMAGE), random.Random(0)
    for name in (INDEX, "revision-000001.json"):
        whole = (folder / name).read_bytes()
        for _ in range(rounds):
            (folder / name).write_bytes(mutated(whole, chance))
            try:
                index = read_index(folder / name)
            except CorruptAnnotations:
                continue
            assert index.version == SCHEMA
        (folder / name).write_bytes(whole)


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_stores_are_read_or_rebuilt(tmp_path: Path, rounds: int) -> None:
    chance = random.Random(1)
    submitted(tmp_path / "whole", 2, 5)
    whole = {path.name: path.read_bytes() for path in image_folder(tmp_path / "whole", IMAGE).iterdir() if path.suffix}
    folder = image_folder(tmp_path / "damaged", IMAGE)
    for _ in range(rounds):
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in whole.items():
            (folder / name).write_bytes(data)
        (folder / INDEX).write_bytes(mutated(whole[INDEX], chance))
        store = AnnotationStore(tmp_path / "damaged")
        try:
            known = store.load(IMAGE)
        except CorruptAnnotations:
            known = None
        store.overviews()
        assert store.support() is not None
        assert known is None or np.array_equal(known.target("nothing")[0], np.zeros(known.grid.shape, bool))
        for path in folder.parent.rglob("*damaged-*"):
            path.unlink() if path.is_file() else None


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_work_logs(tmp_path: Path, rounds: int) -> None:
    log, chance = worked(tmp_path), random.Random(2)
    path = image_folder(tmp_path, IMAGE) / "work.json"
    whole, masks = path.read_bytes(), (path.parent / "served-000001.npz").read_bytes()
    for _ in range(rounds):
        path.write_bytes(mutated(whole, chance))
        (path.parent / "served-000001.npz").write_bytes(masks)
        try:
            log.assignments(IMAGE), log.labels(IMAGE)
            log.served(IMAGE, client="reader"), log.opened(IMAGE, "reader")
            log.open(IMAGE, "reader", "2026-01-02")
        except UnknownSchema:
            continue
        read_json(path, schema=SCHEMA)
        for old in path.parent.glob("*.damaged-*"):
            old.unlink()


@pytest.mark.parametrize("name", ["../x.npz", "/etc/x.npz", "a/b.npz", "x.npz\n", "..npz", "x.npz\0", "\\x.npz", ""])
def test_masks_lie_in_the_folder_of_their_record(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MaskFile).validate_python(name)
