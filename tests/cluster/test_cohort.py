"""A run over a cohort: nothing is lost, nothing is done twice, one failure stops nobody."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from planted_work import Away, CountBytes, noted

from ssmsam.cluster import Study, cohort, run_cohort, studies_of
from ssmsam.cluster.cohort import carry_out
from ssmsam.progress import Cancelled


def test_one_failure_is_said_and_the_others_go_on(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    heard = []
    done = run_cohort(studies, CountBytes(str(notes)), out=tmp_path / "out", progress=lambda *step: heard.append(step))
    assert [one.study for one in done.outcomes] == [study.name for study in studies]
    assert {one.study: one.reason for one in done.failed} == {"study7": "study7 is empty: write it again"}
    assert [step for step in heard if step[0] == "studies"] == [("studies", n, 8) for n in range(9)]
    with (tmp_path / "out" / "studies.csv").open() as file:
        rows = {row["study"]: row for row in csv.DictReader(file)}
    assert rows["study2"]["bytes"] == "35" and rows["study7"]["state"] == "failed"
    assert rows["study7"]["reason"] == "study7 is empty: write it again"


def test_the_parquet_table_says_the_same(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run_cohort(studies, CountBytes(str(notes)), out=tmp_path / "out")
    table = parquet.read_table(tmp_path / "out" / "studies.parquet").to_pydict()
    assert table["study"] == [study.name for study in studies]
    assert table["bytes"] == [49, 42, 35, 28, 21, 14, 7, None]


def test_a_run_that_was_stopped_goes_on(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        run_cohort(studies, CountBytes(str(notes)), out=tmp_path / "out", progress=stop)
    assert len(noted(notes, "ended")) == 3
    assert len(run_cohort(studies, CountBytes(str(notes)), out=tmp_path / "out").failed) == 1
    assert set(noted(notes, "ended").values()) == {1}
    run_cohort(studies, CountBytes(str(notes)), out=tmp_path / "out")
    assert noted(notes, "begun") == {f"study{n}": 1 for n in range(7)} | {"study7": 2}  # what failed is tried again


def test_a_line_that_was_cut_off_is_done_again(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    run_cohort(studies[:3], CountBytes(str(notes)), out=tmp_path)
    log = tmp_path / "outcomes.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert not run_cohort(studies[:3], CountBytes(str(notes)), out=tmp_path).failed
    assert sorted(noted(notes, "ended").values()) == [1, 1, 2]


def test_what_changed_is_done_again(files: Path, studies: list[Study], notes: Path, tmp_path: Path) -> None:
    work = CountBytes(str(notes))
    run_cohort(studies, work, out=tmp_path / "out")
    (files / "study1.nii.gz").write_bytes(b"longer than before, or at least other")
    done = run_cohort(studies_of(files), work, out=tmp_path / "out")
    assert noted(notes, "ended")["study1"] == 2 and noted(notes, "ended")["study2"] == 1
    assert done.outcomes[1].details["bytes"] == 37
    run_cohort(studies_of(files), replace(work, version=2), out=tmp_path / "out")
    assert noted(notes, "ended")["study2"] == 2


def test_an_archive_that_comes_back_is_waited_for(
    studies: list[Study], notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cohort, "WAIT_S", 0.01)
    assert run_cohort(studies[:1], Away(str(notes))).failed[0].reason == "the archive does not answer"
    assert noted(notes, "asked") == {"study0": 3}
    monkeypatch.setattr(cohort.time, "sleep", lambda seconds: (notes / "back").touch())
    assert not run_cohort(studies[:1], Away(str(notes))).failed
    assert noted(notes, "asked") == {"study0": 5}


def test_two_runs_do_not_share_a_folder(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    def second(phase: str, done: int, total: int) -> None:
        run_cohort(studies, CountBytes(str(notes)), out=tmp_path)

    with pytest.raises(ValueError, match="another run works in"):
        run_cohort(studies, CountBytes(str(notes)), out=tmp_path, progress=second)


def test_a_worker_of_another_version_says_so(studies: list[Study], notes: Path) -> None:
    outcome = carry_out(studies[0], work=CountBytes(str(notes)), version="0.0.1")
    assert outcome.state == "failed" and "the run was begun by 0.0.1: install the same" in outcome.reason
    assert not noted(notes, "begun")


def test_outcomes_are_plain_json(studies: list[Study], notes: Path, tmp_path: Path) -> None:
    run_cohort(studies, CountBytes(str(notes)), out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert {line["content"]["study"] for line in lines} == {study.name for study in studies}
