"""Who was shown more may rule slices out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssmsam.fewshot.proposals import Proposals, vetoed
from ssmsam.fewshot.segmentation import SegmentationConfig

CONFIG = SegmentationConfig()
HEARD = replace(CONFIG, least_evidence=0.0)


def proposals(*presence: float) -> Proposals:
    count = len(presence)
    logits = np.full((count, 16, 16), -9.0, np.float32)
    logits[:, 4:12, 4:12] = 9.0
    return Proposals(np.arange(count), logits, np.array(presence, np.float32), np.zeros((count, 4), np.float32))


def test_a_judge_lowers_presence_and_never_raises_it() -> None:
    own, judge = proposals(0.8, 0.8, 0.6, 0.3), proposals(0.9, 0.2, 0.7, 0.1)
    np.testing.assert_allclose(vetoed(own, judge, 5.0, HEARD).presence, [0.8, 0.2, 0.6, 0.1])


def test_slices_beyond_doubt_are_not_ruled_out_by_a_judge_in_doubt() -> None:
    own, judge = proposals(0.96, 0.96, 1.0, 0.85), proposals(0.47, 0.02, 0.0, 0.47)
    ruled = vetoed(own, judge, 5.0, HEARD).presence
    assert 0.5 < ruled[0] < 0.96, "one of two words"
    assert ruled[1] < 0.5, "a judge who is sure is believed"
    assert np.isfinite(ruled).all()
    np.testing.assert_allclose(ruled[3], 0.47, atol=1e-6)


def test_a_judge_who_finds_the_target_nowhere_is_not_heard() -> None:
    own, judge = proposals(0.8, 0.9, 0.8), proposals(0.3, 0.3, 0.3)
    assert vetoed(own, judge, 5.0, CONFIG) is own
