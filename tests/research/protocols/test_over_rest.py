"""The protocol over REST: what is submitted, what is scored, and that the server forgets in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmsam.reading import read_volume
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.model_choice import ModelChoice
from ssmsam_research.protocols import over_rest
from ssmsam_research.protocols.over_rest import FIRST, INTERPOLATION, LATER, OTHER, OverRest, measured

SHAPE = (12, 24, 24)


class Told:
    """A server's answer."""

    def __init__(self, content: dict[str, Any] | None = None) -> None:
        self._content = content or {}

    def json(self) -> dict[str, Any]:
        return self._content

    def raise_for_status(self) -> None:
        return


@pytest.fixture
def case(tmp_path: Path) -> Case:
    truth = np.zeros(SHAPE, np.uint8)
    for index in range(2, 10):
        reach = 4 + min(index - 2, 9 - index)
        truth[index, 12 - reach : 12 + reach, 12 - reach : 12 + reach] = 1
    for name, array in (("image", truth.astype(np.float32)), ("labels", truth)):
        write_volume(Volume(array, np.diag([2.0, 2.0, 5.0, 1.0]), "MR"), tmp_path / f"{name}.nii.gz")
    return Case("a", tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz")


def test_slices_with_both_ends_are_submitted_and_what_comes_is_scored(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, truth = case.read()
    sent: list[dict[str, Any]] = []
    forgotten: list[str] = []

    def put(url: str, *, files: dict[str, Any], data: dict[str, str], **_: Any) -> Told:
        drawn = read_volume(Path(files["label"][1].name)).array
        sent.append({**json.loads(data["params"]), "drawn": np.flatnonzero(drawn.any(axis=(1, 2))).tolist()})
        return Told()

    answers = [truth == 0, truth == 1]

    def asked(*_: Any) -> tuple[np.ndarray, dict[str, Any], float]:
        return answers.pop(0).astype(np.uint8), {"label_names": {"organ": 1}, "job": "j", "asked_slices": {}}, 2.0

    monkeypatch.setattr(over_rest.requests, "put", put)
    monkeypatch.setattr(over_rest.requests, "get", lambda url, **_: Told({"state": "done", "detail": "helps"}))
    monkeypatch.setattr(
        over_rest.requests, "delete", lambda url, params, **_: forgotten.append(params["image"]) or Told()
    )
    monkeypatch.setattr(over_rest, "asked", asked)
    run = OverRest(LabelledSet("set", (case,), {1: "organ"}), ModelChoice(), slices=3)
    records = {one["method"]: one for one in measured("http://server", case, run, tmp_path)}

    assert sent[0]["drawn"] == [2, 6, 9] or sent[0]["drawn"] == [2, 5, 9]
    assert sent[0]["partial"] == {"slices": {"organ": {"annotated": sent[0]["drawn"]}}}, "no slice is called empty"
    assert forgotten == ["a"]
    assert records[FIRST]["dice"][OTHER] == 0
    assert records[LATER]["dice"][OTHER] == 100
    assert 50 < records[INTERPOLATION]["dice"][OTHER] < 100
    gain = over_rest.worst_against_interpolation(list(records.values()))["organ"]
    assert gain["smallest"] == pytest.approx(-records[INTERPOLATION]["dice"][OTHER], abs=0.01)
