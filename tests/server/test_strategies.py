from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmsam.server.strategies import First, Random
from ssmsam.server.studies import StudiesFolder


@pytest.fixture
def studies(tmp_path: Path, write: Callable[..., Path]) -> StudiesFolder:
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.nii.gz")
    return StudiesFolder(tmp_path, auto_reload=False)


def finish(studies: StudiesFolder, image: str) -> None:
    studies.save_label(image, studies.get_image_uri(image), "final", {})


def test_first_goes_by_name(studies: StudiesFolder) -> None:
    assert First()({"strategy": "first"}, studies) == {"id": "a"}
    finish(studies, "a")
    assert First()({"strategy": "first"}, studies) == {"id": "b"}


def test_random_rather_offers_what_was_not_offered_lately(studies: StudiesFolder) -> None:
    now = int(time.time())
    for image in ("a", "b"):
        studies.update_image_info(image, {"strategy": {"random": {"ts": now}}})
    offered = [Random()({"strategy": "random"}, studies)["id"] for _ in range(50)]  # type: ignore[index]
    assert set(offered) == {"c"}
    studies.update_image_info("c", {"strategy": "nonsense from a client"})
    assert Random()({"strategy": "random"}, studies) == {"id": "c"}


def test_random_when_all_were_offered_just_now(studies: StudiesFolder) -> None:
    for image in ("a", "b", "c"):
        studies.update_image_info(image, {"strategy": {"random": {"ts": int(time.time())}}})
    assert {Random()({"strategy": "random"}, studies)["id"] for _ in range(60)} == {"a", "b", "c"}  # type: ignore[index]


@pytest.mark.parametrize("strategy", [First(), Random()])
def test_nothing_left(studies: StudiesFolder, strategy: First | Random) -> None:
    for image in ("a", "b", "c"):
        finish(studies, image)
    assert strategy({"strategy": "any"}, studies) is None
