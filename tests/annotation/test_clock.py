"""Clocks are set back: what was done later does not look earlier."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ssmsam.annotation import annotations as truth
from ssmsam.annotation.service import AnnotationService
from ssmsam.annotation.store import image_folder

DAY = 86_400.0


@pytest.fixture(autouse=True)
def clock_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "_latest", [datetime.now(UTC) - timedelta(days=3650)])


def test_times_are_in_order_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for jump in (0.0, -DAY, 10 * DAY, -400 * DAY, 0.0):
        began = time.monotonic()
        monkeypatch.setattr(time, "time", lambda at=began + 1.7e9 + jump: at)
        told += [truth.now(), truth.now()]
    assert told == sorted(set(told))


@pytest.mark.parametrize("ahead", [DAY, 3650 * DAY])
def test_a_new_start_goes_on_after_what_was_written(tmp_path: Path, ahead: float) -> None:
    """The clock was set back while the server was not running: what it shows now still counts as shown since."""
    service = AnnotationService(tmp_path, ("liver",))
    service.opened("a", client="reader")
    future = time.time() + ahead
    os.utime(image_folder(tmp_path, "a") / "work.json", (future, future))
    again = AnnotationService(tmp_path, ("liver",))
    again.go_on()
    again.opened("a", client="reader")
    assert datetime.fromisoformat(again.log.opened("a", "reader")).timestamp() >= future - 1e-3


def test_years_that_are_none_are_passed_over() -> None:
    for seconds in (1e20, float("inf"), float("nan")):
        truth.not_before(seconds)
    assert abs(datetime.fromisoformat(truth.now()).timestamp() - time.time()) < 60
