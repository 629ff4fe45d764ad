import json

import pytest

from ssmsam.report import RunLog, write_result


def test_a_result_replaces_the_older_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new" / "result.json"
    write_result(path, {"mean_dice": 1.0})
    write_result(path, {"mean_dice": 2.0})
    assert json.loads(path.read_text()) == {"mean_dice": 2.0}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_a_result_that_cannot_be_written_leaves_the_older_one(tmp_path):
    path = write_result(tmp_path / "result.json", {"mean_dice": 1.0})
    with pytest.raises(TypeError):
        write_result(path, {"mean_dice": object()})
    assert json.loads(path.read_text()) == {"mean_dice": 1.0}


def test_finished_pieces_are_found_again(tmp_path):
    path = tmp_path / "run.jsonl"
    RunLog(path, run="one").append("case a", [1, 2])
    RunLog(path, run="one").append("case b", [3])
    assert RunLog(path, run="one").read() == {"case a": [1, 2], "case b": [3]}


def test_pieces_of_another_run_are_not_taken(tmp_path):
    path = tmp_path / "run.jsonl"
    RunLog(path, run="other weights").append("case a", [1])
    assert RunLog(path, run="one").read() == {}


def test_a_line_that_was_cut_off_is_done_again_and_spoils_no_other(tmp_path):
    path = tmp_path / "run.jsonl"
    log = RunLog(path, run="one")
    log.append("case a", [1])
    log.append("case b", [2])
    path.write_bytes(path.read_bytes()[:-9])
    assert log.read() == {"case a": [1]}
    log.append("case c", [3])
    assert log.read() == {"case a": [1], "case c": [3]}
