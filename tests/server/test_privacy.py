from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmsam.server.privacy import keep_patients_out_of_logs, without_uids, without_uids_in


@pytest.fixture
def without_a_trace() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


def test_queries_of_the_proxy_are_left_out(caplog: pytest.LogCaptureFixture, without_a_trace: None) -> None:
    keep_patients_out_of_logs()
    keep_patients_out_of_logs()
    access = logging.getLogger("uvicorn.access")
    assert len(access.filters) == 1
    line = '%s - "%s %s HTTP/%s" %d'
    with caplog.at_level(logging.INFO, logger="uvicorn.access"):
        access.info(line, "127.0.0.1:1", "GET", "/proxy/dicom/qido/studies?PatientID=4711", "1.1", 200)
        access.info(line, "127.0.0.1:1", "GET", "/datastore/?output=all", "1.1", 200)
    assert "4711" not in caplog.text
    assert "GET /proxy/dicom/qido/studies HTTP" in caplog.text
    assert "/datastore/?output=all" in caplog.text


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
