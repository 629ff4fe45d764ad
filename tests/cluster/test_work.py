"""Embedding, segmenting and scoring studies, as workers do it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ssmsam import FewShotSegmenter, read_volume
from ssmsam.cluster import EmbedStudy, Model, ScoreStudy, SegmentStudy, run_cohort, studies_of
from ssmsam.cluster.work import embedder_of, segmenter_of, task_file, task_of
from ssmsam.paths import default_support
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.model_choice import ModelChoice

SHAPE, AFFINE = (5, 24, 28), np.diag([-2.0, -2.0, 6.0, 1.0])


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Three volumes of one bright organ with their truth, and one that cannot be read."""
    z, y, x = np.indices(SHAPE)
    for number in range(3):
        organ = ((z - 2) / 1.6) ** 2 + ((y - 12 - number) / 6) ** 2 + ((x - 12) / 5) ** 2 <= 1
        noise = np.random.default_rng(number).normal(0, 5, SHAPE)
        image = Volume((80 + 100 * organ + noise).astype(np.float32), AFFINE)
        for folder, volume in (("images", image), ("labels", image.with_array(organ.astype(np.uint8)))):
            (tmp_path / "cohort" / folder).mkdir(parents=True, exist_ok=True)
            write_volume(volume, tmp_path / "cohort" / folder / f"case{number}.nii.gz")
    (tmp_path / "cohort" / "images" / "broken.nii.gz").write_bytes(b"no image")
    return tmp_path / "cohort"


@pytest.fixture
def model(random_small: ModelChoice, tmp_path: Path) -> Model:
    embedder_of.cache_clear()
    segmenter_of.cache_clear()
    task_of.cache_clear()
    return Model(
        encoder="small", weights=str(random_small.weights), allow_unverified=True, store=str(tmp_path / "store")
    )


@pytest.fixture
def task(cohort: Path, random_small: ModelChoice, tmp_path: Path) -> Path:
    segmenter = FewShotSegmenter.from_pretrained(
        "small", weights=random_small.weights, allow_unverified=True, support_cache=default_support()
    )
    image, truth = (read_volume(cohort / folder / "case0.nii.gz") for folder in ("images", "labels"))
    examples = {"organ": [(image, index, truth.array[index]) for index in (1, 2, 3)]}
    return segmenter.adapt(examples, numbers={"organ": 4}, steps=2).save(tmp_path / "organ.safetensors")


def test_what_is_embedded_is_not_embedded_again(cohort: Path, model: Model) -> None:
    first = run_cohort(studies_of(cohort), EmbedStudy(model=model))
    assert [one.study for one in first.failed] == ["broken"]
    assert [one.details for one in first.outcomes if one.state == "done"] == [{"slices": 5, "encoded": 5}] * 3
    embedder_of.cache_clear()
    second = run_cohort(studies_of(cohort), EmbedStudy(model=model))
    assert [one.details["encoded"] for one in second.outcomes if one.state == "done"] == [0, 0, 0]


def test_a_store_that_is_full_is_a_failure(cohort: Path, model: Model) -> None:
    small = Model(**{**vars(model), "store_gb": 1e-5})
    done = run_cohort(studies_of(cohort)[1:], EmbedStudy(model=small))
    assert len(done.failed) == 3 and "took 0 of 5 slices: give it more room" in done.failed[0].reason


def test_a_cohort_is_segmented_as_one_volume_is(cohort: Path, model: Model, task: Path, tmp_path: Path) -> None:
    work = SegmentStudy(model=model, **task_file(task), out=str(tmp_path / "out"))
    done = run_cohort(studies_of(cohort), work, out=tmp_path / "out")
    assert [one.study for one in done.failed] == ["broken"]
    one = FewShotSegmenter.from_pretrained(
        "small", weights=model.weights, allow_unverified=True, support_cache=default_support()
    ).load_task(task)
    for outcome in done.outcomes[1:]:
        image = read_volume(cohort / "images" / f"{outcome.study}.nii.gz")
        written = read_volume(tmp_path / "out" / outcome.details["file"])
        assert written.grid.matches(image.grid)
        expected = one.segment(image)
        assert np.array_equal(written.array, expected.label_map.array)
        said = outcome.details["labels"]["organ"]
        assert said["dice_estimate"] == round(expected.dice_estimate["organ"], 3)
        assert said["millilitres"] == pytest.approx(24e-3 * (written.array == 4).sum(), abs=1e-3)
    with (tmp_path / "out" / "studies.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["", "organ", "organ", "organ"]
    assert len(rows[1]["uncertain_slices"].split()) == 3


def test_another_task_under_the_same_name_is_refused(cohort: Path, model: Model, task: Path, tmp_path: Path) -> None:
    work = SegmentStudy(model=model, **{**task_file(task), "task_sha256": "0" * 64}, out=str(tmp_path / "out"))
    done = run_cohort(studies_of(cohort)[1:2], work)
    assert "is not the task that the run began with" in done.failed[0].reason


def test_scores_know_the_truth_where_there_is_one(cohort: Path, model: Model, task: Path) -> None:
    plain = run_cohort(studies_of(cohort)[1:], ScoreStudy(model=model, **task_file(task)))
    assert all("dice" not in one.details["labels"]["organ"] for one in plain.outcomes)
    truth = cohort / "labels"
    for number in range(3):  # the truth in the task's own numbers
        image = read_volume(truth / f"case{number}.nii.gz")
        write_volume(image.with_array(4 * image.array), truth / f"case{number}.nii.gz")
    (truth / "case2.nii.gz").unlink()
    scored = run_cohort(studies_of(cohort)[1:], ScoreStudy(model=model, **task_file(task), truth=str(truth)))
    assert [one.study for one in scored.failed] == ["case2"] and "no truth for case2" in scored.failed[0].reason
    found = FewShotSegmenter.from_pretrained(
        "small", weights=model.weights, allow_unverified=True, support_cache=default_support()
    ).load_task(task)
    mask = found.segment(read_volume(cohort / "images" / "case1.nii.gz")).mask["organ"]
    drawn = read_volume(truth / "case1.nii.gz").array == 4
    dice = 2 * (mask & drawn).sum() / (mask.sum() + drawn.sum())
    assert scored.outcomes[1].details["labels"]["organ"]["dice"] == pytest.approx(dice, abs=1e-4)


def test_files_have_no_archive_to_go_to(cohort: Path, model: Model, task: Path, tmp_path: Path) -> None:
    work = SegmentStudy(model=model, **task_file(task), out=str(tmp_path / "out"), to_archive=True)
    assert "DICOMweb" in run_cohort(studies_of(cohort)[1:2], work).failed[0].reason


def test_the_commands_work_on_cohorts(cohort: Path, model: Model, task: Path, tmp_path: Path, capsys) -> None:
    from ssmsam.cli import main

    options = ["--weights", str(model.weights), "--allow-unverified", "--encoder", "small", "--store", str(model.store)]
    out, record = tmp_path / "out", tmp_path / "record.json"
    use = ["--task", str(task), *options, "--json", str(record)]
    assert main(["segment", "--studies", str(cohort), "--out", str(out), *use]) == 1  # one cannot be read
    said = capsys.readouterr()
    assert "broken.nii.gz: left out" in said.err and "3 of 4 studies done" in said.out
    assert sorted(path.name for path in (out / "labels").iterdir()) == [f"case{n}.nii.gz" for n in range(3)]
    assert len(json.loads(record.read_text())["studies"]) == 4
    assert main(["score", str(cohort), "--out", str(tmp_path / "scores"), *use]) == 1
    assert capsys.readouterr().out.count("organ expected Dice") == 3
    assert main(["segment", "--studies", str(cohort), "--query", "x.nii.gz", "--out", str(out), *use]) == 2
    assert main(["segment", "--query", "x.nii.gz", "--workers", "2", "--out", "x.nii.gz", *use]) == 2
    assert "belong to --studies" in capsys.readouterr().err
