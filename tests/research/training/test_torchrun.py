"""Several processes train as one does."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_fewshot_training import CONFIG, volumes
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ssmsam.models.fewshot_fused import FusedTargetNetwork
from ssmsam_research.training.fewshot_training import train_fewshot
from ssmsam_research.training.loop import process_group

STEPS = 3


def train(out: Path, *, batches: int = 2, steps: int = STEPS, resume: Path | None = None) -> None:
    """What each process does: toy volumes, the same start."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = replace(CONFIG, steps=steps, batches=batches)
    train_fewshot(volumes(), FusedTargetNetwork(), out=out, config=config, resume=resume)


def refused_and_trained(folder: Path) -> str:
    """In each process: batches that cannot be shared, then some that can; what was said to the first."""
    with process_group():
        with pytest.raises(ValueError) as refusal:
            train(folder / "refused.safetensors", batches=3)
        train(folder / "decoder.safetensors")
    return str(refusal.value)


def torchrun(folder: Path) -> dict[int, str]:
    """``torchrun --nproc-per-node 2`` with two copies of one process, so that one alone imports everything."""
    multiprocessing.set_forkserver_preload([train_fewshot.__module__])
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id="two",
        start_method="forkserver", max_restarts=0, monitor_interval=0.2,
    )  # fmt: skip
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        return elastic_launch(config, refused_and_trained)(folder)
    finally:
        for number, handler in handlers.items():  # the launcher leaves its own
            signal.signal(number, handler)


def test_two_processes_do_with_two_batches_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "decoder.safetensors", tmp_path / "two" / "decoder.safetensors"
    train(one)
    said = torchrun(two.parent)
    assert said == dict.fromkeys((0, 1), "2 processes cannot share 3 batches evenly: set --batches")
    assert not list(two.parent.glob("refused*.safetensors"))
    expected, found = load_file(one), load_file(two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-5)
    torch.manual_seed(0)
    start = FusedTargetNetwork().state_dict()
    assert any(not torch.allclose(found[name].float(), start[name].float()) for name in found)
    train(two, steps=STEPS + 1, resume=two.with_suffix(".ckpt"))  # one process goes on with what two began
    assert load_file(two).keys() == expected.keys()
