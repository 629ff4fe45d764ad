import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssmsam_research.protocols.episode import keep_slice, kept_mask

MASKS = hnp.arrays(bool, st.tuples(*[st.integers(1, 9)] * 3))


@given(MASKS)
def test_the_mask_comes_back_as_it_was(mask):
    kept = json.loads(json.dumps(keep_slice(mask, ~mask, np.ones(len(mask), dtype=bool))))
    np.testing.assert_array_equal(kept_mask(kept, mask.shape[1:]), mask[kept["slice"]])


def test_the_slice_with_most_wrong_pixels_among_the_scored_ones_is_kept():
    truth = np.zeros((5, 8, 8), dtype=bool)
    truth[1:4, 2:6, 2:6] = True
    mask = truth.copy()
    mask[2] = False  # annotated: not scored
    mask[3, 2] = False
    scored = np.array([True, True, False, True, True])
    assert keep_slice(mask, truth, scored)["slice"] == 3
    assert keep_slice(truth, truth, scored)["slice"] == 1


def test_a_mask_of_an_abdominal_slice_takes_less_than_a_kilobyte():
    y, x = np.mgrid[:512, :512]
    mask = ((x - 250) ** 2 / 1.7 + (y - 200) ** 2 + 900 * np.sin(x / 9) < 8000)[None]
    assert len(keep_slice(mask, ~mask, np.ones(1, dtype=bool))["mask"]) < 1000


def test_another_image_is_refused():
    mask = np.zeros((2, 8, 8), dtype=bool)
    kept = keep_slice(mask, mask, np.ones(2, dtype=bool))
    with pytest.raises(ValueError, match="not of shape"):
        kept_mask(kept, (16, 16))
