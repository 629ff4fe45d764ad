"""The small model's decoder at its public boundary; weights are random here, so only mechanics are tested."""

import numpy as np
import pytest
import torch

from ssmsam.models.frame import Frame
from ssmsam.models.prompt_decoder import Neighbour, SlicePrompt
from ssmsam.models.prompt_small import (
    PointKind,
    SmallPromptDecoder,
    SmallPromptNetwork,
    closeness,
    describe_target,
    draw_prompts,
    point_tensors,
    size_and_stability,
)
from ssmsam.models.small_encoder import SmallEncoder

FRAME = Frame(128, 100, 256)


@pytest.fixture(scope="module")
def embedding():
    torch.manual_seed(0)
    with torch.inference_mode():
        return SmallEncoder().eval().encode(torch.rand(1, 3, 256, 256))


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(1)
    return SmallPromptDecoder(network=SmallPromptNetwork())


def test_candidates_come_best_first(embedding, decoder):
    found = decoder.predict(embedding, frame=FRAME, prompt=SlicePrompt(box=(20, 30, 60, 80)))
    assert found.logits.shape == (3, 128, 128)

    assert (found.quality.diff() <= 0).all()
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert found.presence == 1.0


def test_a_lone_click_prefers_stable_and_then_large_masks():
    yx = np.indices((32, 32)).transpose(1, 2, 0)
    distance = torch.from_numpy(np.hypot(*(yx - 16).transpose(2, 0, 1))).float()
    small, large, vague = 6 * (4 - distance), 6 * (12 - distance), 0.1 * (12 - distance)
    order = size_and_stability(torch.stack([small, vague, large])).argsort(descending=True)
    assert order.tolist() == [2, 0, 1]


def test_every_kind_of_prompt_changes_the_answer(embedding, decoder):
    click = SlicePrompt(positive=np.array([[40.0, 60.0]]))
    mask = torch.zeros(1, 1, 128, 128)
    mask[..., 40:60, 40:60] = 1
    near = Neighbour(embedding, mask, 5.0)
    asks = [
        {"prompt": click},
        {"prompt": SlicePrompt(positive=np.array([[41.0, 60.0]]))},
        {"prompt": SlicePrompt(positive=click.positive, negative=np.array([[70.0, 60.0]]))},
        {"prompt": SlicePrompt(box=(20, 30, 60, 80))},
        {"prompt": click, "previous": mask * 8 - 4},
        {"neighbour": near},
        {"neighbour": Neighbour(embedding, mask, 20.0)},
        {"neighbour": near, "prompt": click},
    ]
    answers = [decoder.predict(embedding, frame=FRAME, **ask).logits for ask in asks]
    for first in range(len(asks)):
        for second in range(first):
            assert not torch.equal(answers[first], answers[second]), (asks[first], asks[second])


def test_the_same_prompt_gives_the_same_answer(embedding, decoder):
    click = SlicePrompt(positive=np.array([[40.0, 60.0]]))
    first, second = (decoder.predict(embedding, frame=FRAME, prompt=click).logits for _ in range(2))
    assert torch.equal(first, second)


def test_nothing_to_go_by_is_refused(embedding, decoder):
    for prompt in (None, SlicePrompt(), SlicePrompt(negative=np.array([[3.0, 4.0]]))):
        with pytest.raises(ValueError, match="positive point, a box or"):
            decoder.predict(embedding, frame=FRAME, prompt=prompt)


def test_points_become_input_pixels():
    prompt = SlicePrompt(positive=np.array([[10.0, 20.0]]), negative=np.array([[30.0, 40.0]]), box=(1, 2, 3, 4))
    points, kinds = point_tensors(prompt, FRAME)
    assert kinds.tolist() == [1, 2, 3, 4]
    assert points[0].tolist() == [20.5, 40.5]


def test_clicks_and_boxes_are_drawn_where_they_are():
    points = torch.tensor([[[20.5, 40.5], [60.5, 80.5], [10.5, 10.5], [30.5, 50.5]]])
    kinds = torch.tensor([[PointKind.POSITIVE, PointKind.NEGATIVE, PointKind.BOX_TOP_LEFT, PointKind.BOX_BOTTOM_RIGHT]])
    positive, negative, box = draw_prompts(points, kinds, (64, 64))[0]
    assert np.unravel_index(int(positive.argmax()), (64, 64)) == (20, 10)
    assert np.unravel_index(int(negative.argmax()), (64, 64)) == (40, 30)
    rows, columns = torch.nonzero(box, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 25, 5, 15)


def test_padding_points_are_not_drawn():
    drawn = draw_prompts(torch.zeros(1, 3, 2), torch.zeros(1, 3, dtype=torch.long), (32, 32))
    assert drawn.abs().sum() == 0


def test_target_embeddings_are_masked_means():
    image = torch.zeros(1, 128, 8, 8)
    image[:, 0, 2:4, 2:4] = 3.0
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:16, 8:16] = 1
    foreground, ring = describe_target(image, mask)[0]
    assert foreground[0] == pytest.approx(3.0)
    assert ring.abs().sum() == 0
    assert describe_target(image, mask * 0).abs().sum() == 0


def test_closeness_falls_with_distance():
    assert closeness(0.0) == 1.0
    assert closeness(10.0) == pytest.approx(np.exp(-1))
    assert closeness(5.0) > closeness(15.0)
