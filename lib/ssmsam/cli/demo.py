"""``ssmsam demo``: the real server, a simulated annotator, and what came of it."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import requests
from monailabel.client import MONAILabelClient
from monailabel.client.client import MONAILabelClientException

from ssmsam.cli.annotator import Click, bounding_box, click_params, first_click, next_click
from ssmsam.cli.command import FAILED, FINE, Program, Several, json_option, path_option
from ssmsam.cli.live_server import LiveServer, ServerFailed, live_server
from ssmsam.cli.options import encoder_option
from ssmsam.cli.pictures import Panel, draw_overlays
from ssmsam.cli.samples import IMAGES, LABELS, SampleCase, sample_cases
from ssmsam.cli.serve import app_folder
from ssmsam.ops import dice
from ssmsam.reading import read_volume
from ssmsam.report import Summary, files_digest, mean_over_labels, run_manifest, summarise, write_result
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

SLICE_CLICKS, VOLUME_CLICKS, SUBMITTED = 5, 3, 5
HEADLINE = "sam_2d, 5 clicks"
LEARNERS = ("fewshot", "ssm_sam")
"""The models that learn from annotated slices. The second adapts by gradient steps, which takes minutes."""


@click.command(cls=Program)
@click.option("--volumes", cls=Several, default=("ct_01", "mr_04"), show_default=True, metavar="NAME...")
@click.option(
    "--models",
    cls=Several,
    type=click.Choice(LEARNERS),
    default=LEARNERS[:1],
    show_default=True,
    metavar="NAME...",
    help="What learns from the submitted slices.",
)
@encoder_option
@path_option("--picture", default=Path("output", "demo.png"), show_default=True, metavar="PNG")
@json_option
def command(*, volumes: Sequence[str], models: Sequence[str], encoder: str, picture: Path, record: Path | None) -> int:
    """See it work: start the real server on the sample volumes, annotate as a person would, compare with the truth.

    First clicks and boxes become masks. Then five slices of every organ are submitted, and the few-shot model proposes
    the rest of each volume. The server is started by MONAI Label's own command and asked through MONAI Label's own
    client. The truth reaches it only as clicks, boxes and the submitted slices. Nothing outside a temporary folder and
    the output files is written; the studies and what was annotated stay beside the picture, to be looked at.
    """
    cases = sample_cases(volumes)
    studies = picture.parent / f"demo_{time.strftime('%Y%m%dT%H%M%S')}"
    studies.mkdir(parents=True)
    for case in cases:
        shutil.copy(case.image, studies)  # without the labels
    try:
        with tempfile.TemporaryDirectory(prefix="ssmsam-demo-") as folder:
            scratch = Path(folder)
            print(f"starting the server on {len(cases)} sample volumes ...", flush=True)
            conf = {"store": str(scratch / "store"), "encoder": encoder}
            with live_server(app=app_folder(scratch / "app"), studies=studies, conf=conf) as server:
                result, panels = annotate(server, cases, scratch, models)
    except (MONAILabelClientException, requests.RequestException, ServerFailed, ValueError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return FAILED
    print_result(result)
    title = "filled: answer, dashed: truth, crosses: clicks; right, coronal: sam_3d after 3 clicks, then from slices"
    print(f"\npicture: {draw_overlays(picture, panels, columns=len(panels) // len(cases), title=title)}")
    if record:
        print(f"result:  {write_result(record, result)}")
    print(f"page:    ssmsam serve {studies}   (in a clone: make serve STUDIES={studies})")
    print(f"         then open http://127.0.0.1:8000/annotate?image={cases[0].name}")
    return FINE


@dataclass
class Annotator:
    """A person who asks the server for masks; what came of it."""

    client: MONAILabelClient
    scratch: Path
    models: Sequence[str]
    """Those of the LEARNERS that are asked."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Kind of answer -> how long each took."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """One for each organ of each volume."""
    panels: list[Panel] = field(default_factory=list)

    def ask(self, model: str, image: str, kind: str, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The label map (slices, rows, columns) that ``model`` answers, and the details."""
        started = time.perf_counter()
        file, details = self.client.infer(model, image, {**params, "result_extension": ".nrrd"})
        self.seconds.setdefault(f"{model}, {kind}", []).append(time.perf_counter() - started)
        mask = read_volume(Path(file)).array
        Path(file).unlink()
        return mask, details

    def click(self, case: SampleCase) -> None:
        """Every organ of a volume, with clicks and a box on its widest slice, and with clicks through the volume."""
        volume, labels = case.read()
        whole = {}
        for label, truth in targets_of(labels).items():
            index = int(truth.sum(axis=(1, 2)).argmax())
            flat, there = truth[index], {"image": case.name, "label": label}
            clicks, masks = self._clicked(flat, index, there)
            scores = {
                f"sam_2d, {n} click{'s' * (n > 1)}": percent(masks[min(n, len(masks)) - 1], flat) for n in (1, 3, 5)
            }
            box, details = self.ask(
                "sam_2d", kind="box", reset_state=True, **there, **click_params(index, [], bounding_box(flat))
            )
            scores["sam_2d, box"] = percent(box[index] != 0, flat)
            found, _ = self.ask(
                "sam_3d", kind="clicks", reset_state=True, **there, **click_params(index, clicks[:VOLUME_CLICKS])
            )
            whole[label] = found != 0
            scores[f"sam_3d, {VOLUME_CLICKS} clicks"] = percent(whole[label], truth)
            about = {"case": case.name, "label": label, "slice": index}
            self.records.append({**about, "dice": scores, "weights_sha256": details["encoder_sha256"]})
            title = f"{case.name}, {label}: {scores[HEADLINE]:.0f} %"
            image = recipe_for(volume).scale(volume).apply(volume.array[index])
            pixel_mm = volume.spacing[1:]
            self.panels.append(Panel(title, image, masks[-1], truth=flat, clicks=clicks, pixel_mm=pixel_mm))
        self.panels.append(coronal_panel(f"{case.name}, sam_3d", volume, whole, labels))

    def _clicked(self, truth: np.ndarray, index: int, there: dict[str, str]) -> tuple[list[Click], list[np.ndarray]]:
        """Click on one slice until it is right or five clicks are made: the clicks, and the mask after each."""
        clicks: list[Click] = []
        masks: list[np.ndarray] = []
        wanted: Click | None = first_click(truth)
        while wanted is not None and len(clicks) < SLICE_CLICKS:
            clicks.append(wanted)
            kind = "later click" if masks else "first click"
            found, _ = self.ask("sam_2d", kind=kind, reset_state=not masks, **there, **click_params(index, clicks))
            masks.append(found[index] != 0)
            wanted = next_click(truth, masks[-1], clicked=clicks)
        return clicks, masks

    def submit(self, case: SampleCase) -> None:
        """Submit some slices of every organ, and note Dice of the models that learn from them on all others."""
        volume, labels = case.read()
        targets = targets_of(labels)
        slices = {label: spread(truth, SUBMITTED) for label, truth in targets.items()}
        drawn = np.zeros(volume.shape, dtype=np.uint8)
        for value, (label, truth) in enumerate(targets.items(), 1):
            drawn[slices[label]] = np.where(truth[slices[label]], value, drawn[slices[label]])
        file = self.scratch / f"{case.name}-slices.nii.gz"
        write_volume(volume.with_array(drawn), file)
        said = {
            "label_info": [{"name": label, "idx": value} for value, label in enumerate(targets, 1)],
            "partial": {"slices": {label: {"annotated": found} for label, found in slices.items()}},
        }
        self.client.save_label(case.name, str(file), tag="partial", params=said)
        for model in self.models:
            for kind in ("adapting", "again"):
                mask, details = self.ask(model, image=case.name, kind=kind, wait=True)
            whole = {label: mask == value for label, value in details["label_names"].items()}
            for record in self.records:
                if record["case"] == case.name:
                    truth = targets[record["label"]]
                    rest = np.setdiff1d(np.arange(len(truth)), slices[record["label"]])
                    record["dice"][model] = percent(whole[record["label"]][rest], truth[rest])
            self.panels.append(coronal_panel(f"{case.name}, {model}", volume, whole, labels))


def annotate(
    server: LiveServer, cases: Sequence[SampleCase], scratch: Path, models: Sequence[str]
) -> tuple[dict[str, Any], list[Panel]]:
    """All organs of all volumes: the result, and a row of panels for each volume."""
    print(f"it answered after {server.start_s:.1f} s at {server.url}", flush=True)
    info = wait_until_warm(server.url)
    # the client keeps answers under the name that the server gave them, which must not be the server's own file
    annotator = Annotator(MONAILabelClient(server.url, tmpdir=str(scratch)), scratch, models)
    for case in cases:
        print(f"annotating {case.name} ...", flush=True)
        annotator.click(case)
        print(f"submitting {SUBMITTED} slices of each organ, and asking for the rest ...", flush=True)
        annotator.submit(case)
    records = annotator.records
    for record in records:
        record["dice"] = {name: round(score, 3) for name, score in record["dice"].items()}
    headline, weights = by_label(records, HEADLINE), records[0]["weights_sha256"]
    files = [path for case in cases for path in (case.image, case.labels)]
    names = [case.name for case in cases]
    data = {"set": IMAGES, "cases": names, "sha256": files_digest(files)}
    result = {
        "protocol": "demo",
        "method": ", ".join(("sam_2d", "sam_3d", *models)),
        "encoder": info["encoder"],
        "weights_sha256": weights,
        "settings": {"headline": HEADLINE, "volumes": names},
        "mean_dice": round(mean_over_labels(headline), 3),
        "per_label": {label: summary.as_json() for label, summary in headline.items()},
        "per_case": records,
        "seconds": {
            "server start": round(server.start_s, 2),
            **{
                kind: {"median": round(float(np.median(kept)), 4), "worst": round(max(kept), 4), "n": len(kept)}
                for kind, kept in annotator.seconds.items()
            },
        },
        "memory_mb": {name: round(value) for name, value in server.memory_mb().items()},
        "manifest": run_manifest(protocol="demo", data=data, weights={info["encoder"]: weights}, device=info["device"]),
    }
    return result, annotator.panels


def wait_until_warm(url: str) -> dict[str, Any]:
    """What ``/info/`` says of the model, once the server has warmed up, or after two minutes."""
    until = time.monotonic() + 120
    while True:
        info = requests.get(f"{url}/info/", timeout=10).json()["ssmsam"]
        if info["warm"] or time.monotonic() > until:
            return info
        time.sleep(0.2)


def targets_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Organ -> mask (slices, rows, columns) of all that are there, by rising number."""
    return {LABELS[number]: labels == number for number in map(int, np.unique(labels)) if number}


def spread(truth: np.ndarray, k: int) -> list[int]:
    """The first, the last and equally spaced slices of an organ: ``k`` of them, or all when it has fewer."""
    present = np.flatnonzero(truth.any(axis=(1, 2)))
    wanted = np.linspace(present[0], present[-1], k)
    return sorted({int(present[np.abs(present - place).argmin()]) for place in wanted})


def percent(mask: np.ndarray, truth: np.ndarray) -> float:
    """Dice; 100 where both are empty."""
    return float(dice(mask, truth, scale=100.0))


def coronal_panel(title: str, volume: Volume, whole: dict[str, np.ndarray], labels: np.ndarray) -> Panel:
    """All organs as sam_3d found them, on the coronal slice that shows most of their truth, head up."""
    row = int((labels > 0).sum(axis=(0, 2)).argmax())
    up = slice(None, None, -1) if volume.affine[2, 2] > 0 else slice(None)
    image = recipe_for(volume).scale(volume).apply(volume.array[:, row])
    first, *others = [mask[up, row] for mask in whole.values()]
    pixel_mm = (volume.spacing[0], volume.spacing[2])
    return Panel(title, image[up], first, truth=labels[up, row] > 0, pixel_mm=pixel_mm, others=others)


def by_label(records: list[dict[str, Any]], prompt: str) -> dict[str, Summary]:
    """Label -> summary over the volumes."""
    labels = dict.fromkeys(record["label"] for record in records)
    return {label: summarise(r["dice"][prompt] for r in records if r["label"] == label) for label in labels}


def print_result(result: dict[str, Any]) -> None:
    """Dice by organ and prompt, then the times."""
    records = result["per_case"]
    prompts = list(records[0]["dice"])
    print(
        "\nDice against the truth (%)\n" + " " * 22 + "".join(f"{prompt.replace('sam_', ''):>14}" for prompt in prompts)
    )
    for record in records:
        cells = "".join(f"{record['dice'][prompt]:14.1f}" for prompt in prompts)
        print(f"{record['case']:8}{record['label']:14}{cells}")
    means = [mean_over_labels(by_label(records, prompt)) for prompt in prompts]
    print(f"{'mean over organs':22}" + "".join(f"{mean:14.1f}" for mean in means))
    print("\nSeconds               median   worst  (each with reading the answer)")
    for kind, kept in result["seconds"].items():
        if isinstance(kept, dict):
            print(f"{kind:22}{kept['median']:6.2f}  {kept['worst']:6.2f}  n = {kept['n']}")
    print(f"{'server start':22}{result['seconds']['server start']:6.2f}")
    print(f"\nencoder {result['encoder']}, memory of the server at its peak: {result['memory_mb']['peak']} MB")
    print("The sample volumes are synthetic: this shows that things work, not how well they work on patients.")
