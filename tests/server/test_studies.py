from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ssmsam.server.studies import StudiesFolder

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, write: Write) -> Path:
    for name in ("b.nii.gz", "a.nrrd", "c.d.nii"):
        write(tmp_path / name)
    series = tmp_path / "1.2.840.5"
    series.mkdir()
    (series / "0001.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me").write_text("nothing to see")
    (tmp_path / "table.csv").write_text("a,b")
    return tmp_path


def test_files_and_series_are_images_and_nothing_else_is(folder: Path) -> None:
    studies = StudiesFolder(folder, auto_reload=False)
    assert sorted(studies.list_images()) == ["1.2.840.5", "a", "b", "c.d"]
    for image in studies.list_images():
        assert Path(studies.get_image_uri(image)).exists()
    assert studies.get_image_uri("notes") == ""


def test_a_series_is_offered_as_a_file_to_download(folder: Path) -> None:
    studies = StudiesFolder(folder, auto_reload=False)
    assert studies.get_image_info("1.2.840.5")["name"] == "1.2.840.5.nii.gz"
    assert studies.get_image_info("1.2.840.5")["path"] == ""
    assert studies.get_image_info("b")["path"].endswith("b.nii.gz")


def test_the_list_survives_a_second_start(folder: Path) -> None:
    before = sorted(StudiesFolder(folder, auto_reload=False).list_images())
    again = StudiesFolder(folder, auto_reload=False)
    assert sorted(again.list_images()) == before


def test_labels_of_files_and_series(folder: Path, write: Write, tmp_path: Path) -> None:
    studies = StudiesFolder(folder, auto_reload=False)
    for image in ("b", "1.2.840.5", "c.d"):
        studies.save_label(image, str(write(tmp_path / "mask.nii.gz")), "reviewed", {"label_info": []})
        assert Path(studies.get_label_uri(image, "reviewed")).name == f"{image}.nii.gz"
    again = StudiesFolder(folder, auto_reload=False)
    assert again.status()["label_tags"] == {"reviewed": 3}
