"""What every training of ours keeps: checkpoints to go on from, a moving average, and weights files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from ssmsam.files import whole_file


def write_checkpoint(
    path: Path, *, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, step: int, seconds: float
) -> None:
    """Write everything that training needs to go on, atomically."""
    state = {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    with whole_file(path) as partial:
        torch.save(state, partial)


def read_checkpoint(
    path: Path, *, model: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer, device: str = "cpu"
) -> tuple[int, float]:
    """Take everything back, in place; the step and the seconds. Raises FileNotFoundError when there is none."""
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["seconds"]


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move the average towards the model, in place; faster during the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    for mine, theirs in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)


def write_weights(path: Path, state: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write weights as fp16 safetensors, atomically.

    Vectors stay fp32: they are few, and a variance of activations can be beyond the range of fp16. Raises ValueError
    for values that are not finite.
    """
    kept = {name: t.detach().cpu().contiguous() for name, t in state.items()}
    kept = {name: t.half() if t.is_floating_point() and t.ndim > 1 else t for name, t in kept.items()}
    broken = [name for name, t in kept.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise ValueError(f"these weights are infinite or not a number and were not written: {', '.join(broken)}")
    with whole_file(path) as partial:
        save_file(kept, str(partial), metadata)
