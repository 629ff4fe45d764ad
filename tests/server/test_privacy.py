from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ssmsam.server import privacy
from ssmsam.server.datastore.studies import StudiesFolder
from ssmsam.server.privacy import (
    keep_names_out_of_logs,
    keep_patients_out_of_logs,
    without_names,
    without_uids,
    without_uids_in,
)


@pytest.fixture
def without_a_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No name that another test's server hid, and none is left."""
    monkeypatch.setattr(privacy, "_names", {})
    monkeypatch.setattr(privacy, "_hidden", set())
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def test_queries_are_left_out(caplog: pytest.LogCaptureFixture, without_a_trace: None) -> None:
    keep_patients_out_of_logs()
    keep_patients_out_of_logs()
    access = logging.getLogger("uvicorn.access")
    assert len(access.filters) == 1
    line = '%s - "%s %s HTTP/%s" %d'
    with caplog.at_level(logging.INFO, logger="uvicorn.access"):
        access.info(line, "127.0.0.1:1", "GET", "/proxy/dicom/qido/studies?PatientID=4711", "1.1", 200)
        access.info(line, "127.0.0.1:1", "PUT", "/datastore/label?image=Quill%5EZephyrine", "1.1", 200)
    assert "4711" not in caplog.text
    assert "Quill" not in caplog.text
    assert "GET /proxy/dicom/qido/studies HTTP" in caplog.text
    assert "PUT /datastore/label HTTP" in caplog.text


UID = "1.2.840.113619.2.55.3.604688119"
UUID = "2.25.174947970179720917558196421604330257622"


@pytest.mark.parametrize("uid", [UID, UUID])
def test_uids_are_told_by_another_name(uid: str) -> None:
    shown = without_uids(f"series {uid}, image={uid}.nii.gz; /infer/x?image={uid}&a=1")
    assert uid not in shown
    assert len(set(re.findall(r"uid-[0-9a-f]{10}", shown))) == 1
    assert without_uids_in({uid: [uid, 1, None, True, ("a", uid)]}) == {
        without_uids(uid): [without_uids(uid), 1, None, True, ["a", without_uids(uid)]]
    }


@pytest.mark.parametrize("text", ["127.0.0.1:8000", "MONAI Label 0.8.5", "took 1.25 s", "2.0", "[0.5.1]", "a/1.nii"])
def test_other_numbers_stay(text: str) -> None:
    assert without_uids(text) == text


def test_no_log_line_holds_a_uid(caplog: pytest.LogCaptureFixture, without_a_trace: None) -> None:
    keep_patients_out_of_logs()
    keep_patients_out_of_logs()
    log = logging.getLogger("any.library")
    with caplog.at_level(logging.INFO):
        log.info("series %s has %d slices, %s", UID, 12, Path("/data") / UID / "0.dcm")
        log.info("series %(uid)s", {"uid": UID})
        log.info(f"series {UID}")  # noqa: G004
        try:
            raise ValueError(f"no such series: {UID}")
        except ValueError as error:
            log.exception("it failed: %s", error)
    text = caplog.text
    assert UID not in text
    assert "has 12 slices" in text
    assert "ValueError: no such series: uid-" in text
    assert len(set(re.findall(r"uid-[0-9a-f]{10}", text))) == 1


NAMES = ["Quill^Zephyrine", "Quill^Zephyrine 2024-01", "(Müller, Jörg)", "ct_01", "471199", "Doe-John.v2"]


def test_no_log_line_holds_the_name_of_an_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Callable[..., Path], without_a_trace: None
) -> None:
    """Whoever writes the line, and however the name stands in it."""
    keep_patients_out_of_logs()
    for name in [*NAMES, "7"]:
        write(tmp_path / f"{name}.nii.gz")
    studies = StudiesFolder(tmp_path, auto_reload=False)
    log = logging.getLogger("any.library")
    for name in NAMES:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            log.info("image %s: 12 slices, of 7", name)
            log.info("%r, file=%s, (%s)", name, studies.get_image_uri(name), name)
            log.info(f"{name} again")  # noqa: G004
            try:
                raise ValueError(f"{tmp_path / name}.nii.gz is not a volume")
            except ValueError:
                log.exception("it failed")
        assert not [part for part in re.findall(r"[^\W_]{2,}", name) if part in caplog.text and part != "01"]
        assert "12 slices, of 7" in caplog.text
        assert caplog.text.count(without_names(name)) >= 4, "what belongs together can be seen"


def test_what_only_begins_like_a_name_stays(without_a_trace: None) -> None:
    keep_names_out_of_logs(["Anna", "Anna Lee"])
    assert without_names("Annabel, Joanna, Ann, banana") == "Annabel, Joanna, Ann, banana"
    assert without_names("Anna Leeds") == without_names("Anna") + " Leeds"
    assert without_names("Anna Lee") != without_names("Anna") + " Lee"
