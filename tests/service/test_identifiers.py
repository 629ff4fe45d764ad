from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.service.errors import InvalidName
from ssmsam.service.identifiers import is_session_id, safe_name, volume_suffix


@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("./\\:~ab0")), max_size=40))
def test_no_accepted_name_leaves_its_folder(name: str) -> None:
    try:
        safe_name(name, what="an image id")
    except InvalidName:
        return
    assert os.path.normpath(os.path.join("/studies", name)) == f"/studies/{name}"
    assert "\\" not in name
    assert "\x00" not in name
    assert not name.startswith(".")


@pytest.mark.parametrize("name", ["case07", "CT Chest (1)", "1.2.840.113619.2", "Müller_01", "a-b+c@d"])
def test_ordinary_names_are_accepted(name: str) -> None:
    assert safe_name(name, what="an image id") == name


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", ".hidden", "a..b", "a\n", "a\x00", "x" * 300, "a."])
def test_others_are_not(name: str) -> None:
    with pytest.raises(InvalidName, match="an image id"):
        safe_name(name, what="an image id")


@pytest.mark.parametrize(
    ("filename", "suffix"),
    [
        ("a.nii.gz", ".nii.gz"), ("a.b.NII", ".nii"), ("C:\\Temp\\x.nrrd", ".nrrd"), ("/tmp/x.nii.gz", ".nii.gz"),
        (None, ".nii.gz"),
    ],
)  # fmt: skip
def test_suffixes(filename: str | None, suffix: str) -> None:
    assert volume_suffix(filename) == suffix


@pytest.mark.parametrize("filename", ["a.json", "nii.gz/../../x", "a", "a.nii.gz.exe", ""])
def test_other_kinds_of_files(filename: str) -> None:
    if filename == "":
        assert volume_suffix(filename) == ".nii.gz"  # no name at all
        return
    with pytest.raises(InvalidName, match="nrrd"):
        volume_suffix(filename)


def test_session_ids() -> None:
    assert is_session_id("0f0e0d0c-0b0a-0908-0706-050403020100")
    for name in ("", "..", "0f0e0d0c-0b0a-0908-0706-050403020100/x", "x" * 36, "0f0e0d0c-0b0a-0908-0706-05040302010 "):
        assert not is_session_id(name)
