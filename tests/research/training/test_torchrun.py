"""Several processes train as one does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from test_fewshot_training import CONFIG, volumes

from ssmsam.models.fewshot_fused import FusedTargetNetwork
from ssmsam_research.training.fewshot_training import train_fewshot
from ssmsam_research.training.loop import process_group

STEPS = 3


def train(out: Path, *, batches: int = 2, steps: int = STEPS, resume: Path | None = None) -> None:
    """What each process does: toy volumes, the same start."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = replace(CONFIG, steps=steps, batches=batches)
    with process_group():
        train_fewshot(volumes(), FusedTargetNetwork(), out=out, config=config, resume=resume)


def torchrun(out: Path, *, batches: int = 2, steps: int = STEPS) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__,
        str(out), str(batches), str(steps),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_do_with_two_batches_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one" / "decoder.safetensors", tmp_path / "two" / "decoder.safetensors"
    train(one)
    ran = torchrun(two)
    assert ran.returncode == 0, ran.stderr[-2000:]
    expected, found = load_file(one), load_file(two)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-5)
    torch.manual_seed(0)
    start = FusedTargetNetwork().state_dict()
    assert any(not torch.allclose(found[name].float(), start[name].float()) for name in found)
    train(two, steps=STEPS + 1, resume=two.with_suffix(".ckpt"))  # one process goes on with what two began
    assert load_file(two).keys() == expected.keys()


def test_batches_that_cannot_be_shared_are_refused(tmp_path: Path) -> None:
    ran = torchrun(tmp_path / "decoder.safetensors", batches=3)
    assert ran.returncode != 0 and "2 processes cannot share 3 batches evenly" in ran.stderr


if __name__ == "__main__":
    train(Path(sys.argv[1]), batches=int(sys.argv[2]), steps=int(sys.argv[3]))
