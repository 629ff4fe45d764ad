"""A head's file: the same masks after loading, and clear words about files that will not do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import PocketDecoder, PocketEncoder, draw_volume, quick, state_digest, two_labels
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ssmsam.encoders.embedder import Embedder
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.method import adapt, segment
from ssmsam.fewshot.support import digest
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint, read_card


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture(scope="module")
def decoder() -> PocketDecoder:
    return PocketDecoder()


@pytest.fixture(scope="module")
def head(embedder: Embedder, decoder: PocketDecoder) -> Head:
    return adapt(two_labels(embedder), embedder, decoder, config=quick(folds=2))


def load(path: Path, decoder: PocketDecoder, sha256: str = "pocket") -> Head:
    return Head.load(path, decoder, weights_sha256=sha256)


def rewritten(path: Path, *, drop: str = "", card: dict | None = None) -> None:
    """The same file without some tensors, or with another card."""
    with safe_open(str(path), framework="pt") as file:
        old = json.loads(file.metadata()["card"])
    tensors = {name: tensor for name, tensor in load_file(path).items() if not drop or not name.startswith(drop)}
    save_file(tensors, path, {"card": json.dumps(old | (card or {}))})


def test_a_loaded_head_gives_the_same_bits(
    head: Head, embedder: Embedder, decoder: PocketDecoder, tmp_path: Path
) -> None:
    before = state_digest(decoder)
    loaded = load(head.save(tmp_path / "deep" / "head.safetensors"), decoder)
    assert state_digest(loaded.decoder) == state_digest(head.decoder) != before
    assert state_digest(decoder) == before, "the unadapted decoder stays as it is"
    assert loaded.labels == head.labels == ("organ", "other")
    for volume in (draw_volume(), draw_volume(seed=3)):
        query = embedder.open(volume)
        one, other = segment(query, head), segment(query, loaded)
        assert np.array_equal(one.mask, other.mask)
        assert np.array_equal(one.logits, other.logits)
        assert np.array_equal(one.presence, other.presence)
    assert load(loaded.save(tmp_path / "again.safetensors"), decoder).card == head.card


def test_the_card_tells_the_story(head: Head, embedder: Embedder, tmp_path: Path) -> None:
    path = head.save(tmp_path / "head.safetensors")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card == dict(head.card)
    assert {name: read_card(path)[name] for name in card} == card
    assert card["labels"] == ["organ", "other"]
    assert card["support_digest"] == digest(two_labels(embedder)) == head.support_digest
    slices = [{"image": "planted", "axis": 0, "slice": index} for index in (2, 4, 6)]
    assert card["support"] == {"organ": slices, "other": slices}
    assert (card["encoder"], card["weights_sha256"]) == ("pocket", "pocket")
    assert card["settings"]["adaptation"]["steps"] == 3
    assert card["steps"] == (3 if card["adapted"] else 0)
    assert set(card["dice_estimate"]["organ"]) == {"before", "after", "slices", "share"}
    assert card["created"].endswith("+00:00")
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == [], "nothing half-written is left"


def test_other_weights_are_refused(head: Head, decoder: PocketDecoder, tmp_path: Path) -> None:
    path = head.save(tmp_path / "head.safetensors")
    with pytest.raises(UnusableCheckpoint, match=r"made with other weights \(pocket, sha256 pocket\).*adapt again"):
        load(path, decoder, "another")


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_a_damaged_file_is_refused(head: Head, decoder: PocketDecoder, tmp_path: Path, keep: int) -> None:
    path = head.save(tmp_path / "head.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UnusableCheckpoint, match=r"head\.safetensors is not a head, or is damaged: export it again"):
        load(path, decoder)


@pytest.mark.parametrize(
    "missing", ["decoder.hyper", "bank0.tokens", "bank1.positions", "bank1.looks", "bank0.", "bank1.valid"]
)
def test_a_head_that_lacks_tensors_is_refused(head: Head, decoder: PocketDecoder, tmp_path: Path, missing: str) -> None:
    path = head.save(tmp_path / "head.safetensors")
    rewritten(path, drop=missing)
    with pytest.raises(UnusableCheckpoint, match="lacks parts of a head: export it again"):
        load(path, decoder)


def test_other_files_are_refused(head: Head, decoder: PocketDecoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no head none\.safetensors"):
        load(tmp_path / "none.safetensors", decoder)
    plain = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(3)}, plain)
    with pytest.raises(UnusableCheckpoint, match="not a head"):
        read_card(plain)
    save_file({"a": torch.zeros(3)}, plain, {"card": "[1, 2]"})
    with pytest.raises(UnusableCheckpoint, match="no card"):
        read_card(plain)
    newer = head.save(tmp_path / "newer.safetensors")
    rewritten(newer, card={"format": 99})
    with pytest.raises(UnusableCheckpoint, match="format 99"):
        load(newer, decoder)
