from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest

from ssmsam.models import weights
from ssmsam.models import weights as manifests
from ssmsam.models.weights import CorruptWeights, MissingWeights, WeightsEntry, find_weights, manifest, weights_digest
from ssmsam_research.training.record import record

CONTENT = b"the weights" * 1000
URL = "https://example.invalid/sam_vit_b_01ec64.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, empty and away from the real one; nothing in the environment."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(weights, "cache_folder", lambda: folder)
    monkeypatch.setattr(weights, "_known_digests", {})
    monkeypatch.delenv("SSMSAM_WEIGHTS", raising=False)
    monkeypatch.delenv("SSMSAM_UNVERIFIED_WEIGHTS", raising=False)
    return folder


@pytest.fixture
def known(monkeypatch) -> WeightsEntry:
    """sam_vit_b as if its published file were CONTENT."""
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = WeightsEntry("sam_vit_b", "sam.pth", "vit_b", "Apache-2.0", None, URL, digest, len(CONTENT))
    monkeypatch.setattr(weights, "entry", lambda name: known)
    return known


def test_the_published_weights_are_described_in_full():
    for name, known in manifest().items():
        assert known.licence
        assert len(known.sha256) == 64, name
        if known.url is not None:
            assert known.url.startswith("https://")
            assert known.url.endswith(known.file)
            assert known.bytes > 3e8
    assert {name for name, known in manifest().items() if known.packaged} == {
        "small",
        "small_ssm",
        "volume_head",
        "medsam_lite_decoder",
        "medsam_lite_fewshot",
    }
    assert {name for name, known in manifest().items() if known.package} == {"medsam_lite"}


def test_the_packaged_weights_are_the_ones_of_the_manifest():
    known = manifest()["small"]
    path = manifests.PACKAGED / known.file
    if not path.exists():
        pytest.skip("the small model's weights are not in this checkout")
    assert (known.sha256, known.bytes) == (manifests.sha256_of(path), path.stat().st_size), (
        "run ssmsam train record small"
    )
    assert find_weights("small") == path


def test_recording_packaged_weights(tmp_path):
    copied = shutil.copy(manifests.MANIFEST, tmp_path / "manifest.json")
    (tmp_path / "small.safetensors").write_bytes(CONTENT)
    record("small", manifest_file=copied, packaged=tmp_path)
    written = json.loads(copied.read_text())["small"]
    assert (written["sha256"], written["bytes"]) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    with pytest.raises(ValueError, match="publisher"):
        record("sam_vit_b", manifest_file=copied, packaged=tmp_path)


def test_an_unknown_name_lists_the_valid_ones():
    with pytest.raises(
        ValueError,
        match="small, small_ssm, medsam_lite, medsam_lite_decoder, medsam_lite_fewshot, sam_vit_b, sam_vit_l",
    ):
        find_weights("sam_vit_g")


@pytest.mark.parametrize("place", ["folder", "environment", "cache"])
def test_where_a_file_is_found(place, known, tmp_path, monkeypatch, cache):
    folder = cache if place == "cache" else tmp_path / "mine"
    folder.mkdir()
    (folder / known.file).write_bytes(CONTENT)
    if place == "environment":
        monkeypatch.setenv("SSMSAM_WEIGHTS", str(folder))
    assert find_weights("sam_vit_b", folder=folder if place == "folder" else None) == folder / known.file


def test_the_folder_goes_before_the_environment(known, tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / known.file).write_bytes(CONTENT)
    monkeypatch.setenv("SSMSAM_WEIGHTS", str(tmp_path / "two"))
    assert find_weights("sam_vit_b", folder=tmp_path / "one").parent.name == "one"
    assert find_weights("sam_vit_b").parent.name == "two"


def test_a_missing_file_says_everything(known, tmp_path, monkeypatch, cache):
    monkeypatch.setenv("SSMSAM_WEIGHTS", str(tmp_path / "elsewhere"))
    with pytest.raises(MissingWeights) as error:
        find_weights("sam_vit_b", folder=tmp_path / "mine")
    for part in (
        known.file,
        str(tmp_path / "mine"),
        str(tmp_path / "elsewhere"),
        str(cache),
        URL,
        "ssmsam doctor --download sam_vit_b",
        "--conf download true",
        "SSMSAM_WEIGHTS",
    ):
        assert part in str(error.value)


def test_nothing_is_downloaded_unasked(known, monkeypatch, tmp_path):
    monkeypatch.setattr(weights.pooch, "retrieve", lambda *_, **__: pytest.fail("downloaded"))
    with pytest.raises(MissingWeights):
        find_weights("sam_vit_b", folder=tmp_path)


@pytest.mark.parametrize("content", [CONTENT[:-1], b"x" + CONTENT[1:]])
def test_another_file_is_refused_in_words(known, tmp_path, content):
    path = tmp_path / known.file
    path.write_bytes(content)
    with pytest.raises(CorruptWeights) as error:
        find_weights("sam_vit_b", folder=tmp_path)
    found = f"{len(content)} bytes" if len(content) != len(CONTENT) else hashlib.sha256(content).hexdigest()
    for part in (str(path), known.sha256, found, "Delete", "ssmsam doctor --download sam_vit_b"):
        assert part in str(error.value)


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_own_weights_are_taken_when_asked(known, tmp_path, way, monkeypatch, caplog):
    (tmp_path / known.file).write_bytes(b"fine-tuned")
    if way == "environment":
        monkeypatch.setenv("SSMSAM_UNVERIFIED_WEIGHTS", "1")
    assert find_weights("sam_vit_b", folder=tmp_path, allow_unverified=way == "argument").exists()
    assert "unverified" in caplog.text


def test_a_download_is_checked(known, tmp_path, monkeypatch):
    """From a server of this machine, so that pooch itself is at work."""
    import http.server
    import threading
    from dataclasses import replace
    from functools import partial

    served = tmp_path / "served"
    served.mkdir()
    (served / known.file).write_bytes(CONTENT)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            local = replace(known, url=f"http://127.0.0.1:{server.server_port}/{known.file}")
            monkeypatch.setattr(weights, "entry", lambda name: local)
            found = find_weights("sam_vit_b", folder=tmp_path / "good", download=True)
            assert found == tmp_path / "good" / known.file
            assert found.read_bytes() == CONTENT
            (served / known.file).write_bytes(b"another file")
            with pytest.raises(CorruptWeights, match="try again"):
                find_weights("sam_vit_b", folder=tmp_path / "bad", download=True)
            assert not (tmp_path / "bad" / known.file).exists()
            (served / known.file).unlink()
            with pytest.raises(MissingWeights, match="failed"):
                find_weights("sam_vit_b", folder=tmp_path / "none", download=True)
        finally:
            server.shutdown()
            thread.join()


def test_a_large_file_is_hashed_once(tmp_path, monkeypatch, cache):
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    assert weights_digest(path) == hashlib.sha256(CONTENT).hexdigest()
    monkeypatch.setattr(weights, "_known_digests", {})  # as in the next process
    monkeypatch.setattr(weights, "sha256_of", lambda path: pytest.fail("hashed again"))
    assert weights_digest(path) == hashlib.sha256(CONTENT).hexdigest()


def test_a_changed_file_is_hashed_again(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    weights_digest(path)
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(1, 1))
    assert weights_digest(path) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_damaged_memory_of_digests_does_no_harm(tmp_path, cache):
    cache.mkdir()
    (cache / "digests.json").write_text('{"half')
    path = tmp_path / "weights"
    path.write_bytes(CONTENT)
    assert weights_digest(path) == hashlib.sha256(CONTENT).hexdigest()
