"""Whether an encoder may compute in bfloat16: the masks that its decoder makes for boxes, against those in float32.

A tight box leaves the decoder little to decide, so that what differs comes from the embedding; clicks answer each other
and make chance differences large.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmsam.models.encoder import has_bfloat16
from ssmsam.progress import Progress, silent
from ssmsam_research.evaluation.cases import LabelledSet
from ssmsam_research.evaluation.click_comparison import ClickComparison
from ssmsam_research.evaluation.click_methods import ClickMethod
from ssmsam_research.evaluation.clicks import ClickProtocol
from ssmsam_research.evaluation.prompted import ModelChoice

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
