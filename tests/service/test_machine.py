from __future__ import annotations

import os

import pytest
import torch

from ssmsam.service.errors import ConfigurationError
from ssmsam.service.machine import choose_device, choose_threads


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(5) == 5
    assert choose_threads(0) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= choose_threads(0) <= (os.cpu_count() or 1)


def test_a_missing_gpu_is_said() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigurationError, match="use cpu or auto"):
        choose_device("cuda:97")
