"""Embeddings that machines share by an object store: a real S3 server, and one that goes away."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssmsam import FewShotSegmenter, as_volume
from ssmsam.embeddings.object_store import ObjectStore, StoreAway, open_store
from ssmsam.embeddings.store import EmbeddingKey
from ssmsam_research.model_choice import ModelChoice

IMAGE = as_volume(np.random.default_rng(0).normal(size=(3, 20, 24)).astype(np.float32), affine=np.eye(4))


def embed(store: ObjectStore, weights: ModelChoice) -> tuple[int, EmbeddingKey]:
    """How many slices went through the encoder, and the key of the volume, which is published."""
    model = FewShotSegmenter.from_pretrained("small", weights=weights.weights, allow_unverified=True, store=store)
    made = model.embed(IMAGE)
    key = model.embedder.open(IMAGE).key
    store.publish(key)
    return made, key


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    if not s3fs.S3FileSystem().exists("embeddings"):  # the servers of one process have one memory
        s3fs.S3FileSystem().mkdir("embeddings")
    yield server
    if not getattr(server, "stopped", False):
        server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_what_one_machine_has_embedded_another_one_finds(s3: Any, tmp_path: Path, random_small: ModelChoice) -> None:
    one, two = (ObjectStore("s3://embeddings/shared", folder=tmp_path / name) for name in ("one", "two"))
    assert embed(one, random_small)[0] == 3
    assert embed(two, random_small)[0] == 0
    first, second = (sorted(path.read_bytes() for path in store.root.rglob("*.npy")) for store in (one, two))
    assert first == second and len(first) > 1


def test_a_store_that_goes_away_and_returns(s3: Any, tmp_path: Path, random_small: ModelChoice) -> None:
    host, port = s3.get_host_and_port()
    store = ObjectStore("s3://embeddings/returns", folder=tmp_path / "one")
    s3.stop()
    s3.stopped = True
    with pytest.raises(StoreAway, match="object store failed"):
        embed(store, random_small)
    assert store.entries()  # nothing of the work is lost
    import moto.server

    again = moto.server.ThreadedMotoServer(ip_address=host, port=port, verbose=False)
    again.start()
    try:
        assert embed(store, random_small)[0] == 0
        other = ObjectStore("s3://embeddings/returns", folder=tmp_path / "two")
        assert embed(other, random_small)[0] == 0
    finally:
        again.stop()


def test_a_shared_folder_by_its_url(tmp_path: Path, random_small: ModelChoice) -> None:
    url = (tmp_path / "shared").as_uri()
    assert embed(ObjectStore(url, folder=tmp_path / "one"), random_small)[0] == 3
    damaged = next((tmp_path / "shared").rglob("*.tar"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 255
    damaged.write_bytes(bytes(content))
    one, two = (
        FewShotSegmenter.from_pretrained(
            "small", weights=random_small.weights, allow_unverified=True, store=ObjectStore(url, folder=tmp_path / name)
        ).embedder.open(IMAGE)
        for name in ("one", "two")
    )
    for index in range(3):  # the damaged slice is made again
        assert torch.allclose(one.slice(index)["image"], two.slice(index)["image"], atol=1e-2)


@pytest.mark.parametrize("name", ["../outside.npy", "/outside.npy", "inner/level.npy", "run.sh", "link.npy"])
def test_what_is_no_embedding_stays_out(tmp_path: Path, random_small: ModelChoice, name: str) -> None:
    url = (tmp_path / "shared").as_uri()
    _, key = embed(ObjectStore(url, folder=tmp_path / "one"), random_small)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 4
        if name.startswith("link"):
            member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
        tar.addfile(member, io.BytesIO(b"evil"))
    next((tmp_path / "shared").rglob("*.tar")).write_bytes(packed.getvalue())
    two = ObjectStore(url, folder=tmp_path / "two")
    assert embed(two, random_small)[0] == 3
    assert not list(tmp_path.rglob("outside.npy")) and not list(two.root.rglob("run.sh"))
    assert key.digest in {entry.digest for entry in two.entries()}
    assert embed(ObjectStore(url, folder=tmp_path / "three"), random_small)[0] == 0  # it was replaced


def test_a_url_of_no_known_kind_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be used"):
        open_store("nowhere://bucket", cache=str(tmp_path))
