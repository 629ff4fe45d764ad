"""A short fixed run whose figures may not get worse: what was recorded, what is measured now, and the verdict.

Figures are Dice in per cent and a ratio of times, never seconds, so that the verdict does not depend on the machine. Of
all of them more is better.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssmsam.progress import Progress, silent
from ssmsam.report import run_manifest, write_result
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.model_choice import ModelChoice, PromptedModel
from ssmsam_research.protocols.click_run import ClickRun
from ssmsam_research.protocols.clicks import ClickProtocol
from ssmsam_research.protocols.complete import CompleteProtocol
from ssmsam_research.protocols.fewshot_run import FewShotRun
from ssmsam_research.protocols.speed import SpeedProtocol, measure_model

CLICKS = ClickProtocol(slice_clicks=(1, 3, 5), slice_fractions=(0.25, 0.75), volumes=False)
COMPLETE = CompleteProtocol(slices=(3,), placements=("ends given",))
METHODS = ("interpolation", "fewshot_prompted", "fewshot")
SPEED = SpeedProtocol(rounds=7)
SPEED_RATIO = "speed, encoding on every click over a later click"
DICE_TOLERANCE, RATIO_TOLERANCE = 1.0, 0.35
"""How much less is allowed where the record says nothing: points of Dice, and a share of a ratio."""


@dataclass(frozen=True)
class Expectation:
    """A figure as it was recorded, and how much less than it is allowed."""

    recorded: float
    tolerance: float

    def verdict(self, now: float | None) -> str:
        """ "ok", "worse" or "missing"; "better" when so much has been won that it should be recorded."""
        if now is None:
            return "missing"
        if abs(now - self.recorded) <= self.tolerance:
            return "ok"
        return "better" if now > self.recorded else "worse"


@dataclass(frozen=True)
class CheckFile:
    """What is run, and what is expected of it. ``data_sha256`` is empty before the first recording."""

    cases: tuple[str, ...]
    organs: tuple[str, ...]
    expected: Mapping[str, Expectation]
    data_sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> CheckFile:
        """Raises ValueError when the file is not there or not of this shape."""
        try:
            content = json.loads(path.read_text())
            expected = {
                name: Expectation(float(one["recorded"]), float(one["tolerance"]))
                for name, one in content.get("expected", {}).items()
            }
            digest = content.get("data_sha256", "")
            return cls(tuple(content["cases"]), tuple(content["organs"]), expected, digest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no check file ({error!r}); it needs at least "
                '{"cases": [NAME, ...], "organs": [NAME, ...]}, then record it with --record'
            ) from error

    def recorded(self, measured: Mapping[str, float], data: LabelledSet) -> CheckFile:
        """The same with new figures. Tolerances stay as they are; new figures get the usual ones."""
        expected = {
            name: Expectation(
                round(now, 3), self.expected[name].tolerance if name in self.expected else _usual(name, now)
            )
            for name, now in measured.items()
        }
        return replace(self, expected=expected, data_sha256=data.manifest()["sha256"])

    def write(self, path: Path, manifest: Mapping[str, Any]) -> Path:
        """Write it as JSON, with what must be known to run it again."""
        content = {
            "cases": list(self.cases),
            "organs": list(self.organs),
            "data_sha256": self.data_sha256,
            "expected": {name: vars(one) for name, one in self.expected.items()},
            "manifest": dict(manifest),
        }
        return write_result(path, content)


def _usual(name: str, now: float) -> float:
    return round(RATIO_TOLERANCE * now, 2) if name == SPEED_RATIO else DICE_TOLERANCE


def measure_check(
    data: LabelledSet, model: ModelChoice, *, threads: int = 1, progress: Progress = silent
) -> dict[str, float]:
    """Name -> figure of the fixed run: Dice with few annotated slices and with few clicks, and a ratio of times."""
    sha256 = PromptedModel.load(model).weights_sha256
    complete = FewShotRun(COMPLETE, data, METHODS, model, sha256, threads=threads).run(progress=progress)
    clicks = ClickRun(data, model, sha256, CLICKS, threads=threads).run(progress=progress)
    volume, _ = data.cases[0].read()
    seconds = measure_model(model, volume, replace(SPEED, threads=threads), progress=progress)["seconds"]
    return {
        **{
            f"complete, {COMPLETE.headline}, {method}, Dice": settings[COMPLETE.headline]["mean_dice"]
            for method, settings in complete["methods"].items()
        },
        **{
            f"clicks on a slice, {prompt}, Dice": found["mean_dice"]
            for prompt, found in clicks["tasks"]["slice"].items()
        },
        SPEED_RATIO: seconds["reencoding_click"]["best"] / seconds["later_click"]["best"],
    }


def check_manifest(data: LabelledSet, model: ModelChoice) -> dict[str, Any]:
    """The manifest of a recorded check."""
    weights = {model.encoder: PromptedModel.load(model).weights_sha256}
    return run_manifest(protocol="check", data=data.manifest(), weights=weights, device=model.device)


def verdicts(expected: Mapping[str, Expectation], measured: Mapping[str, float]) -> dict[str, str]:
    """Name -> verdict, for all that was recorded and all that is measured; "new" is not recorded yet."""
    found = {name: one.verdict(measured.get(name)) for name, one in expected.items()}
    return found | {name: "new" for name in measured if name not in expected}


def passes(found: Mapping[str, str]) -> bool:
    """Whether nothing is worse, missing or never recorded."""
    return not set(found.values()) & {"worse", "missing", "new"}


def check_table(expected: Mapping[str, Expectation], measured: Mapping[str, float]) -> str:
    """A row for each figure: what was recorded, the least that is allowed, what it is now, the verdict."""
    rows = [f"{'figure':56}{'recorded':>10}{'allowed':>10}{'now':>10}"]
    for name, verdict in verdicts(expected, measured).items():
        one, now = expected.get(name), measured.get(name)
        cells = (None, None, now) if one is None else (one.recorded, one.recorded - one.tolerance, now)
        shown = "".join(f"{'-' if cell is None else format(cell, '.2f'):>10}" for cell in cells)
        rows.append(f"{name:56}{shown}  {verdict if verdict in ('ok', 'better') else verdict.upper()}")
    return "\n".join(rows)
