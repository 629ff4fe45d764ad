from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmsam.embeddings.embedder import Embedder
from ssmsam.reading import read_volume
from ssmsam.server.datastore.studies import StudiesFolder
from ssmsam.server.tasks.strategies import First, by_chance, note_offer, offered
from ssmsam.service.images import Images
from ssmsam.volume.writing import write_volume


@pytest.fixture
def studies(tmp_path: Path, write: Callable[..., Path]) -> StudiesFolder:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.nii.gz")
    return StudiesFolder(tmp_path, auto_reload=False)


@pytest.fixture
def first(studies: StudiesFolder, embedder: Embedder) -> First:
    return First(Images(files=studies.files, embedder=embedder, memory_bytes=10**9))


def finish(studies: StudiesFolder, image: str) -> None:
    volume = read_volume(studies.get_image_uri(image))
    mask = Path(studies.get_image_uri(image)).parent / "mask.nii"
    write_volume(volume.with_array((volume.array > 100).astype("uint8")), mask)
    studies.save_label(image, str(mask), "final", {"label_info": [{"name": "liver"}]})
    mask.unlink()


def test_first_goes_by_name(first: First, studies: StudiesFolder) -> None:
    assert first({"strategy": "first"}, studies) == {"id": "a"}
    finish(studies, "a")
    assert first({"strategy": "first"}, studies) == {"id": "b"}


def test_chance_rather_offers_what_was_not_offered_lately(studies: StudiesFolder) -> None:
    request, now = {"strategy": "random"}, int(time.time())
    images = ["a", "b", "c"]
    for image in ("a", "b"):
        studies.update_image_info(image, {"strategy": {"random": {"ts": now}}})
    assert {by_chance(images, studies, request)[0] for _ in range(50)} == {"c"}
    studies.update_image_info("c", {"strategy": "nonsense from a client"})
    assert by_chance(images, studies, request)[0] == "c"


def test_chance_when_all_were_offered_just_now(studies: StudiesFolder) -> None:
    for image in ("a", "b", "c"):
        note_offer(studies, image, "random", client="reader")
    request = {"strategy": "random"}
    assert offered(studies, "a", request) == pytest.approx(time.time(), abs=60)
    assert {by_chance(["a", "b", "c"], studies, request)[0] for _ in range(60)} == {"a", "b", "c"}


def test_offers_of_other_strategies_are_kept(studies: StudiesFolder) -> None:
    note_offer(studies, "a", "random", client="reader")
    note_offer(studies, "a", "next_slices", client="other")
    assert set(studies.get_image_info("a")["strategy"]) == {"random", "next_slices"}


def test_nothing_left(first: First, studies: StudiesFolder) -> None:
    for image in ("a", "b", "c"):
        finish(studies, image)
    assert first({"strategy": "any"}, studies) is None


def test_first_passes_over_what_cannot_be_read(first: First, studies: StudiesFolder, tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").write_bytes(b"not an image")
    assert first({"strategy": "first"}, studies) == {"id": "b"}
    for name in ("b", "c"):
        (tmp_path / f"{name}.nii.gz").write_bytes(b"not an image")
    assert "3 images" in first({"strategy": "first"}, studies)["message"]
