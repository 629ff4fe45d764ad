"""adapt.py and segment.py on small files: the same masks as the library, and one clear line when something is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adapted_task import SupportCache, read_task
from ssmsam.fewshot.pipeline import segment
from ssmsam.fewshot.task_checkpoint import read_card
from ssmsam.models.registry import load_encoder, load_target_decoder
from ssmsam.paths import default_support
from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.model_choice import ModelChoice

SHAPE = (5, 24, 28)
AFFINE = np.diag([-2.0, -2.0, 6.0, 1.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    z, y, x = np.indices(SHAPE)
    labels = np.zeros(SHAPE, np.uint16)
    labels[((z - 2) / 1.6) ** 2 + ((y - 12) / 6) ** 2 + ((x - 9) / 5) ** 2 <= 1] = 3
    labels[((z - 2) / 2.1) ** 2 + ((y - 12) / 5) ** 2 + ((x - 20) / 5) ** 2 <= 1] = 300
    for name, seed in (("one", 0), ("two", 1)):
        noise = np.random.default_rng(seed).normal(0, 5, SHAPE)
        image = Volume((80 + 100 * (labels > 0) + noise).astype(np.float32), AFFINE, modality="MR")
        write_volume(image, folder / f"{name}.nii.gz")
    write_volume(image.with_array(labels), folder / "labels.nii.gz")
    return folder


@pytest.fixture
def model(random_small: ModelChoice, tmp_path: Path) -> list[str]:
    options = ["--weights", str(random_small.weights), "--allow-unverified", "--store", str(tmp_path / "store")]
    return [*options, "--steps", "2"]


def support(folder: Path, slices: str = "") -> list[str]:
    return ["--support", f"{folder / 'one.nii.gz'}:{folder / 'labels.nii.gz'}{slices}"]


def test_a_checkpoint_is_made_and_used(
    folder: Path, model: list[str], tmp_path: Path, random_small, load_app, capsys
) -> None:
    head, out, record = tmp_path / "organs.safetensors", tmp_path / "found.nii.gz", tmp_path / "record.json"
    names = ["--names", "organ=3", "stone=300"]
    made = load_app("adapt").main([*support(folder), *names, "--out", str(head), *model, "--json", str(record)])
    assert made == 0
    said = capsys.readouterr().out
    assert "organ: 3 slices; Dice on slices held out" in said
    assert "stone: 5 slices; Dice on slices held out" in said
    kept = json.loads(record.read_text())
    assert kept["manifest"]["data"]["files"] == ["one.nii.gz", "labels.nii.gz"]
    assert kept["card"]["numbers"] == {"organ": 3, "stone": 300}
    assert str(folder) not in record.read_text()

    query = folder / "two.nii.gz"
    picture = tmp_path / "picture.png"
    options = ["--head", str(head), "--query", str(query), "--out", str(out), "--picture", str(picture)]
    assert load_app("segment").main([*options, *model, "--json", str(record)]) == 0
    found = read_volume(out)
    assert found.grid.matches(read_volume(query).grid)
    assert picture.read_bytes()[:4] == b"\x89PNG"

    choice = {"folder": random_small.weights, "allow_unverified": True}
    embedder, decoder = Embedder(encoder=load_encoder("small", **choice)), load_target_decoder("small", **choice)
    cache, sha256 = SupportCache(default_support()), embedder.encoder.weights_sha256
    loaded = read_task(head, base=decoder, weights_sha256=sha256, cache=cache)
    assert not loaded.summarised
    expected = segment(embedder.open(read_volume(query)), loaded)
    np.testing.assert_array_equal(found.array, np.array([0, 3, 300])[expected.mask])
    result = json.loads(record.read_text())["labels"]
    assert [result[label]["voxels"] for label in expected.labels] == [int((expected.mask == n).sum()) for n in (1, 2)]
    assert len(result["organ"]["presence"]) == len(result["stone"]["uncertainty"]) == SHAPE[0]


def test_a_checkpoint_knows_its_method(folder: Path, model: list[str], tmp_path: Path, load_app, capsys) -> None:
    head, out = tmp_path / "head.safetensors", tmp_path / "found.nii.gz"
    made = [*support(folder), "--names", "organ=3", "--out", str(head), "--method", "ssm_sam", *model]
    assert load_app("adapt").main(made) == 0
    assert read_card(head)["method"] == "ssm_sam"
    used = ["--head", str(head), "--query", str(folder / "two.nii.gz"), "--out", str(out), *model]
    assert load_app("segment").main([*used, "--method", "fewshot"]) == 2
    assert "head.safetensors is a task of ssm_sam, not of fewshot: leave --method out" in capsys.readouterr().err
    assert not out.exists()
    assert load_app("segment").main(used) == 0
    assert set(np.unique(read_volume(out).array)) <= {0, 3}


@pytest.mark.parametrize(("plane", "axis", "slices"), [(None, 0, (1, 3)), ("sagittal", 2, (7, 10))])
def test_annotated_slices_of_the_query_stay(
    folder: Path, model: list[str], tmp_path: Path, load_app, plane: str | None, axis: int, slices: tuple[int, int]
) -> None:
    out = tmp_path / "found.nrrd"
    options = [
        *support(folder, f":{slices[0]},{slices[1]}"),
        "--names",
        "organ=3",
        "--query",
        str(folder / "one.nii.gz"),
    ]
    options += ["--plane", plane] if plane else []
    assert load_app("segment").main([*options, "--out", str(out), *model]) == 0
    found, truth = read_volume(out).array, read_volume(folder / "labels.nii.gz").array
    for index in slices:
        np.testing.assert_array_equal(found.take(index, axis) == 3, truth.take(index, axis) == 3)


def test_names_may_be_left_out(folder: Path, model: list[str], tmp_path: Path, load_app, capsys) -> None:
    head = tmp_path / "head.safetensors"
    assert load_app("adapt").main([*support(folder, ":2"), "--out", str(head), *model]) == 0
    assert "label 3: 1 slices; no estimate" in capsys.readouterr().out
    assert read_card(head)["labels"] == ["label 3", "label 300"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--names", "organ=4"], "no label map holds organ=4; the numbers found are 3, 300"),
        (["--names", "organ"], "NAME=NUMBER"),
        (["--support", "none.nii.gz:none.nii.gz"], "no such file"),
        (["--weights", "nowhere", "--encoder", "sam_vit_b"], "ssmsam doctor --download sam_vit_b"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(
    folder: Path, model: list[str], tmp_path: Path, load_app, capsys, monkeypatch, changed: list[str], message: str
) -> None:
    monkeypatch.delenv("SSMSAM_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    out = tmp_path / "head.safetensors"
    assert load_app("adapt").main([*support(folder), "--out", str(out), *model, *changed]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        ("adapt", ["--support", "a.nii.gz", "--out", "h.safetensors"], "IMAGE:LABEL"),
        ("adapt", ["--support", "a:b:9-3", "--out", "h.safetensors"], "10,20-40:5"),
        ("adapt", ["--support", "a:b", "--out", "h.pt"], "ends in .safetensors"),
        ("adapt", ["--support", "a:b", "--out", "h.safetensors", "--json", "h.json"], "choose another name"),
        ("segment", ["--query", "a", "--out", "b.nii.gz"], "either --support or --task"),
        ("segment", ["--head", "h", "--support", "a:b", "--query", "a", "--out", "b.nii.gz"], "either"),
        ("segment", ["--head", "h", "--query", "a", "--out", "b.png"], "has to end in .nii.gz"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(
    load_app, capsys, program: str, options: list[str], message: str
) -> None:
    assert load_app(program).main(options) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_checkpoint_is_refused(
    folder: Path, model: list[str], tmp_path: Path, load_app, capsys
) -> None:
    options = ["--query", str(folder / "two.nii.gz"), "--out", str(tmp_path / "found.nii.gz"), *model]
    assert load_app("segment").main(["--head", str(folder / "labels.nii.gz"), *options]) == 2
    assert "labels.nii.gz is no task checkpoint" in capsys.readouterr().err
    assert load_app("segment").main(["--head", str(tmp_path / "none.safetensors"), *options]) == 2
    assert "there is no task checkpoint none.safetensors" in capsys.readouterr().err


def test_ctrl_c_leaves_no_file(folder: Path, model: list[str], tmp_path: Path, load_app, capsys, monkeypatch) -> None:
    program, out = load_app("segment"), tmp_path / "found.nii.gz"

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ssmsam.api.segment", interrupted)
    options = [*support(folder, ":2"), "--query", str(folder / "two.nii.gz"), "--out", str(out), *model]
    assert program.main(options) == 130
    assert "stopped; no mask was written" in capsys.readouterr().err
    assert not out.exists()
