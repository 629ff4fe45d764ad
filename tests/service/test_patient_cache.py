"""What a purge lists, what it removes, and what it never touches."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ssmsam.paths import CacheFolders
from ssmsam.service.patient_cache import cached, purge


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheFolders:
    """A cache of every kind, and work beside each."""
    for name in (
        "store/ab/abcd/level0.npy", "store/ab/abcd/meta.json", "store/catalogue/one.json",
        "heads/0123/support/key.safetensors", "heads/0123/ssm_sam/support/key.safetensors",
        "heads/0123/new.safetensors", "heads/0123/new.json", "heads/0123/registry.json", "support/key.safetensors",
        "dicom/0123/images/1.2.3/0.dcm", "dicom/0123/annotations/1.2.3/liver.npz", "dicom/0123/labels/final/1.2.3.nrrd",
        "sessions/abc/image.nii.gz", "tmp/ssmsam-old/mask.nrrd", "tmp/ssmsam-now/mask.nrrd", "tmp/others/file",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(tmp_path / "tmp" / "ssmsam-old", (long_ago, long_ago))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    return CacheFolders(
        store=tmp_path / "store",
        checkpoints=(tmp_path / "heads",),
        support=(tmp_path / "support",),
        dicom=tmp_path / "dicom",
        sessions=tmp_path / "sessions",
    )


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_caches_are_listed_and_removed_and_work_stays(folders: CacheFolders, tmp_path: Path) -> None:
    before = files(tmp_path)
    counts = {place.name: place.as_json()["files"] for place in cached(folders)}
    assert counts == {"embeddings": 3, "support": 3, "series": 1, "sessions": 1, "temporary": 1}
    assert files(tmp_path) == before, "listing removes nothing"
    told = {one["name"]: one["files"] for one in purge(cached(folders))}
    assert told == counts
    assert files(tmp_path) == {
        "heads/0123/new.safetensors", "heads/0123/new.json", "heads/0123/registry.json",
        "dicom/0123/annotations/1.2.3/liver.npz", "dicom/0123/labels/final/1.2.3.nrrd",
        "tmp/ssmsam-now/mask.nrrd", "tmp/others/file",
    }  # fmt: skip
    assert all(place.as_json()["bytes"] == 0 for place in cached(folders))


def test_missing_folders_hold_nothing(tmp_path: Path) -> None:
    none = tmp_path / "none"
    folders = CacheFolders(store=none, checkpoints=(none,), dicom=none, sessions=none)
    assert [place.name for place in cached(folders) if place.as_json()["files"] and place.name != "temporary"] == []


def test_links_are_removed_and_not_what_they_lead_to(folders: CacheFolders, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "label.nrrd").write_bytes(b"work")
    (folders.sessions / "link").symlink_to(tmp_path / "work")
    purge(cached(folders))
    assert (tmp_path / "work" / "label.nrrd").exists()
    assert not (folders.sessions / "link").is_symlink()
