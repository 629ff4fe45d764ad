"""Settings and pieces for all tests."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

from ssmsam.models.fewshot_small import TargetNetwork
from ssmsam.models.prompt_small import SmallPromptNetwork
from ssmsam.models.registry import ENCODER_VARIABLE
from ssmsam.models.small_encoder import SmallEncoder
from ssmsam.models.weights import entry
from ssmsam_research.model_choice import ModelChoice

os.environ[ENCODER_VARIABLE] = "small"  # whatever is not about another encoder runs on the quick one, servers too

settings.register_profile("shared machine", deadline=None)  # a busy machine is no failure
settings.load_profile("shared machine")


@pytest.fixture(scope="session")
def random_small(tmp_path_factory) -> ModelChoice:
    """A small model with random weights, in a file as training writes it: plumbing without trained weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    parts = {"encoder": SmallEncoder(), "prompting": SmallPromptNetwork(), "fewshot": TargetNetwork()}
    state = {
        f"{part}.{name}": tensor for part, network in parts.items() for name, tensor in network.state_dict().items()
    }
    save_file(state, str(folder / entry("small").file))
    return ModelChoice(weights=folder, allow_unverified=True)
