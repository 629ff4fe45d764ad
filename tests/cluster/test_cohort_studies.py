"""What a cohort is made of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ssmsam.cluster import studies_of
from ssmsam.cluster.studies import archive, files_of

SAMPLES = Path(__file__).parents[2] / "sample-datasets"


def test_a_folder_has_its_files_and_its_folders_of_dicom(files: Path) -> None:
    some = next((SAMPLES / "abdomen_dicom").rglob("*.dcm")).parent
    shutil.copytree(some, files / "series")
    (files / "notes.txt").write_text("no image")
    found = studies_of(files)
    assert [study.name for study in found] == ["series", *(f"study{number}" for number in range(8))]
    with files_of(found[0]) as path:
        assert path == files / "series"


def test_a_list_names_paths_relative_to_itself(files: Path) -> None:
    listed = files.parent / "cohort.txt"
    listed.write_text(f"# two of them\nfiles/study1.nii.gz\n\n{files / 'study0.nii.gz'}  # by its full name\n")
    assert [study.name for study in studies_of(listed)] == ["study1", "study0"]
    listed.write_text("files/study1.nii.gz\nfiles/study99.nii.gz\n")
    with pytest.raises(ValueError, match=r"line 2 of cohort.txt: .*study99.nii.gz: there is no such"):
        studies_of(listed)


def test_equal_names_are_told_apart(files: Path) -> None:
    shutil.copytree(files, files.parent / "others")
    listed = files.parent / "cohort.txt"
    listed.write_text("files/study1.nii.gz\nothers/study1.nii.gz\nfiles/study2.nii.gz\n")
    names = [study.name for study in studies_of(listed)]
    assert len(set(names)) == 3 and names[2] == "study2"
    assert [study.name for study in studies_of(listed)] == names


def test_another_file_under_the_same_name_is_another_version(files: Path) -> None:
    before = {study.name: study.version for study in studies_of(files)}
    (files / "study3.nii.gz").write_bytes(b"changed")
    after = {study.name: study.version for study in studies_of(files)}
    assert {name for name in before if before[name] != after[name]} == {"study3"}


def test_a_folder_that_a_worker_does_not_see_is_named(files: Path) -> None:
    study = studies_of(files)[0]
    shutil.rmtree(files)
    with pytest.raises(FileNotFoundError, match="mounted at the same path"), files_of(study):
        pass


def test_what_holds_nothing_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no volume: expected .nii.gz"):
        studies_of(tmp_path)
    with pytest.raises(ValueError, match="there is no such folder, list or file"):
        studies_of(tmp_path / "nowhere")


def test_an_archive_is_reached_as_the_server_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONAI_LABEL_WADO_PREFIX", "wado-rs")
    monkeypatch.setenv("MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", "75")
    monkeypatch.setenv("SSMSAM_DICOMWEB_TOKEN", "secret")
    access = archive("http://archive.example/dicom-web/").access
    assert (access.wado, access.qido, access.read_s) == ("wado-rs", None, 75.0)
    assert access.token is not None and access.token() == "secret"
