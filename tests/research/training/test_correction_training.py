"""The training of what is put right after held-out slices, on answers that were made once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_fewshot_training import volumes

from ssmsam.models.fewshot_fused import FusedTargetNetwork
from ssmsam.models.fewshot_small import DENSE
from ssmsam.progress import silent
from ssmsam_research.training.correction_training import (
    Answers,
    CorrectionConfig,
    episodes_answered,
    train_correction,
)

CONFIG = replace(
    CorrectionConfig(),
    answered=12,
    steps=60,
    batch=8,
    corrected_share=0.3,
    episodes=replace(CorrectionConfig().episodes, region_share=0.0),
)


def network() -> FusedTargetNetwork:
    torch.manual_seed(0)
    return FusedTargetNetwork().eval().requires_grad_(False)


def answers(one: FusedTargetNetwork, config: CorrectionConfig = CONFIG) -> Answers:
    return Answers.cat(list(episodes_answered(one, volumes()[:3], config, progress=silent)))


def test_an_untrained_correction_leaves_answers_as_they_are() -> None:
    one = network()
    found = answers(one)
    assert found.error.any() and len(found.logits) == len(found.target)
    torch.testing.assert_close(found.put_right(one.correction), found.logits.float())


def planted(count: int = 12, side: int = 32) -> Answers:
    """Targets of which the decoder found nothing, as on the annotated slices around."""
    target = torch.zeros(count, 1, side, side)
    for number in range(count):
        target[number, :, 8 : 12 + number, 6:20] = 1
    maps = {name: torch.zeros(count, n, side, side) for name, n in (("drawn", DENSE), ("fitted", 2))}
    held_out = torch.tensor([[0.3, 0.8, 0.75, 0.4]]).expand(count, -1)
    told = {"agreement": torch.full((count, 1), 0.9), "held_out": held_out}
    known, logits = torch.ones_like(target), torch.full((count, side, side), -2.0)
    everything = {
        **maps,
        **told,
        "logits": logits,
        "target": target,
        "known": known,
        "error": (0.9 * target).expand(-1, 2, -1, -1),
    }
    return Answers(**{name: one.half() for name, one in everything.items()})


def test_it_learns_what_held_out_slices_tell_and_changes_nothing_else() -> None:
    one = network()
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    losses = train_correction(one, planted(), CONFIG)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    changed = {name for name, tensor in one.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("correction.") for name in changed)


def test_the_same_seed_answers_the_same_episodes() -> None:
    few = replace(CONFIG, answered=3)
    first, second = (answers(network(), few) for _ in range(2))
    torch.testing.assert_close(first.logits, second.logits)


def test_settings_that_do_not_exist_are_refused() -> None:
    assert CorrectionConfig.from_json({"steps": 5, "episodes": {"queries": 3}}).episodes.queries == 3
    with pytest.raises(TypeError, match="paces"):
        CorrectionConfig.from_json({"paces": 5})
