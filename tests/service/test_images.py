from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from plain_files import PlainFiles

from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.embeddings.embedder import Embedder
from ssmsam.reading import UnreadableVolume
from ssmsam.service import images as module
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.images import Images
from ssmsam.volume.volume import Volume

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write: Write) -> Path:
    studies = tmp_path / "studies"
    studies.mkdir()
    for number in range(3):
        write(studies / f"case{number}.nii.gz", seed=number)
    return studies


@pytest.fixture
def images(folder: Path, embedder: Embedder) -> Images:
    return Images(files=PlainFiles(folder), embedder=embedder, memory_bytes=10**9)


def test_an_image_of_the_datastore(images: Images, folder: Path) -> None:
    image = images.open(images.from_datastore("case1"))
    assert image.source.path == folder / "case1.nii.gz"
    assert image.volume.shape == (6, 20, 24)
    assert image.embeddings.count == 6
    assert "case1" in image.key


@pytest.mark.parametrize("name", ["case9", "case1.nii.gz", "../studies/case1", ".", "/etc/passwd", "labels"])
def test_everything_else_is_unknown(images: Images, name: str, folder: Path) -> None:
    for refused in (name, str(folder / "case1.nii.gz")):
        for ask in (images.require, images.from_datastore):
            with pytest.raises(NotKnown, match="no image"):
                ask(refused)


def test_a_slice_that_is_replaced_by_an_older_one(images: Images, tmp_path: Path) -> None:
    """As tools do that copy files with their times."""
    for name, seed in (("series", 0), ("other", 1)):
        array = np.random.default_rng(seed).integers(-90, 200, (4, 8, 9), dtype=np.int16)
        write_dicom_series(Volume(array, np.eye(4), "CT"), tmp_path / name, patient=DicomPatient("Doe^Jane", "1"))
    old, new = (sorted((tmp_path / name).iterdir())[1] for name in ("series", "other"))
    header = pydicom.dcmread(old)
    header.PixelData = pydicom.dcmread(new).PixelData
    header.save_as(tmp_path / "replacement.dcm")
    os.utime(tmp_path / "replacement.dcm", (0, 0))
    before = images.open(images.from_session(tmp_path / "series")).volume.array
    (tmp_path / "replacement.dcm").replace(old)
    after = images.open(images.from_session(tmp_path / "series")).volume.array
    assert [np.array_equal(one, other) for one, other in zip(before, after, strict=True)].count(False) == 1


def test_no_name_at_all(images: Images) -> None:
    with pytest.raises(InvalidRequest, match="session_id"):
        images.from_datastore("")


def test_an_image_that_came_just_now(images: Images, folder: Path, write: Write) -> None:
    write(folder.parent / "late.nii.gz")
    threading.Timer(0.01, lambda: (folder.parent / "late.nii.gz").rename(folder / "late.nii.gz")).start()
    assert images.require("late") == "late"


def test_a_removed_file_is_said(images: Images, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images._files, "list_images", lambda: ["case2"])  # nobody looked again yet
    (folder / "case2.nii.gz").unlink()
    with pytest.raises(NotKnown, match="removed"):
        images.from_datastore("case2")


def test_an_open_image_is_read_once_even_by_many_at_once(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = module.read_volume

    def read(path: Path) -> Volume:
        reads.append(path)
        time.sleep(0.05)  # long enough for the others to come
        return real(path)

    monkeypatch.setattr(module, "read_volume", read)
    source = images.from_datastore("case0")
    threads = [threading.Thread(target=images.open, args=(source,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert images.open(source) is images.open(source)
    assert len(reads) == 1


def test_a_changed_file_is_another_image(images: Images, folder: Path, write: Write) -> None:
    before = images.open(images.from_datastore("case0"))
    write(folder / "case0.nii.gz", seed=99)
    after = images.open(images.from_datastore("case0"))
    assert after.volume.digest != before.volume.digest
    assert after.key != before.key


def test_memory_is_bounded(folder: Path, embedder: Embedder) -> None:
    one = 6 * 20 * 24 * 2
    images = Images(files=PlainFiles(folder), embedder=embedder, memory_bytes=2 * one)
    opened = [images.open(images.from_datastore(f"case{number}")) for number in (0, 1)]
    assert images.open(opened[0].source) is opened[0]  # used again: case1 is now the one not used for longest
    images.open(images.from_datastore("case2"))
    assert images.open(opened[0].source) is opened[0]
    assert images.open(opened[1].source) is not opened[1]


def test_an_unreadable_file_is_named_without_its_path(images: Images, folder: Path) -> None:
    (folder / "case1.nii.gz").write_bytes(b"nothing")
    with pytest.raises(UnreadableVolume) as refused:
        images.open(images.from_datastore("case1"))
    assert "case1" in str(refused.value)
    assert str(folder) not in str(refused.value)


def test_equal_uploads_are_one_image(images: Images, folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"upload{number}.nii.gz" for number in (0, 1)]
    for path in paths:
        path.write_bytes((folder / "case0.nii.gz").read_bytes())
    first, second = (images.open(images.from_upload(path)) for path in paths)
    assert first is second
    assert first.key != images.open(images.from_datastore("case0")).key


def test_what_cannot_be_read_is_set_aside_until_it_changes(images: Images, folder: Path, write: Write) -> None:
    whole = (folder / "case1.nii.gz").read_bytes()
    (folder / "case1.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableVolume, match="case1"):
        images.open(images.from_datastore("case1"))
    assert images.usable(["case0", "case1"]) == ["case0"]
    told = images.set_aside()
    assert [one["image"] for one in told] == ["case1"]
    assert "case1" in told[0]["reason"] and str(folder) not in told[0]["reason"]
    (folder / "case1.nii.gz").write_bytes(whole)
    assert images.usable(["case0", "case1"]) == ["case0", "case1"] and images.set_aside() == []
    assert images.open(images.from_datastore("case1")).volume.shape == (6, 20, 24)


def test_an_image_that_may_not_be_read_is_set_aside_with_a_word(
    images: Images, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(module, "read_volume", refused)
    with pytest.raises(PermissionError):
        images.open(images.from_datastore("case2"))
    (told,) = images.set_aside()
    assert told["image"] == "case2" and "Permission denied" in told["reason"] and str(folder) not in told["reason"]


def test_a_full_disk_says_nothing_of_an_image(images: Images, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space"), images.reading("case0"):
        raise OSError(28, "No space left on device")
    assert images.set_aside() == []
