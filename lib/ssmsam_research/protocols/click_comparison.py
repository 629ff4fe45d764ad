"""Protocol "clicks" for several methods on several sets, in one run and one result.

Whether an encoder may compute in bfloat16: the masks that its decoder makes for boxes, against those in float32.

A tight box leaves the decoder little to decide, so that what differs comes from the embedding; clicks answer each other
and make chance differences large.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ssmsam.models.encoder import has_bfloat16
from ssmsam.progress import Progress, silent
from ssmsam.report import Summary, run_manifest, summarise
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.model_choice import ModelChoice
from ssmsam_research.protocols.click_run import ClickRun
from ssmsam_research.protocols.clicks import ClickProtocol

LITE_MEDSAM_SAW = (
    "pretraining may have seen such images and organs: its makers name the sets of the CVPR 2024 challenge (CT, MR, "
    "ultrasound, X-ray, dermoscopy, fundus, endoscopy, microscopy), not each image"
)
BOXES_ONLY = "a box; it was not trained for clicks, which are left out"


@dataclass(frozen=True)
class ClickMethod:
    """One column of the comparison."""

    encoder: str
    published: bool = False
    pretraining: str = ""
    """What the weights may have seen before any training of ours."""
    bfloat16: bool | None = None

    def choice(self, common: ModelChoice) -> ModelChoice:
        """The model, found and run where ``common`` says."""
        return replace(common, encoder=self.encoder, published=self.published, bfloat16=self.bfloat16)

    def protocol(self, protocol: ClickProtocol) -> ClickProtocol:
        """Only boxes for a decoder that knows nothing else."""
        return replace(protocol, clicks=False) if self.published else protocol

    @property
    def prompts(self) -> str:
        return BOXES_ONLY if self.published else "clicks and a box"


METHODS = {
    "medsam_lite": ClickMethod("medsam_lite", pretraining=LITE_MEDSAM_SAW),
    "medsam_lite published": ClickMethod("medsam_lite", published=True, pretraining=LITE_MEDSAM_SAW),
    "small": ClickMethod("small"),
}


@dataclass(frozen=True)
class TrainingRecord:
    """What is recorded of which sets weights of ours were trained on: sha256 -> names of sets."""

    sets: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> TrainingRecord:
        """From JSON ``{name: {"sha256": ..., "sets": [...]}}``. Raises ValueError for a file of another shape."""
        try:
            entries: dict[str, Any] = json.loads(path.read_text())
            return cls({entry["sha256"]: list(entry["sets"]) for entry in entries.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            shape = '{name: {"sha256": digest, "sets": [set, ...]}}'
            raise ValueError(f"{path} is no record of training sets ({error!r}); expected {shape}") from error

    def of(self, digests: Sequence[str], data: LabelledSet, held_out: Sequence[str]) -> str:
        """Whether training of ours saw a set: "unseen", "seen", or "other cases seen" where the measured ones were held
        out; "not recorded" where one of the weights is not in the record."""
        if any(digest not in self.sets for digest in digests):
            return "not recorded"
        if not any(data.name in self.sets[digest] for digest in digests):
            return "unseen"
        return "other cases seen" if {case.name for case in data.cases} <= set(held_out) else "seen"


@dataclass(frozen=True)
class ClickComparison:
    """What is run: every method on every set. ``common`` says where weights are looked for and what they run on."""

    sets: tuple[LabelledSet, ...]
    methods: Mapping[str, ClickMethod] = field(default_factory=lambda: METHODS)
    common: ModelChoice = field(default_factory=ModelChoice)
    protocol: ClickProtocol = field(default_factory=ClickProtocol)
    training: TrainingRecord = field(default_factory=lambda: TrainingRecord({}))
    held_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Set -> cases that no training of ours may have seen."""
    jobs: int = 1
    threads: int = 1
    cluster: str | None = None

    @cached_property
    def runs(self) -> dict[tuple[str, str], ClickRun]:
        """(set, method) -> its run, set by set. Raises what finding weights raises; ValueError for sets of one name."""
        names = [data.name for data in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"two sets have the same name ({', '.join(names)}): rename a folder")
        choices = {name: method.choice(self.common) for name, method in self.methods.items()}
        digests = {name: choice.digests() for name, choice in choices.items()}
        return {
            (data.name, name): ClickRun(
                labelled_set=data,
                model=choices[name],
                weights_sha256=digests[name][method.encoder],
                protocol=method.protocol(self.protocol),
                jobs=self.jobs,
                threads=self.threads,
                cluster=self.cluster,
            )
            for data in self.sets
            for name, method in self.methods.items()
        }

    def run(self, log_file: Path | None = None, *, progress: Progress = silent) -> dict[str, Any]:
        """Measure everything that ``log_file`` does not hold yet, and put the result together."""
        total, done = sum(len(run.labelled_set.cases) for run in self.runs.values()), 0
        results = {}
        for (data, method), run in self.runs.items():
            before, phase = done, f"{data}, {method}"
            results[data, method] = run.run(log_file, progress=lambda _, n, __: progress(phase, before + n, total))  # noqa: B023
            done += len(run.labelled_set.cases)
        return self._result(results)

    def _result(self, results: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
        methods = {name: self._method(name, results) for name in self.methods}
        first = next(iter(self.methods))
        task, prompt = self.methods[first].protocol(self.protocol).headline
        headline = methods[first]["over_sets"][task][prompt]
        settings = {"headline": f"{task} / {prompt}", "jobs": self.jobs, "threads": self.threads}
        return {
            "protocol": "clicks",
            "method": first,
            "settings": {**self.protocol.as_json(), **settings},
            "mean_dice": headline["mean"],
            "ci95": headline["ci95"],
            "n": headline["n"],
            "per_label": {
                f"{data.name}: {label}": found
                for data in self.sets
                for label, found in results[data.name, first]["per_label"].items()
            },
            "methods": methods,
            "per_case": [
                {"set": data, "method": method, **case}
                for (data, method), result in results.items()
                for case in result["per_case"]
            ],
            "manifest": run_manifest(
                protocol="clicks",
                data={"sets": [data.manifest() for data in self.sets]},
                weights={
                    name: digest for found in methods.values() for name, digest in found["weights_sha256"].items()
                },
                device=self.common.device,
                settings=settings,
            ),
        }

    def _method(self, name: str, results: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
        """What is said of a method: its figures on each set and over all of them, and what its weights have seen."""
        of_sets = {data.name: results[data.name, name] for data in self.sets}
        method, digests = self.methods[name], self.runs[self.sets[0].name, name].model.digests()
        ours = [digest for file, digest in digests.items() if not (method.pretraining and file == method.encoder)]
        return {
            "encoder": method.encoder,
            "weights_sha256": digests,
            "prompts": method.prompts,
            "pretraining": method.pretraining,
            "our_training": {
                data.name: self.training.of(ours, data, self.held_out.get(data.name, ())) for data in self.sets
            },
            "over_sets": over_sets({data: result["tasks"] for data, result in of_sets.items()}),
            "sets": {data: {"tasks": found["tasks"], "seconds": found["seconds"]} for data, found in of_sets.items()},
        }


def over_sets(tasks_of: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> prompt -> mean over sets of means over labels, in per cent.

    The interval (``ci95``) is from a bootstrap over sets, of which there are ``n``; of a single set it is that over its
    cases. ``over`` says which.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in ("slice", "volume"):
        prompts = next(iter(tasks_of.values())).get(task, {})
        for prompt in prompts:
            figures = [tasks[task][prompt] for tasks in tasks_of.values()]
            found.setdefault(task, {})[prompt] = _over(figures)
    return found


def _over(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if len(figures) == 1:
        (one,) = figures
        return Summary(one["mean_dice"], tuple(one["ci95"]), one["n"]).as_json() | {"over": "cases"}
    return summarise(one["mean_dice"] for one in figures).as_json() | {"over": "sets"}


def comparison_table(result: Mapping[str, Any]) -> str:
    """Dice in per cent of each set and over all of them: a row for each method, a column for each prompt."""
    rows = []
    methods = result["methods"]
    for task in ("slice", "volume"):
        prompts = list(dict.fromkeys(p for found in methods.values() for p in found["over_sets"].get(task, {})))
        if not prompts:
            continue
        rows.append(f"\n{f'Dice of a {task} (%), mean over labels':68}" + "".join(f"{p:>18}" for p in prompts))
        for name in next(iter(methods.values()))["sets"]:
            for method, found in methods.items():
                cells = found["sets"][name]["tasks"][task]
                shown = {prompt: (cell["mean_dice"], cell["ci95"]) for prompt, cell in cells.items()}
                rows.append(_row(f"{name}: {method} ({_seen(found, name)})", prompts, shown))
        for method, found in methods.items():
            shown = {prompt: (cell["mean"], cell["ci95"]) for prompt, cell in found["over_sets"][task].items()}
            rows.append(_row(f"mean over sets: {method}", prompts, shown))
    rows += [f"{method}: {found['prompts']}" for method, found in methods.items()]
    rows += [f"{method}: {found['pretraining']}" for method, found in methods.items() if found["pretraining"]]
    return "\n".join(rows)


def _seen(method: Mapping[str, Any], name: str) -> str:
    """What a method's weights have seen of a set, in the words that tables use."""
    ours = str(method["our_training"][name])
    return "pretraining may have seen" if ours == "unseen" and method["pretraining"] else ours


def _row(head: str, prompts: Sequence[str], cells: Mapping[str, tuple[float, Sequence[float]]]) -> str:
    def cell(prompt: str) -> str:
        if prompt not in cells:
            return "-"
        mean, (low, high) = cells[prompt]
        return f"{mean:.1f} ({low:.0f}-{high:.0f})"

    return f"{head[:68]:68}" + "".join(f"{cell(prompt):>18}" for prompt in prompts)


LIMIT = 0.2
"""Points of Dice that bfloat16 may cost on the mean. A guess of what nobody would notice, not fitted to anything."""
BOXES = ClickProtocol(slice_fractions=(0.25, 0.5, 0.75), volumes=False, clicks=False)


def check_precision(
    sets: Sequence[LabelledSet],
    common: ModelChoice,
    *,
    protocol: ClickProtocol = BOXES,
    threads: int = 1,
    log_file: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """A result of both precisions with ``loss``, ``worst_set`` (points of Dice, float32 less bfloat16) and ``passes``.

    ``passes`` concerns the mean over sets. Raises ValueError where the processor has no instructions for bfloat16, so
    that nobody would want it.
    """
    if not has_bfloat16():
        raise ValueError("this processor has no instructions for bfloat16: run the check on one that has")
    methods = {
        "float32": ClickMethod(common.encoder, bfloat16=False),
        "bfloat16": ClickMethod(common.encoder, bfloat16=True),
    }
    run = ClickComparison(tuple(sets), methods, common, protocol, threads=threads)
    result = run.run(log_file, progress=progress)
    task, prompt = protocol.headline
    lost = {
        data.name: _mean(result, "float32", data.name, task, prompt)
        - _mean(result, "bfloat16", data.name, task, prompt)
        for data in sets
    }
    loss = sum(lost.values()) / len(lost)
    return result | {
        "protocol": "precision",
        "loss": round(loss, 3),
        "worst_set": round(max(lost.values()), 3),
        "limit": LIMIT,
        "passes": loss <= LIMIT,
    }


def _mean(result: dict[str, Any], method: str, data: str, task: str, prompt: str) -> float:
    return float(result["methods"][method]["sets"][data]["tasks"][task][prompt]["mean_dice"])
