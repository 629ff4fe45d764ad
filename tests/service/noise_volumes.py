"""Fixtures of services and of the server: an encoder that only pools, and volumes of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fakes import PoolingEncoder
from ssmsam.embeddings.embedder import Embedder
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(encoder=PoolingEncoder())


@pytest.fixture
def write() -> Callable[..., Path]:
    """Write a volume of noise and return its path."""

    def write(path: Path, *, seed: int = 0, shape: tuple[int, int, int] = (6, 20, 24)) -> Path:
        array = np.random.default_rng(seed).integers(-100, 200, shape, dtype=np.int16)
        write_volume(Volume(array, np.diag([1.0, 1.0, 3.0, 1.0]), "CT"), path)
        return path

    return write
