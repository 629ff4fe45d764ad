from __future__ import annotations

import pytest
from bench import Bench, draw_volume

from ssmsam.interactive.session import SegmentationState


@pytest.fixture
def bench() -> Bench:
    return Bench(draw_volume())


@pytest.fixture
def state() -> SegmentationState:
    return SegmentationState()
