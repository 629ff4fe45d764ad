"""The datastore's record: damaged ones are rebuilt, folders that cannot be written can be looked at."""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.files import WRITING
from ssmsam.reading import read_volume
from ssmsam.server.datastore import local_record
from ssmsam.server.datastore.local_record import DamagedRecord, read_record
from ssmsam.server.datastore.studies import StudiesFolder
from ssmsam.service.annotated_studies import PARTIAL
from ssmsam.service.errors import StudiesNotWritable
from ssmsam.volume.writing import write_volume

RECORD = "datastore_v2.json"
INFO = {"label_info": [{"name": "liver", "idx": 1}], "client_id": "reader"}
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write: Write) -> Path:
    for name in ("a", "b"):
        write(tmp_path / "studies" / f"{name}.nii.gz")
    return tmp_path / "studies"


def opened(folder: Path) -> StudiesFolder:
    return StudiesFolder(folder, auto_reload=False)


def submit(studies: StudiesFolder, file: Path, image: str = "a", slices: tuple[int, ...] = (2,)) -> None:
    volume = read_volume(studies.get_image_uri(image))
    mask = np.zeros(volume.shape, np.uint8)
    mask[list(slices), 2:6, 2:6] = 1
    write_volume(volume.with_array(mask), file)
    studies.save_label(image, str(file), PARTIAL, INFO)


@pytest.mark.parametrize(
    "content",
    [b"", b'{"name": "x", "objects": {"a": {"image"', b"[]", b"\xff\xfe", b'{"name": "\\ud83d"}', b"[" * 20_000],
)
def test_a_damaged_record_is_rebuilt_and_kept(folder: Path, tmp_path: Path, content: bytes, caplog) -> None:
    submit(opened(folder), tmp_path / "mask.nii.gz")
    (folder / RECORD).write_bytes(content)
    studies = opened(folder)
    assert sorted(studies.list_images()) == ["a", "b"]
    assert studies.get_label_info("a", PARTIAL)["label_info"] == INFO["label_info"]  # from the annotations
    kept = list(folder.glob(f"{RECORD}.damaged-*"))
    assert [path.read_bytes() for path in kept] == [content]
    assert kept[0].name in caplog.text and kept[0].name in studies.files.notices[0]
    assert sorted(read_record(folder / RECORD).objects) == ["a", "b"]
    assert opened(folder).files.notices == []


def test_a_record_that_is_damaged_while_the_server_runs_costs_nothing(folder: Path, tmp_path: Path) -> None:
    studies = opened(folder)
    studies.update_image_info("a", {"seen": "yes"})
    (folder / RECORD).write_bytes(b"")
    studies.refresh()
    assert studies.get_image_info("a")["seen"] == "yes"
    assert opened(folder).get_image_info("a")["seen"] == "yes"


@pytest.mark.parametrize("rounds", [200, pytest.param(10_000, marks=pytest.mark.faults)])
def test_mutated_records(folder: Path, tmp_path: Path, rounds: int) -> None:
    submit(opened(folder), tmp_path / "mask.nii.gz")
    whole, chance, path = (folder / RECORD).read_bytes(), random.Random(0), tmp_path / "record.json"
    for _ in range(rounds):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.3 else data)
        try:
            read_record(path)
        except DamagedRecord:
            continue


def test_what_is_noted_can_always_be_read_again(folder: Path) -> None:
    studies = opened(folder)
    studies.update_image_info("a", {"score": float("nan"), "most": float("inf"), "name of": "l\nb \U0001f642"})
    assert opened(folder).get_image_info("a")["name of"] == "l\nb \U0001f642"


def test_names_that_are_no_text_are_left_out(folder: Path, write: Write) -> None:
    os.rename(write(folder / "c.nii.gz"), os.fsencode(folder) + b"/case\xff.nii.gz")
    for _ in range(2):
        studies = opened(folder)
        assert sorted(studies.list_images()) == ["a", "b"]
        assert "not UTF-8" in studies.files.notices[0]


@pytest.mark.parametrize(("sign", "most"), [("M", 248), ("肝", 82)])
def test_names_that_leave_no_room_for_a_label_are_left_out(
    folder: Path, tmp_path: Path, write: Write, sign: str, most: int
) -> None:
    (folder / "a.nii.gz").rename(folder / f"{sign * most}.nii.gz")
    (tmp_path / "long.nii").write_bytes(gzip.decompress((folder / "b.nii.gz").read_bytes()))
    (tmp_path / "long.nii").rename(folder / f"{sign * (most + 1)}.nii")
    studies = opened(folder)
    assert sorted(studies.list_images()) == sorted(["b", sign * most])
    assert "longer than 248 bytes" in studies.files.notices[0]
    submit(studies, tmp_path / "mask.nii.gz", image=sign * most)
    assert Path(studies.get_label_uri(sign * most, PARTIAL)).is_file()


def test_labels_that_the_server_had_no_time_to_write_are_written_at_its_start(folder: Path, tmp_path: Path) -> None:
    studies = opened(folder)
    submit(studies, tmp_path / "mask.nii.gz")
    earlier = Path(studies.get_label_uri("a", PARTIAL)).read_bytes()
    record = (folder / RECORD).read_bytes()
    submit(studies, tmp_path / "mask.nii.gz", slices=(4,))
    later = read_volume(studies.get_label_uri("a", PARTIAL)).array
    Path(studies.get_label_uri("a", PARTIAL)).write_bytes(earlier)
    (folder / RECORD).write_bytes(record)  # as if it had been killed between the two
    again = opened(folder)
    np.testing.assert_array_equal(read_volume(again.get_label_uri("a", PARTIAL)).array, later)
    assert again.get_label_info("a", PARTIAL)["revision"] == 2


def test_a_label_that_found_no_room_is_written_with_the_next_word(folder: Path, tmp_path: Path, monkeypatch) -> None:
    studies = opened(folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(local_record, "_copy", full)
        with pytest.raises(OSError, match="No space"):
            submit(studies, tmp_path / "mask.nii.gz")
    assert studies.get_labels_by_image_id("a") == {}
    submit(studies, tmp_path / "mask.nii.gz")
    assert read_volume(studies.get_label_uri("a", PARTIAL)).array.any()


def test_what_killed_writers_left_is_removed(folder: Path) -> None:
    opened(folder)
    old, future, new = (folder / "labels" / "final" / f"{WRITING}{name}" for name in ("old", "future", "new"))
    for path, age in ((old, 10_000), (future, -10_000), (new, 0)):
        path.mkdir()
        os.utime(path, (time.time() - age,) * 2)
    opened(folder)
    assert not old.exists() and not future.exists() and new.exists()


def test_a_folder_that_cannot_be_written_can_be_looked_at(folder: Path, tmp_path: Path, monkeypatch) -> None:
    studies = opened(folder)
    submit(studies, tmp_path / "mask.nii.gz")
    studies.screen("a", client="reader")  # what is noted in the background is written then
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(local_record, "why_not_writable", lambda path: "Read-only file system")
    for damage in (False, True):
        if damage:
            (folder / RECORD).write_bytes(b"")
            before[folder / RECORD] = b""
        studies = opened(folder)
        assert sorted(studies.list_images()) == ["a", "b"] and len(studies.support()) == 1
        studies.serve("a", np.ones((6, 20, 24), bool), label="liver", client="reader")
        assert studies.screen("a", client="reader")["liver"].any()
        with pytest.raises(StudiesNotWritable, match=r"Read-only file system.*looked at"):
            submit(studies, tmp_path / "mask.nii.gz", slices=(4,))
        for change in (lambda s: s.forget("a"), lambda s: s.remove_label("a", PARTIAL), lambda s: s.remove_image("a")):
            with pytest.raises(StudiesNotWritable):
                change(studies)
        assert "cannot be written" in studies.files.notices[0]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


# --- final labels that somebody put there


def brought(folder: Path, image: str, array: np.ndarray) -> Path:
    volume = read_volume(folder / f"{image}.nii.gz")
    file = folder / "labels" / "final" / f"{image}.nii.gz"
    write_volume(volume.with_array(array) if array.shape == volume.shape else type(volume)(array, volume.affine), file)
    return file


def block(*values: int, shape: tuple[int, ...] = (6, 20, 24), kind: type = np.uint8) -> np.ndarray:
    array = np.zeros(shape, kind)
    for value in values:
        array[1:4, 2 * value : 2 * value + 2, 2:6] = value
    return array


def test_a_label_that_was_brought_along_is_learned_from(folder: Path) -> None:
    brought(folder, "a", block(1, 3))
    before = (folder / "labels" / "final" / "a.nii.gz").read_bytes()
    for _ in range(2):
        studies = opened(folder)
        support = studies.support()
        assert support.labels == ("label_1", "label_3") and len(support.only(label="label_1")) == 6
        assert len(support.only(label="label_1", nonempty=True)) == 3
        assert studies.get_labeled_images() == ["a"] and studies.status()["finished"] == 1
        assert studies.get_label_info("a", "final")["label_info"][1] == {"name": "label_3", "idx": 3}
    assert (folder / "labels" / "final" / "a.nii.gz").read_bytes() == before


def test_names_of_its_values(folder: Path) -> None:
    brought(folder, "a", block(1, 2))
    studies = StudiesFolder(folder, auto_reload=False, named=["liver", "spleen"])
    assert studies.support().labels == ("liver", "spleen")
    brought(folder, "b", block(3))
    studies.refresh()
    assert studies.support().labels == ("label_3", "liver", "spleen")


def test_its_info_is_believed_as_submissions_are(folder: Path) -> None:
    brought(folder, "a", block(2))
    record = json.loads((folder / RECORD).read_text()) if (folder / RECORD).exists() else None
    assert record is None
    for numbers, used in (((2, 5), False), ((5, 2), True)):
        info = [{"name": name, "idx": idx} for name, idx in zip(("liver", "spleen"), numbers, strict=True)]
        label = {"final": {"ext": ".nii.gz", "info": {"label_info": info}}}
        objects = {"a": {"image": {"ext": ".nii.gz"}, "labels": label}}
        (folder / RECORD).write_text(json.dumps({"name": "x", "description": "", "objects": objects}))
        studies = opened(folder)
        assert studies.support().labels == (("spleen",) if used else ())
        assert used or "two ways" in studies.unused_labels[0]["reason"]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (block(1)[:-2], "another grid"),
        (block(), "no voxel"),
        (block(1).astype(np.float32) * np.float32(0.5), "value 0.5"),
        (-block(1).astype(np.int16), "value -1"),
        (np.arange(6 * 20 * 24).reshape(6, 20, 24).astype(np.uint16), "different values"),
        (np.where(block(1), np.nan, 0).astype(np.float32), "nan"),
    ],
)
def test_what_cannot_be_used_is_set_aside_until_it_changes(folder: Path, array: np.ndarray, words: str) -> None:
    brought(folder, "a", array)
    studies = opened(folder)
    assert len(studies.support()) == 0 and studies.get_labeled_images() == []
    assert studies.status()["completed"] == studies.status()["finished"] == 0
    assert words in studies.unused_labels[0]["reason"] and studies.unused_labels[0]["image"] == "a"
    assert str(folder) not in studies.unused_labels[0]["reason"]
    assert sorted(studies.get_unlabeled_images()) == ["a", "b"]
    brought(folder, "a", block(2))
    studies.refresh()
    assert studies.support().labels == ("label_2",) and studies.unused_labels == []


def test_what_was_annotated_here_is_not_replaced(folder: Path, tmp_path: Path) -> None:
    submit(opened(folder), tmp_path / "mask.nii.gz")
    brought(folder, "a", block(2))
    studies = opened(folder)
    assert studies.support().labels == ("liver",) and studies.get_labeled_images() == []


@pytest.mark.parametrize("name", ["liver\nspleen", "li\x00ver", "a\u2028b", "tab\tbed", "\x1b[31mred"])
def test_names_with_control_characters_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    studies = opened(folder)
    write_volume(read_volume(studies.get_image_uri("a")).with_array(block(1)), tmp_path / "mask.nii.gz")
    with pytest.raises(InvalidSubmission, match="control character"):
        studies.save_label("a", str(tmp_path / "mask.nii.gz"), PARTIAL, {"label_info": {name: 1}})
