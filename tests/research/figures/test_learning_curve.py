"""The log of a training that was stopped and resumed reads as one training."""

import json

import numpy as np
import pytest

from ssmsam_research.figures.curves import draw_learning_curve, read_log


def write(path, *rows):
    path.write_text("".join(json.dumps({"step": s, "seconds": t, "loss_by_round": loss}) + "\n" for s, t, loss in rows))


def test_steps_done_again_after_a_resume_count_once(tmp_path):
    log = tmp_path / "run.jsonl"
    write(
        log, (50, 60, [2, 1]), (100, 120, [1.5, 0.9]), (150, 180, [9, 9]), (110, 130, [1.4, 0.8]), (160, 190, [1, 0.5])
    )
    seconds, losses = read_log(log)
    assert seconds.tolist() == [60, 120, 130, 190]
    assert losses["round 1"].tolist() == [2, 1.5, 1.4, 1]


def test_a_picture_is_drawn_and_an_empty_log_is_refused(tmp_path):
    log = tmp_path / "run.jsonl"
    write(log, (50, 60, [2, 1]), (100, 120, [1.5, 0.9]))
    assert draw_learning_curve(tmp_path / "curve.png", log).stat().st_size > 5000
    log.write_text("")
    with pytest.raises(ValueError, match="no training step"):
        read_log(log)


def test_rounds_may_change_when_training_is_resumed(tmp_path):
    log = tmp_path / "run.jsonl"
    write(log, (50, 60, [2, 1, 0.5]), (100, 120, [1.5, 0.9]))
    _, losses = read_log(log)
    assert list(losses) == ["round 1", "round 2", "round 3"]
    assert losses["round 2"].tolist() == [1, 0.9]
    assert losses["round 3"][0] == 0.5
    assert np.isnan(losses["round 3"][1])


def test_losses_have_names_and_may_be_missing_from_a_line(tmp_path):
    log = tmp_path / "run.jsonl"
    lines = [{"proposal": 1.2, "corrected": 0.9}, {"proposal": 1.0}]
    log.write_text(
        "".join(json.dumps({"step": 50 * n, "seconds": 60 * n, "loss": loss}) + "\n" for n, loss in enumerate(lines, 1))
    )
    _, losses = read_log(log)
    assert losses["proposal"].tolist() == [1.2, 1.0]
    assert np.isnan(losses["corrected"][1])
