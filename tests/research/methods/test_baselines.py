import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam_research.methods.interpolation import NearestSlice, ShapeInterpolation
from ssmsam_research.methods.random_walker import RandomWalker
from ssmsam_research.methods.registry import METHODS
from ssmsam_research.metrics import dice
from ssmsam_research.model_choice import PromptedModel
from ssmsam_research.protocols.fewshot_task import Support, Task, with_ends

AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])


def task_of(truth, slices, *, image=None, extent=None, affine=AFFINE):
    volume = Volume(np.zeros(truth.shape, dtype=np.float32) if image is None else image, affine, "MR")
    return Task((Support.from_labels(volume, truth, slices),), volume, extent)


def widths(mask):
    return mask[:, 2].sum(axis=1).tolist()


@pytest.fixture
def wedge():
    """Annotated on slices 2 and 4: columns 0 to 3, and columns 0 to 7. Rows are all alike."""
    truth = np.zeros((8, 5, 16), dtype=bool)
    truth[2, :, :4] = True
    truth[4, :, :8] = True
    return truth


def test_half_way_between_two_slices_the_border_is_half_way(wedge):
    assert widths(ShapeInterpolation().segment(task_of(wedge, [2, 4]))) == [0, 0, 4, 6, 8, 0, 0, 0]


def test_a_quarter_of_the_way_the_border_has_gone_a_quarter():
    truth = np.zeros((6, 5, 20), dtype=bool)
    truth[0, :, :4] = True
    truth[4, :, :12] = True
    assert widths(ShapeInterpolation().segment(task_of(truth, [0, 4]))) == [4, 6, 8, 10, 12, 0]


def test_beyond_the_outermost_slices_their_masks_are_carried_half_a_gap(wedge):
    task = task_of(wedge, [2, 4])
    assert widths(ShapeInterpolation(beyond=0.5).segment(task)) == [0, 4, 4, 6, 8, 8, 0, 0]
    within = task_of(wedge, [2, 4], extent=range(2, 5))
    assert widths(within.finished(ShapeInterpolation(beyond=0.5).segment(within))) == [0, 0, 4, 6, 8, 0, 0, 0]


def test_the_nearest_slice_is_copied_and_the_lower_one_wins_a_tie(wedge):
    assert widths(NearestSlice().segment(task_of(wedge, [2, 4]))) == [0, 4, 4, 4, 8, 8, 0, 0]


def test_these_baselines_need_slices_of_the_query_itself(wedge):
    other = task_of(wedge, [2, 4])
    crossing = Task(other.supports, Volume(np.zeros(wedge.shape), AFFINE))
    for method in (ShapeInterpolation(), NearestSlice()):
        with pytest.raises(ValueError, match="annotated slices of the query"):
            method.segment(crossing)


def test_the_random_walker_follows_the_image_where_shapes_alone_mislead():
    truth = np.zeros((9, 32, 32), dtype=bool)
    for index in range(9):  # narrow at both ends and wide between: only the image says so
        half = 5 if index in (0, 8) else 10
        truth[index, 16 - half : 16 + half, 16 - half : 16 + half] = True
    image = truth * 100.0 + np.random.default_rng(0).normal(0, 3, truth.shape)
    task = task_of(truth, [0, 8], image=image.astype(np.float32), affine=np.eye(4))
    walked = dice(RandomWalker().segment(task), truth)
    assert walked > 95
    assert walked > dice(ShapeInterpolation().segment(task), truth) + 10


def test_a_bounded_random_walker_answers_on_the_full_grid():
    truth = np.zeros((5, 40, 40), dtype=bool)
    truth[:, 8:30, 10:32] = True
    image = (truth * 100.0 + np.random.default_rng(0).normal(0, 3, truth.shape)).astype(np.float32)
    mask = RandomWalker(voxels=800).segment(task_of(truth, [0, 4], image=image))
    assert mask.shape == truth.shape
    assert dice(mask, truth) > 90


@pytest.fixture(scope="module")
def model(random_small):
    return PromptedModel.load(random_small)


@pytest.mark.parametrize("name", ["prototypes", "linear"])
def test_frozen_features_find_a_bright_block_in_another_patient(model, name):
    """Even random weights keep bright and dark apart, and the block is large against the cells."""
    rng = np.random.default_rng(0)
    truths = [np.zeros((3, 64, 64), dtype=bool) for _ in range(2)]
    truths[0][:, 8:36, 8:40] = True
    truths[1][:, 24:56, 20:52] = True
    volumes = [Volume((t * 100.0 + rng.normal(0, 3, t.shape)).astype(np.float32), AFFINE, "MR") for t in truths]
    task = Task((Support.from_labels(volumes[0], truths[0], [1]),), volumes[1])
    mask = METHODS[name].build(model).segment(task)
    assert dice(mask, truths[1]) > 80
    assert dice(mask, truths[0]) < 60


def test_propagation_keeps_its_seeds_and_the_extent(model):
    truth = np.zeros((6, 32, 32), dtype=bool)
    truth[1:5, 8:24, 8:24] = True
    image = (truth * 100.0).astype(np.float32)
    task = task_of(truth, with_ends(truth, 2), image=image, extent=range(1, 5))
    mask = METHODS["propagation"].build(model).segment(task)
    assert (mask[[1, 4]] == truth[[1, 4]]).all()
    assert not mask[[0, 5]].any()
