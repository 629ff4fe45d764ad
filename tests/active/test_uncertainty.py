"""How unsure a model is of voxels: with the real networks, untrained."""

from __future__ import annotations

import numpy as np
import pytest

from ssmsam.active.forecast import MOST_VIEWS, probabilities, uncertainty_map
from ssmsam.embeddings.embedder import VolumeEmbeddings
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.support import LabelledSlice


def test_the_map_forgets_what_is_known_and_nothing_else(
    task: AdaptedTask, query: VolumeEmbeddings, organ: np.ndarray
) -> None:
    everywhere = uncertainty_map(task, query)
    half = np.zeros(organ.shape[1:], dtype=bool)
    half[:, :24] = True
    support = {"organ": [LabelledSlice(query, 2, organ[2], half)]}
    known = uncertainty_map(task, query, support=support)
    assert everywhere.dtype == np.uint8 and everywhere.shape == organ.shape and 0 < everywhere.max() <= 100
    assert not known[2][half].any()
    np.testing.assert_array_equal(known[2][~half], everywhere[2][~half])
    np.testing.assert_array_equal(np.delete(known, 2, axis=0), np.delete(everywhere, 2, axis=0))


def test_views_are_the_model_without_a_part_of_the_annotated_slices(task: AdaptedTask, query: VolumeEmbeddings) -> None:
    alone, both = probabilities(task, query)["organ"], probabilities(task, query, views=2)["organ"]
    without_each = [probabilities(task.without({"organ": [k]}), query)["organ"] for k in (0, 1)]
    np.testing.assert_allclose(both, np.mean([alone, *without_each], axis=0), atol=1e-5)
    assert np.abs(both - alone).max() > 0.01
    # two slices have no third part: a third view asks nothing more
    np.testing.assert_array_equal(probabilities(task, query, views=3)["organ"], both)


def test_no_view_lacks_all_slices_that_show_the_label(task: AdaptedTask, query: VolumeEmbeddings) -> None:
    bank = task.banks["organ"]
    single = task.without({"organ": [1]})
    assert len(single.banks["organ"]) == len(bank) - 1
    np.testing.assert_array_equal(probabilities(single, query, views=2)["organ"], probabilities(single, query)["organ"])


@pytest.mark.parametrize("views", [-1, MOST_VIEWS + 1])
def test_absurd_numbers_of_views_are_refused(task: AdaptedTask, query: VolumeEmbeddings, views: int) -> None:
    with pytest.raises(ValueError, match=f"0 to {MOST_VIEWS}"):
        probabilities(task, query, views=views)
