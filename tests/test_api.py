"""The library as a notebook calls it: any kind of image in, masks out, and one sentence when something is wrong."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import ssmsam
from ssmsam import (
    FewShotSegmenter,
    PromptSegmenter,
    Segmentation,
    SegmentationTask,
    as_volume,
    read_volume,
    write_dicom_seg,
    write_volume,
)
from ssmsam.dicom.seg_reader import read_seg
from ssmsam.dicom.series_writer import DicomPatient, write_dicom_series
from ssmsam.progress import Cancelled
from ssmsam.volume.geometry import RAS_LPS
from ssmsam.volume.volume import Volume

SHAPE = (9, 40, 48)
AFFINE = np.array([[2.0, 0, 0, -10], [0, 2.0, 0, 20], [0, 0, 5.0, 30], [0, 0, 0, 1]])


def scan(row: int, column: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy image (slices, rows, columns) with a ball, and the ball."""
    z, y, x = np.indices(SHAPE)
    ball = (z - 4) ** 2 * 6 + (y - row) ** 2 + (x - column) ** 2 < 90
    noise = np.random.default_rng(row).normal(0, 6, SHAPE)
    return (np.where(ball, 200, 60) + noise).astype(np.int16), ball


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FewShotSegmenter:
    return FewShotSegmenter.from_pretrained("small", support_cache=tmp_path_factory.mktemp("support"))


@pytest.fixture(scope="module")
def task(model: FewShotSegmenter) -> SegmentationTask:
    image, ball = scan(18, 20)
    return model.adapt({"ball": [(image, 3, ball[3]), (image, 5, ball[5])]}, affine=AFFINE)


@pytest.fixture(scope="module")
def found(task: SegmentationTask) -> Segmentation:
    return task.segment(scan(22, 26)[0], affine=AFFINE)


def kinds(array: np.ndarray) -> dict[str, object]:
    """The same image as each kind that is accepted."""
    itk = sitk.GetImageFromArray(array)
    itk.SetSpacing((2.0, 2.0, 5.0))
    itk.SetOrigin((-10.0, 20.0, 30.0))
    return {
        "volume": Volume(array, AFFINE),
        "nibabel": nib.Nifti1Image(array.T, RAS_LPS @ AFFINE),
        "SimpleITK": itk,
    }


@pytest.mark.parametrize("kind", ["volume", "nibabel", "SimpleITK"])
def test_an_image_is_the_same_whatever_it_comes_as(kind: str) -> None:
    array, _ = scan(18, 20)
    expected = as_volume(array, affine=AFFINE)
    assert as_volume(kinds(array)[kind]).digest == expected.digest


def test_what_is_no_image_is_refused_with_the_next_step() -> None:
    for wrong, said in (
        (np.zeros((3, 4, 5)), "affine="),
        ("ct.nii.gz", "SimpleITK"),
        (sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), "one grey value is needed"),
        (nib.Nifti1Image(np.zeros((3, 4, 5, 6), np.int16), np.eye(4)), "one 3-D image is needed"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            as_volume(wrong)
    with pytest.raises(ValueError, match="leave"):
        as_volume(Volume(np.zeros((3, 4, 5)), np.eye(4)), affine=np.eye(4))


def test_a_few_slices_and_the_rest_is_found(task: SegmentationTask, found: Segmentation) -> None:
    truth = scan(22, 26)[1]
    mask = found.mask["ball"]
    assert task.labels == found.labels == ("ball",)
    assert task.learned_from == {"ball": 2}
    assert mask.shape == SHAPE
    assert mask.dtype == bool
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.8
    assert found.presence["ball"].shape == found.uncertainty["ball"].shape == (SHAPE[0],)
    assert found.presence["ball"][4] > 0.5
    assert 0 < found.dice_estimate["ball"] <= 1
    assert 0 < task.dice_estimate["ball"] <= 1
    np.testing.assert_array_equal(found.label_map.array == found.numbers["ball"], mask)


def test_what_was_annotated_stays(task: SegmentationTask) -> None:
    image, ball = scan(18, 20)
    mask = task.segment(image, affine=AFFINE).mask["ball"]
    np.testing.assert_array_equal(mask[[3, 5]], ball[[3, 5]])


@pytest.mark.parametrize("kind", ["nibabel", "SimpleITK"])
def test_examples_may_be_any_kind_of_image(model: FewShotSegmenter, found: Segmentation, kind: str) -> None:
    image, ball = scan(18, 20)
    drawn, scanned = kinds(ball.astype(np.uint8))[kind], kinds(image)[kind]
    learned = model.adapt({"ball": [(scanned, 3, drawn), (scanned, 5, ball[5])]})
    query = kinds(scan(22, 26)[0])[kind]
    np.testing.assert_array_equal(learned.segment(query).mask["ball"], found.mask["ball"])


def test_a_saved_task_answers_as_before(
    model: FewShotSegmenter, task: SegmentationTask, found: Segmentation, tmp_path: Path
) -> None:
    file = task.save(tmp_path / "ball.safetensors")
    loaded = model.load_task(file)
    assert loaded.exact
    query = scan(22, 26)[0]
    np.testing.assert_array_equal(loaded.segment(query, affine=AFFINE).mask["ball"], found.mask["ball"])

    elsewhere = FewShotSegmenter(model.embedder, model.decoder).load_task(file)
    assert not elsewhere.exact
    assert elsewhere.labels == ("ball",)
    assert elsewhere.segment(query, affine=AFFINE).mask["ball"].any()


def test_without_a_cache_a_saved_task_is_its_file_alone(model: FewShotSegmenter, tmp_path: Path) -> None:
    image, ball = scan(18, 20)
    alone = FewShotSegmenter(model.embedder, model.decoder)
    alone.adapt({"ball": [(image, 4, ball[4])]}, affine=AFFINE).save(tmp_path / "ball.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["ball.safetensors"]


def test_saving_leaves_other_files_alone(model: FewShotSegmenter, task: SegmentationTask, tmp_path: Path) -> None:
    image, ball = scan(18, 20)
    mine, ours = tmp_path / "mine.json", tmp_path / "ours.json"
    mine.write_text('{"notes": 1}')
    task.save(tmp_path / "ours.safetensors")
    assert ours.is_file()
    alone = FewShotSegmenter(model.embedder, model.decoder).adapt({"ball": [(image, 4, ball[4])]}, affine=AFFINE)
    alone.save(tmp_path / "mine.safetensors")
    alone.save(tmp_path / "ours.safetensors")
    assert mine.is_file()
    assert not ours.exists(), "it named the slices of the task that was there before"


def test_a_task_of_another_method_is_refused(model: FewShotSegmenter, task: SegmentationTask, tmp_path: Path) -> None:
    file = task.save(tmp_path / "ball.safetensors")
    other = FewShotSegmenter(model.embedder, model.decoder, method="ssm_sam")
    with pytest.raises(ValueError, match="load it with method='fewshot'"):
        other.load_task(file)
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        task.save(tmp_path / "ball.pt")


def test_labels_keep_their_numbers(model: FewShotSegmenter) -> None:
    image, ball = scan(18, 20)
    learned = model.adapt({"ball": [(image, 4, ball[4])]}, affine=AFFINE, numbers={"ball": 300})
    assert set(np.unique(learned.segment(image, affine=AFFINE).label_map.array)) == {0, 300}


def test_progress_is_told_and_stops_the_work(task: SegmentationTask, model: FewShotSegmenter) -> None:
    image, ball = scan(18, 20)
    told: list[str] = []
    model.adapt({"ball": [(image, 4, ball[4])]}, affine=AFFINE, progress=lambda phase, done, total: told.append(phase))
    assert "embed" in told

    def stop(phase: str, done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        task.segment(scan(10, 12)[0], affine=AFFINE, progress=stop)


def test_wrong_examples_are_refused_with_the_next_step(model: FewShotSegmenter) -> None:
    image, ball = scan(18, 20)
    for examples, said in (
        ({}, "give a few"),
        ({"ball": []}, "annotate at least one slice"),
        ({"ball": [(image, 4, np.zeros_like(ball[4]))]}, "annotate at least one slice"),
        ({"ball": [image]}, r"\(image, slice, mask\)"),
        ({"ball": [(image, 9, ball[4])]}, "the slices 0 to 8"),
        ({"ball": [(image, 4, ball[4].T)]}, "transpose it"),
        ({"ball": [(image, 4, ball[:, :10])]}, "resample the mask"),
        ({"ball": [(image, 4, ball[4]), (image, 4, ball[5])]}, "give each slice once"),
    ):
        with pytest.raises(ValueError, match=said):
            model.adapt(examples, affine=AFFINE)
    with pytest.raises(ValueError, match="unknown encoder"):
        FewShotSegmenter.from_pretrained("large")
    with pytest.raises(ValueError, match="unknown method"):
        FewShotSegmenter.from_pretrained("small", method="magic")


def test_an_unknown_label_is_refused(task: SegmentationTask) -> None:
    with pytest.raises(ValueError, match="this task has no label liver; it has ball"):
        task.segment(scan(10, 12)[0], affine=AFFINE, labels=["liver"])


def test_masks_become_files(found: Segmentation, tmp_path: Path) -> None:
    write_volume(found, tmp_path / "ball.nii.gz")
    written = read_volume(tmp_path / "ball.nii.gz")
    np.testing.assert_array_equal(written.array, found.label_map.array)
    assert written.grid.matches(found.label_map.grid)

    series = tmp_path / "series"
    image = Volume(scan(22, 26)[0], AFFINE, modality="CT")
    write_dicom_series(image, series, patient=DicomPatient("Test^One", "1", "test"))
    with pytest.raises(ValueError, match="give labels="):
        write_dicom_seg(found.label_map, series, tmp_path / "seg.dcm")
    seg = read_seg(write_dicom_seg(found, series, tmp_path / "seg.dcm"), image.grid)
    np.testing.assert_array_equal(seg.volume.array != 0, found.mask["ball"])


@pytest.fixture(scope="module")
def prompted() -> PromptSegmenter:
    return PromptSegmenter.from_pretrained("small")


def test_points_and_boxes_become_masks(prompted: PromptSegmenter) -> None:
    image, ball = scan(18, 20)
    prompted.set_image(image, affine=AFFINE)
    answer = prompted.predict(4, points=[(20, 18), (2, 2)], labels=[1, 0])
    assert answer.mask.shape == SHAPE[1:]
    assert answer.mask[18, 20]
    assert not answer.mask[2, 2]
    assert 0 <= answer.quality <= 1
    prompted.reset_prompts()
    boxed = prompted.predict(4, box=(10, 8, 30, 28)).mask
    assert 2 * (boxed & ball[4]).sum() / (boxed.sum() + ball[4].sum()) > 0.8
    whole = prompted.propagate()
    assert whole.mask.shape == SHAPE
    np.testing.assert_array_equal(whole.mask[4], boxed)
    assert whole.mask[3].any()
    assert whole.mask[5].any()
    assert not prompted.propagate(slices=(4, 5)).mask[3].any()


def test_another_plane_counts_its_own_slices(prompted: PromptSegmenter) -> None:
    prompted.set_image(scan(18, 20)[0], affine=AFFINE, plane="coronal")
    answer = prompted.predict(18, points=[(20, 4)])
    assert answer.mask.shape == (SHAPE[0], SHAPE[2])
    assert answer.mask[4, 20]
    assert prompted.predict(18, box=(8, 1, 32, 7)).mask.any()


def test_wrong_prompts_are_refused_with_the_next_step(prompted: PromptSegmenter) -> None:
    with pytest.raises(RuntimeError, match="call set_image"):
        PromptSegmenter(prompted.embedder, prompted.decoder).predict(0, points=[(1, 1)])
    prompted.set_image(scan(18, 20)[0], affine=AFFINE)
    for prompt, said in (
        ({}, "place a point inside the organ"),
        ({"points": [(20, 18)], "labels": [1, 0]}, "1 points have 2 labels"),
        ({"points": [(20, 18)], "labels": [0]}, "place a point inside"),
        ({"points": [(100, 18)]}, "outside the volume"),
    ):
        with pytest.raises(ValueError, match=said):
            prompted.predict(4, **prompt)
    with pytest.raises(ValueError, match="outside the volume"):
        prompted.predict(99, points=[(20, 18)])
    with pytest.raises(ValueError, match="no prompt"):
        prompted.propagate()


EXAMPLES = ("active.acquisition", "api", "embeddings.embedder", "models.encoder", "models.registry", "volume.volume")


@pytest.mark.parametrize("module", ["ssmsam", *(f"ssmsam.{name}" for name in EXAMPLES)])
def test_the_examples_in_docstrings_run(module: str) -> None:
    outcome = doctest.testmod(importlib.import_module(module))
    assert outcome.attempted
    assert not outcome.failed


def test_importing_the_package_loads_nothing() -> None:
    code = "import ssmsam, sys; ssmsam.read_volume; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(ssmsam.__all__) <= set(dir(ssmsam))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ssmsam.nothing


def test_the_lines_in_the_readme_work_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).parents[1]
    code = (root / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    (tmp_path / "sample-datasets").symlink_to(root / "sample-datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SSMSAM_ENCODER", "small")  # a twentieth of the time
    names: dict[str, Any] = {}
    exec(code, names)
    prediction, truth = names["prediction"], names["organs"].array == 1
    mask = prediction.mask["liver"]
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9
    assert len(prediction.presence["liver"]) == len(prediction.uncertainty["liver"]) == len(truth)
    assert 0.8 < prediction.dice_estimate["liver"] <= 1
    assert (tmp_path / "liver.safetensors").is_file()
    assert capsys.readouterr().out.strip(), "progress is told"
