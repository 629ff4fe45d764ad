from __future__ import annotations

import pytest
from planted import PocketDecoder, PocketEncoder

from ssmsam.embeddings.embedder import Embedder


@pytest.fixture
def embedder() -> Embedder:
    return Embedder(encoder=PocketEncoder())


@pytest.fixture
def decoder() -> PocketDecoder:
    return PocketDecoder()
