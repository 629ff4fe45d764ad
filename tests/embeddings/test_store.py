from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssmsam
from fakes import TinyEncoder, a_volume
from ssmsam.embeddings.embedder import Embedder, VolumeEmbeddings
from ssmsam.embeddings.store import EmbeddingKey, EmbeddingStore

SLICE_BYTES = 2 * (8 * 8 * 8 + 4 * 16 * 16)
VOLUME_BYTES = 12 * SLICE_BYTES


def opened(root: Path, *, seed: int = 0, **store: int) -> tuple[Embedder, VolumeEmbeddings]:
    """A fresh embedder on the store, as a new process would make it."""
    embedder = Embedder(encoder=TinyEncoder(), store=EmbeddingStore(root, **store))
    return embedder, embedder.open(a_volume(seed=seed))


def fresh(*, seed: int = 0) -> list[torch.Tensor]:
    """What the embeddings should be."""
    volume = Embedder(encoder=TinyEncoder()).open(a_volume(seed=seed))
    return [volume.slice(index)["image"] for index in range(volume.count)]


def assert_whole(volume: VolumeEmbeddings, expected: list[torch.Tensor]) -> None:
    for index, image in enumerate(expected):  # batches of another size may round the last bit differently
        torch.testing.assert_close(volume.slice(index)["image"], image, rtol=2e-3, atol=2e-3)


def the_file(root: Path, name: str) -> Path:
    (path,) = root.glob(f"??/*/{name}")
    return path


def the_folder(root: Path, volume: VolumeEmbeddings) -> Path:
    return root / volume.key.digest[:2] / volume.key.digest


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte[0] ^ 0x40]))


def start_child(root: Path, seconds: float) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(ssmsam.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    script = Path(__file__).parents[1] / "fakes.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(root), str(seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_stored_slice_needs_no_encoder(tmp_path):
    _, first = opened(tmp_path)
    first.embed()
    embedder, second = opened(tmp_path)
    assert second.done.all()
    assert_whole(second, fresh())
    assert embedder.encoded == 0


def test_all_maps_come_back(tmp_path):
    _, first = opened(tmp_path)
    made = first.slice(4)
    _, second = opened(tmp_path)
    again = second.slice(4)
    assert torch.equal(made["image"], again["image"])
    assert again["image"].shape == (1, 8, 8, 8)
    assert [level.shape for level in again["levels"]] == [(1, 4, 16, 16)]
    assert torch.equal(made["levels"][0], again["levels"][0])
    assert second.done.tolist() == [index == 4 for index in range(12)]


@pytest.mark.parametrize("field", [field.name for field in fields(EmbeddingKey)])
def test_every_field_of_the_key_changes_the_folder(field):
    key = EmbeddingKey("pixels", 0, "recipe", "tiny", "weights", ("image",))
    changed = {"plane": 1, "layers": ("image", "level0")}.get(field, "other")
    assert replace(key, **{field: changed}).digest != key.digest


def test_the_files_can_be_read_without_us(tmp_path):
    _, volume = opened(tmp_path)
    volume.embed()
    array = np.load(the_file(tmp_path, "image.npy"), mmap_mode="r")
    assert array.shape == (12, 8, 8, 8)
    assert np.array_equal(array[5], volume.slice(5)["image"][0].half().numpy())
    meta = json.loads(the_file(tmp_path, "meta.json").read_text())
    assert meta["identity"]["key"]["encoder"] == "tiny"
    assert meta["identity"]["grid"]["shape"] == [12, 20, 28]


@pytest.mark.parametrize(("name", "size"), [("image.npy", 1024), ("level0.npy", 2048)])
def test_a_flipped_bit_is_found_and_made_again(tmp_path, name, size, caplog):
    _, first = opened(tmp_path)
    first.embed()
    flip(the_file(tmp_path, name), 128 + 7 * size + 11)
    embedder, second = opened(tmp_path)
    assert_whole(second, fresh())
    assert embedder.encoded == 1
    assert "slice 7" in caplog.text
    embedder, third = opened(tmp_path)
    third.slice(7)
    assert embedder.encoded == 0


def test_a_flipped_bit_in_a_record_is_found(tmp_path):
    _, first = opened(tmp_path)
    first.embed()
    flip(the_file(tmp_path, "slices.bin"), 3 * 8)
    flip(the_file(tmp_path, "slices.bin"), 5 * 8 + 4)
    embedder, second = opened(tmp_path)
    assert_whole(second, fresh())
    assert embedder.encoded == 2


@pytest.mark.parametrize("damage", ["truncate", "meta", "records", "no meta", "no tensor"])
def test_damaged_files_are_made_again(tmp_path, damage):
    _, first = opened(tmp_path)
    first.embed()
    if damage == "truncate":
        os.truncate(the_file(tmp_path, "image.npy"), 3000)
    elif damage == "records":
        os.truncate(the_file(tmp_path, "slices.bin"), 17)
    elif damage == "meta":
        the_file(tmp_path, "meta.json").write_text('{"identity": {"for')
    else:
        the_file(tmp_path, "meta.json" if damage == "no meta" else "image.npy").unlink()
    _, second = opened(tmp_path)
    assert_whole(second, fresh())
    embedder, third = opened(tmp_path)
    assert_whole(third, fresh())
    assert embedder.encoded == 0


def test_a_killed_process_leaves_whole_slices_only(tmp_path):
    child = start_child(tmp_path, 0.08)
    for line in child.stdout:
        if int(line) >= 4:
            break
    child.send_signal(signal.SIGKILL)
    child.wait()
    embedder, volume = opened(tmp_path)
    kept = int(volume.done.sum())
    assert 4 <= kept < 12
    volume.embed()
    assert embedder.encoded == 12 - kept
    assert_whole(volume, fresh())


def test_a_slice_whose_bytes_did_not_arrive_is_not_done(tmp_path):
    """As after a power cut: the record is there, the bytes are not."""
    _, first = opened(tmp_path)
    first.embed()
    with the_file(tmp_path, "image.npy").open("r+b") as stream:
        stream.seek(128 + 9 * 1024 + 512)
        stream.write(bytes(512))
    embedder, second = opened(tmp_path)
    assert_whole(second, fresh())
    assert embedder.encoded == 1


def test_two_processes_share_the_work(tmp_path):
    children = [start_child(tmp_path, 0.1) for _ in range(2)]
    encoded = [int(child.communicate()[0].split()[-1]) for child in children]
    assert all(child.returncode == 0 for child in children)
    assert sum(encoded) == 12
    embedder, volume = opened(tmp_path)
    assert_whole(volume, fresh())
    assert embedder.encoded == 0


def test_a_claim_is_for_one_process(tmp_path):
    embedder, volume = opened(tmp_path)
    other = EmbeddingStore(tmp_path).open(volume.key, grid=volume.grid, count=volume.count)
    assert other.claim(3)
    mine = EmbeddingStore(tmp_path).open(volume.key, grid=volume.grid, count=volume.count)
    assert not mine.claim(3)
    assert mine.claim(4)
    other.release(3)
    assert mine.claim(3)
    volume.slice(5)
    assert embedder.encoded == 1


def test_a_user_gets_what_another_process_is_making(tmp_path):
    embedder, volume = opened(tmp_path)
    theirs, same = opened(tmp_path)
    other = EmbeddingStore(tmp_path).open(volume.key, grid=volume.grid, count=volume.count)
    other.claim(3)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(volume.slice, 3)
        time.sleep(0.3)
        assert not waiting.done()
        other.write([3], theirs.encode(same.inputs([3])))
        other.release(3)
        torch.testing.assert_close(waiting.result()["image"], fresh()[3], rtol=2e-3, atol=2e-3)
    assert (embedder.encoded, theirs.encoded) == (0, 1)


def test_a_user_does_not_wait_for_a_stuck_process_for_ever(tmp_path, monkeypatch):
    embedder, volume = opened(tmp_path)
    other = EmbeddingStore(tmp_path).open(volume.key, grid=volume.grid, count=volume.count)
    other.claim(3)
    monkeypatch.setattr(Embedder, "patience", 0.2)
    assert volume.slice(3)["image"].shape == (1, 8, 8, 8)
    other.release(3)
    again, second = opened(tmp_path)
    second.slice(3)
    assert (embedder.encoded, again.encoded) == (1, 0)


def test_the_least_recently_used_volume_goes(tmp_path):
    digests = []
    for age, seed in enumerate((0, 1, 2)):
        _, volume = opened(tmp_path, seed=seed)
        volume.embed()
        os.utime(the_folder(tmp_path, volume) / "used", (0, 1000 + age))
        digests.append(volume.key.digest)
    opened(tmp_path)[1].slice(0)  # used now, so that seed 1 is the oldest
    opened(tmp_path, seed=3, quota_bytes=3 * VOLUME_BYTES + 4096)[1].embed()
    left = {entry.digest for entry in EmbeddingStore(tmp_path).entries()}
    assert len(left) == 3
    assert {digests[0], digests[2]} < left
    assert not list(tmp_path.glob("removed-*"))


def test_a_volume_in_use_is_never_removed(tmp_path, caplog):
    store = EmbeddingStore(tmp_path, quota_bytes=VOLUME_BYTES + 4096)
    embedder = Embedder(encoder=TinyEncoder(), store=store)
    first, second = embedder.open(a_volume()), embedder.open(a_volume(seed=1))
    first.embed()
    second.embed()
    assert [entry.digest for entry in store.entries()] == [first.key.digest]
    assert second.done.all(), "it stays in memory"
    assert "quota" in caplog.text
    assert caplog.text.count("memory only") == 1
    del first
    third = embedder.open(a_volume(seed=2))
    third.embed()
    assert [entry.digest for entry in store.entries()] == [third.key.digest]


def test_a_volume_removed_by_another_process_is_made_again(tmp_path):
    _, volume = opened(tmp_path)
    volume.slice(0)
    EmbeddingStore(tmp_path).remove(volume.key.digest)
    volume.embed([5, 6])
    embedder, second = opened(tmp_path)
    assert second.done.tolist() == [index in (5, 6) for index in range(12)]
    second.slice(5)
    assert embedder.encoded == 0


def test_a_full_disk_costs_only_the_disk(tmp_path, monkeypatch, caplog):
    embedder, volume = opened(tmp_path)
    volume.embed(range(6))

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ssmsam.embeddings.store.os.fsync", no_room)
    volume.embed()
    assert embedder.encoded == 12
    assert volume.done.all()
    assert_whole(volume, fresh())
    assert caplog.text.count("No space left on device") == 1
    monkeypatch.undo()
    assert opened(tmp_path)[1].done.sum() == 6


def test_a_store_that_may_only_be_read(tmp_path, monkeypatch, caplog):
    opened(tmp_path)[1].embed(range(6))
    embedder, volume = opened(tmp_path)
    usual = Path.open

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for writing in ("mkdir", "touch", "write_text"):
        monkeypatch.setattr(Path, writing, refuse)

    def open_to_read(path: Path, mode: str = "r", **options: Any) -> Any:
        return usual(path, mode, **options) if mode in ("r", "rb") else refuse()

    monkeypatch.setattr(Path, "open", open_to_read)
    assert_whole(volume, fresh())
    assert embedder.encoded == 6
    assert caplog.text.count("Permission denied") == 1


def test_a_slice_at_another_ones_place_is_found(tmp_path):
    """Whole and with a true checksum, but of another slice."""
    _, first = opened(tmp_path)
    first.embed()
    for name, start, size in (("image.npy", 128, 1024), ("level0.npy", 128, 2048), ("slices.bin", 0, 8)):
        with the_file(tmp_path, name).open("r+b") as stream:
            stream.seek(start + 3 * size)
            slice_3 = stream.read(size)
            stream.seek(start + 8 * size)
            stream.write(slice_3)
    embedder, second = opened(tmp_path)
    assert_whole(second, fresh())
    assert embedder.encoded == 1


def test_a_root_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another folder"):
        EmbeddingStore(tmp_path / "file" / "store")


def test_values_beyond_half_precision_are_cut(tmp_path, caplog):
    embedder, volume = opened(tmp_path)
    with torch.no_grad():
        embedder.encoder.coarse.bias[2] = -1e6
        embedder.encoder.coarse.bias[3] = 1e6
    image = volume.slice(0)["image"]
    assert (image[0, 2] == -65504).all()
    assert (image[0, 3] == 65504).all()
    assert torch.isfinite(image).all()
    assert "float16" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_values_are_refused(tmp_path, value):
    embedder, volume = opened(tmp_path)
    with torch.no_grad():
        embedder.encoder.coarse.bias[2] = value
    with pytest.raises(ValueError, match="not-a-number"):
        volume.slice(0)
    assert not volume.done.any()
    with torch.no_grad():
        embedder.encoder.coarse.bias[2] = 0
    assert volume.slice(0)["image"].shape == (1, 8, 8, 8)
