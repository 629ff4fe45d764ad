from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmsam.reading import read_volume
from ssmsam.server.datastore import folder as studies_module
from ssmsam.server.datastore.studies import StudiesFolder
from ssmsam.service.errors import NotNow

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


def listed(folder: Path) -> list[str]:
    return sorted(StudiesFolder(folder, auto_reload=False).list_images())


SLICE = b"\0" * 128 + b"DICM"


def test_hidden_files_are_no_images(tmp_path: Path, write: Write) -> None:
    for name in ("case.nii.gz", ".backup.nii.gz"):
        write(tmp_path / name)
    (tmp_path / "._case.nii.gz").write_bytes(b"\0\5\x16\7" * 40)
    (tmp_path / "labels" / "final").mkdir(parents=True)
    (tmp_path / "labels" / "final" / "._case.nii.gz").write_bytes(b"\0\5\x16\7" * 40)
    studies = StudiesFolder(tmp_path, auto_reload=False)
    assert studies.list_images() == ["case"]
    assert studies.get_labeled_images() == []


@pytest.mark.parametrize("junk", ["AAA.csv", "zzz.txt", "Thumbs.db", ".DS_Store", "empty"])
def test_junk_beside_the_slices_hides_no_series(tmp_path: Path, junk: str) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / junk).write_bytes(b"" if junk == "empty" else b"a,b\n" * 99)
    (tmp_path / "series" / "im1").write_bytes(SLICE)
    assert listed(tmp_path) == ["series"]


@pytest.mark.parametrize("start", [b"\x08\0\5\0\x0a\0\0\0", b"\x08\0\5\0CS\x0a\0", b"\x02\0\0\0UL\4\0"])
def test_series_without_a_preamble(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "im1").write_bytes(start + b"ISO_IR 100" + bytes(200))
    assert listed(tmp_path) == ["old"]


def test_nested_exports_are_found_and_stray_files_are_named(
    tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    deep = tmp_path / "patient" / "study" / "series"
    deep.mkdir(parents=True)
    (deep / "im1").write_bytes(SLICE)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "scan.nii.gz")
    assert listed(tmp_path) == ["patient"]
    assert "other holds files such as scan.nii.gz" in caplog.text


def test_a_series_that_comes_while_the_server_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "im1").write_bytes(b"")
    studies = StudiesFolder(tmp_path, auto_reload=False)
    assert studies.list_images() == []
    (tmp_path / "series" / "im1").write_bytes(SLICE)  # the folder's own time does not change
    studies.refresh()
    assert studies.list_images() == ["series"]


def test_a_folder_that_did_not_change_is_not_searched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing")
    for folder in (tmp_path, tmp_path / "notes"):
        os.utime(folder, (1, 1))
    studies = StudiesFolder(tmp_path, auto_reload=False)
    opened: list[Path] = []
    monkeypatch.setattr(studies_module, "looks_like_dicom", lambda path: opened.append(path) or False)
    studies.refresh()
    assert opened == []
    (tmp_path / "notes" / "b.txt").write_text("nothing")
    studies.refresh()
    assert [path.name for path in opened[:2]] == ["a.txt", "b.txt"]


def test_upper_case_suffixes(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "small.nii.gz").rename(tmp_path / "CASE.NII.GZ")
    write(tmp_path / "small.nrrd").rename(tmp_path / "Case2.NRRD")
    studies = StudiesFolder(tmp_path, auto_reload=False)
    assert sorted(studies.list_images()) == ["CASE", "Case2"]
    assert read_volume(studies.get_image_uri("CASE")).shape == read_volume(studies.get_image_uri("Case2")).shape


def test_files_that_differ_in_their_suffix_only(tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("case.nii", "case.nii.gz", "case.nrrd"):
        write(tmp_path / name)
    for _ in range(2):  # a second start changes nothing
        studies = StudiesFolder(tmp_path, auto_reload=False)
        assert sorted(studies.list_images()) == ["case", "case.nii.gz", "case.nrrd"]
    assert {Path(studies.get_image_uri(image)).name for image in studies.list_images()} == {
        "case.nii", "case.nii.gz", "case.nrrd",
    }  # fmt: skip
    assert "another image is called case" in caplog.text
    for image in ("case", "case.nii.gz"):
        studies.save_label(image, str(write(tmp_path / "m" / "mask.nii.gz")), "reviewed", {"label_info": []})
    (tmp_path / "case.nii").unlink()
    studies = StudiesFolder(tmp_path, auto_reload=False)
    assert "case.nii.gz" in studies.list_images()
    assert Path(studies.get_label_uri("case.nii.gz", "reviewed")).name == "case.nii.gz.nii.gz"


def test_a_folder_and_a_file_of_one_name(tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "case.nii.gz")
    assert listed(tmp_path) == ["case"]
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "im1").write_bytes(SLICE)
    assert listed(tmp_path) == ["case"]
    assert "the folder case is not listed" in caplog.text


@pytest.mark.timeout(20)
def test_pipes_devices_and_links_that_lead_back_are_no_images(tmp_path: Path, write: Write) -> None:
    write(tmp_path / "a.nii.gz")
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for folder in (tmp_path, tmp_path / "series", tmp_path / "pipes"):
        folder.mkdir(exist_ok=True)
        os.mkfifo(folder / "0.dcm")
        os.mkfifo(folder / "0.nii.gz")
    (tmp_path / "zero.nii.gz").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "folder.nii.gz").mkdir()
    assert listed(tmp_path) == ["a", "series"]


def test_a_link_to_a_file_without_a_suffix_is_read_by_its_own_name(tmp_path: Path, write: Write) -> None:
    """As programs leave them that keep files by their contents."""
    write(tmp_path / "a.nii.gz")
    (tmp_path / "store").mkdir()
    (tmp_path / "a.nii.gz").rename(tmp_path / "store" / "0f3a")
    (tmp_path / "a.nii.gz").symlink_to("store/0f3a")
    studies = StudiesFolder(tmp_path, auto_reload=False)
    assert read_volume(studies.get_image_uri("a")).shape


def test_an_upload_never_replaces_another_image(folder: Path, write: Write, tmp_path: Path) -> None:
    studies = StudiesFolder(folder, auto_reload=False)
    before = (folder / "b.nii.gz").read_bytes()
    other = write(tmp_path / "upload" / "x.nii.gz", seed=7)
    for name in ("b", "a", "1.2.840.5"):  # of another kind, too
        with pytest.raises(NotNow, match="another name"):
            studies.add_image(name, str(other), {})
    assert (folder / "b.nii.gz").read_bytes() == before
    assert studies.add_image("b", str(folder / "b.nii.gz"), {}) == "b"  # the very same, again
    assert studies.add_image("new", str(other), {}) == "new"
