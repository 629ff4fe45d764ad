"""MONAI Label's tasks: inference, training, strategies, scores."""

from __future__ import annotations

from monailabel.interfaces.tasks.infer_v2 import InferTask


class Task(InferTask):
    """A model as viewers list it. What it needs was looked for when the server started."""

    def is_valid(self) -> bool:
        return True


def latencies(started: float, ready: float, segmented: float, written: float) -> dict[str, float]:
    """Seconds by phase, as viewers show them."""
    seconds = {
        "pre": ready - started, "infer": segmented - ready, "post": 0.0, "write": written - segmented,
        "total": written - started,
    }  # fmt: skip
    return {name: round(value, 4) for name, value in seconds.items()}
