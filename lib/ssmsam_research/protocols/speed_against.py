"""Protocol "speed", against what users would pick instead: other packages' clicks, and a U-Net on the same few slices.

Every contestant lives in a process of its own, for an honest peak of memory. In clicking they take turns, slice by
slice, so that a busy machine slows all of them alike. Processor seconds stand beside the wall clock: they are what a
contestant costs when it has to wait for nobody.

Other packages that answer clicks, behind the same two steps as our model: a slice is opened, then clicked on.

All weights of rivals are random numbers: that costs the same time, and nothing has to be fetched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from multiprocessing import get_context
from typing import Any, Protocol

import numpy as np
import torch

from ssmsam.cli.annotator import Click
from ssmsam.progress import Progress, silent
from ssmsam.volume.intensity import recipe_for
from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import Case, LabelledSet
from ssmsam_research.methods.registry import METHODS
from ssmsam_research.model_choice import ModelChoice, PromptedModel, PromptedTarget
from ssmsam_research.protocols.complete import CompleteProtocol
from ssmsam_research.protocols.speed import SpeedProtocol, Timing, middle_slices, peak_memory_mb, timed

RIVALS = {
    "segment-anything": "segment-anything",
    "sam2": "sam2",
}
"""Name -> the package it comes from. ``sam2`` with the network that MONAI Label's own SAM 2 task takes."""


class ClickedModel(Protocol):
    """A model with one volume."""

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        """Encode a slice that was not looked at before, and answer the clicks: its mask (height, width)."""
        ...

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        """Answer all clicks so far on the slice that was opened last."""
        ...


class OurModel:
    """What answers the server's requests, with embeddings in memory."""

    def __init__(self, choice: ModelChoice, volume: Volume) -> None:
        self._model = PromptedModel.load(choice)
        self._embeddings = self._model.embedder.open(volume)
        self._target, self._index = PromptedTarget(self._embeddings, self._model.decoder), -1

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        self._target, self._index = PromptedTarget(self._embeddings, self._model.decoder), index
        return self.click(clicks)

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        return self._target.slice_mask(self._index, clicks, None)


class PredictorModel:
    """A predictor of segment-anything or of sam2, which have one interface."""

    def __init__(self, predictor: Any, volume: Volume) -> None:
        self._predictor = predictor
        self._volume = volume
        self._scale = recipe_for(volume).scale(volume)

    def open_and_click(self, index: int, clicks: Sequence[Click]) -> np.ndarray:
        grey = (self._scale.apply(self._volume.array[index]) * 255).astype(np.uint8)
        self._predictor.set_image(np.repeat(grey[..., None], 3, axis=2))
        return self.click(clicks)

    def click(self, clicks: Sequence[Click]) -> np.ndarray:
        masks, _, _ = self._predictor.predict(
            point_coords=np.array([[click.x, click.y] for click in clicks], dtype=float),
            point_labels=np.array([int(click.positive) for click in clicks]),
            multimask_output=False,
        )
        return np.asarray(masks[0]) > 0


def open_rival(name: str, volume: Volume, device: str) -> ClickedModel:
    """One of :data:`RIVALS`. Raises ValueError when its package is not installed."""
    try:
        return PredictorModel(_sam_predictor(device) if name == "segment-anything" else _sam2_predictor(device), volume)
    except ImportError as error:
        raise ValueError(f"{name} cannot be measured ({error}); install it with: pip install {RIVALS[name]}") from error


def _sam_predictor(device: str) -> Any:
    from segment_anything import SamPredictor, sam_model_registry

    return SamPredictor(sam_model_registry["vit_b"]().eval().to(device))


def _sam2_predictor(device: str) -> Any:
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    return SAM2ImagePredictor(build_sam2("configs/sam2/sam2_hiera_l.yaml", device=device))


UNET = "unet"
FEW_SHOT = ("fewshot_prompted", "fewshot", UNET)
_STEPS = ("opening_click", "later_click")

Contestant = ModelChoice | str
"""One of our models, or the name of a rival."""


def compare_clicks(
    contestants: Mapping[str, Contestant],
    case: Case,
    protocol: SpeedProtocol,
    *,
    device: str,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Name -> seconds of the ``opening_click`` (the slice is encoded) and a ``later_click`` on it, memory, ratios.

    Ratios are over the later click of the first contestant: ``later_click`` for who keeps the embedding,
    ``opening_click`` for who encodes on every click.
    """
    volume, _ = case.read()
    indices = middle_slices(volume.shape[0], protocol.rounds + protocol.warm_up)
    taken: dict[str, dict[str, list[tuple[float, float]]]] = {
        name: {step: [] for step in _STEPS} for name in contestants
    }
    with ExitStack() as stack:
        alone = {name: stack.enter_context(_process()) for name in contestants}
        for number, index in enumerate(indices):
            for name, contestant in contestants.items():
                progress(f"click on slice {index} with {name}", number, len(indices))
                times = alone[name].submit(_click, contestant, case, index, protocol.threads, device).result()
                for step in _STEPS if number >= protocol.warm_up else ():
                    taken[name][step].append(times[step])
        memory = {name: alone[name].submit(peak_memory_mb).result() for name in contestants}
    timings = {
        name: {step: Timing(*map(list, zip(*pairs, strict=True))) for step, pairs in steps.items()}
        for name, steps in taken.items()
    }
    ours = next(iter(timings.values()))["later_click"]
    return {
        name: {
            "seconds": {step: timing.as_json() for step, timing in steps.items()},
            "over_our_later_click": {step: timing.over(ours) for step, timing in steps.items()},
            "peak_memory_mb": round(memory[name]),
        }
        for name, steps in timings.items()
    }


def compare_few_shot(
    choice: ModelChoice, case: Case, data: LabelledSet, protocol: SpeedProtocol, *, progress: Progress = silent
) -> dict[str, Any]:
    """Method -> seconds from five annotated slices of the largest organ to the whole mask, Dice, memory, ratio.

    The query is embedded before: in use the annotator's clicks have done that. Ratios are over ``fewshot``.
    """
    found: dict[str, Any] = {}
    for number, method in enumerate(FEW_SHOT):
        progress(f"few slices with {method}", number, len(FEW_SHOT))
        with _process() as alone:
            found[method] = alone.submit(_few_shot, method, choice, case, data, protocol.threads).result()
    for one in found.values():
        one["over_fewshot"] = {
            kind: round(one[kind] / found["fewshot"][kind], 2) for kind in ("seconds", "processor_seconds")
        }
    return found


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


@lru_cache(maxsize=1)
def _opened(contestant: Contestant, case: Case, device: str) -> tuple[ClickedModel, Volume]:
    volume, _ = case.read()
    if isinstance(contestant, str):
        return open_rival(contestant, volume, device), volume
    return OurModel(contestant, volume), volume


def _click(contestant: Contestant, case: Case, index: int, threads: int, device: str) -> dict[str, tuple[float, float]]:
    torch.set_num_threads(threads)
    model, volume = _opened(contestant, case, device)
    height, width = volume.shape[1:]
    clicks = [Click(width // 2, height // 2, True), Click(width // 2, height // 4, False)]
    with torch.inference_mode():
        return {
            "opening_click": timed(partial(model.open_and_click, index, clicks[:1])),
            "later_click": timed(partial(model.click, clicks)),
        }


def _few_shot(method: str, choice: ModelChoice, case: Case, data: LabelledSet, threads: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    volume, labels = case.read()
    episodes = list(CompleteProtocol(slices=(5,), placements=("ends given",)).episodes(volume, labels, data))
    episode = max(episodes, key=lambda one: int(np.count_nonzero(one.truth)))
    model = PromptedModel.load(choice)
    if METHODS[method].target:
        model.embedder.open(volume).embed()
    before = os.times()
    record = episode.measure(METHODS[method].build(model))
    after = os.times()
    return {
        "seconds": record["seconds"],
        "processor_seconds": round(after.user + after.system - before.user - before.system, 3),
        "dice": record["dice"],
        "label": record["label"],
        "settings": dict(METHODS[method].settings),
        "peak_memory_mb": round(peak_memory_mb()),
    }


def against_table(clicks: Mapping[str, Any], few_shot: Mapping[str, Any]) -> str:
    """What was compared, a row for each contestant: processor seconds, ratios of them, memory."""
    rows = []
    if clicks:
        rows.append(
            f"{'processor seconds of a click':36}{'opening':>10}{'later':>10}{'over our later click':>24}{'MB':>8}"
        )
    for name, one in clicks.items():
        opening, later = (one["seconds"][step]["processor_median"] for step in _STEPS)
        ratios = " / ".join(f"{one['over_our_later_click'][step]['processor']:.1f}" for step in _STEPS)
        rows.append(f"{name:36}{opening:10.3f}{later:10.3f}{ratios:>24}{one['peak_memory_mb']:8d}")
    if few_shot:
        rows.append(f"{'processor seconds to the mask':36}{'seconds':>10}{'Dice':>10}{'over fewshot':>24}{'MB':>8}")
    for name, one in few_shot.items():
        dice, ratio = next(iter(one["dice"].values())), one["over_fewshot"]["processor_seconds"]
        rows.append(f"{name:36}{one['processor_seconds']:10.2f}{dice:10.1f}{ratio:24.2f}{one['peak_memory_mb']:8d}")
    return "\n".join(rows)
