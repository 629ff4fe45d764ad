from __future__ import annotations

import logging

import pytest

from ssmsam.server.privacy import keep_patients_out_of_logs


def test_queries_of_the_proxy_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
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
