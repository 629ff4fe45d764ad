"""The fused few-shot decoder: it begins as the decoder it was made from, and hears the online optimiser."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ssmsam.embeddings.embedder import slice_descriptors
from ssmsam.fewshot.config import SupportBankConfig
from ssmsam.fewshot.support_bank import Places, SupportBank
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import DecoderContext
from ssmsam.models.fewshot_fused import IMAGE, STAGES, FusedTargetNetwork
from ssmsam.models.fewshot_small import TargetNetwork

SLICES = 5


def embedding(seed: int = 0) -> Embedding:
    """Of slices of 64 pixels: the pretrained maps and the small encoder's pyramid."""
    generator = torch.Generator().manual_seed(seed)

    def maps(channels: int, side: int) -> torch.Tensor:
        return torch.randn(SLICES, channels, side, side, generator=generator)

    own = [maps(STAGES[1], 16), maps(STAGES[2], 8), maps(STAGES[3], 8)]
    image = maps(STAGES[0], 16)
    image[:, 0] *= 4  # stands out among as many features as a slice has cells
    return {"image": image, "levels": [*own, maps(16, 32), maps(48, 16), maps(128, 8)]}


def masks_of(one: Embedding) -> torch.Tensor:
    """What the first pretrained channel shows."""
    return (one["image"][:, :1] > 3.2).float().repeat_interleave(2, 2).repeat_interleave(2, 3)


def network(seed: int = 0) -> FusedTargetNetwork:
    torch.manual_seed(seed)
    return FusedTargetNetwork().eval().requires_grad_(False)


def context_of(one: FusedTargetNetwork, view: Embedding, masks: torch.Tensor, *, supports: int = 4) -> DecoderContext:
    places = Places(
        volumes=("volume",) * supports,
        positions=np.arange(supports) * 5.0,
        centres=np.zeros((supports, 2)),
        cell_mm=np.ones(supports),
    )
    known = torch.ones_like(masks)[:supports]
    bank = SupportBank.from_tensors(
        view["image"][:supports],
        masks[:supports],
        known,
        stride=one.stride,
        places=places,
        regression=one.regression(take(view, torch.arange(supports)), masks[:supports], known),
    )
    descriptors = slice_descriptors(view["image"][supports:])
    return bank.context_at("volume", [7.0], descriptors, np.zeros((1, 2)), config=SupportBankConfig())


def test_before_training_it_is_the_decoder_that_it_was_made_from() -> None:
    fused = network()
    plain = TargetNetwork().eval()
    plain.load_state_dict({name: tensor for name, tensor in fused.state_dict().items() if name in plain.state_dict()})
    found = embedding()
    view, masks = fused.view(found), masks_of(found)
    context = context_of(fused, view, masks)
    query = take(view, torch.tensor([4]))
    torch.testing.assert_close(view["image"], found["levels"][5])
    expected = plain({"image": query["image"], "levels": query["levels"][:2]}, context)
    answer = fused(query, context)
    torch.testing.assert_close(answer.logits, expected.logits)
    torch.testing.assert_close(answer.presence, expected.presence)


def test_the_online_optimiser_finds_what_pretrained_features_show_and_is_followed() -> None:
    fused = network()
    found = embedding()
    view, masks = fused.view(found), masks_of(found)
    context = context_of(fused, view, masks)
    query = take(view, torch.tensor([4]))
    fitted = fused.cross_attention(query, context).fitted
    truth = masks[4, 0, ::2, ::2] > 0.5
    assert ((fitted[0, 0] > 0) == truth).float().mean() > 0.85
    fused.follow.bias.fill_(5.0)
    followed = fused(query, context).logits[0, ::2, ::2] > 0
    assert (followed == truth).float().mean() > 0.8
    unweighted = fused(
        query, replace(context, weights=torch.zeros_like(context.weights), fit=torch.zeros_like(context.fit))
    )
    assert ((unweighted.logits[0, ::2, ::2] > 0) == truth).float().mean() < 0.8


def test_the_interpolated_shape_is_followed_where_it_is_weighed_so_and_only_between_annotated_slices() -> None:
    fused = network()
    found = embedding()
    view = fused.view(found)
    context = context_of(fused, view, masks_of(found))
    query = take(view, torch.tensor([4]))
    before = fused(query, context).logits
    fused.shape.weigh.bias.fill_(50.0)
    shape = context.prior[:, 0] > 0
    assert shape.any() and not torch.equal(before > 0, shape)
    torch.testing.assert_close(fused(query, context).logits > 0, shape)
    nowhere = replace(context, **{n: torch.zeros_like(getattr(context, n)) for n in ("prior", "trust", "agreement")})
    weighed = fused(query, nowhere).logits
    fused.shape.weigh.bias.zero_()
    torch.testing.assert_close(weighed, fused(query, nowhere).logits)


def test_what_was_missed_on_held_out_slices_is_put_right_and_nothing_where_none_was() -> None:
    fused = network()
    found = embedding()
    view = fused.view(found)
    context = context_of(fused, view, masks_of(found))
    query = take(view, torch.tensor([4]))
    before = fused(query, context).logits
    fused.correction.weigh.bias.fill_(25.0)
    torch.testing.assert_close(fused(query, context).logits, before, rtol=0, atol=0)
    error = torch.zeros_like(context.error)
    error[..., :8, :8], error[..., 8:, 8:] = 1, -1
    after = fused(query, replace(context, error=error)).logits
    assert (after[:, :8, :8] > 0).all() and (after[:, 8:, 8:] < 0).all()
    torch.testing.assert_close(after[:, :8, 8:], before[:, :8, 8:])


def test_a_kept_reading_gives_the_same_answer() -> None:
    fused = network()
    found = embedding()
    view = fused.view(found)
    context = context_of(fused, view, masks_of(found))
    query = take(view, torch.tensor([4]))
    torch.testing.assert_close(
        fused(query, context, features=fused.cross_attention(query, context)).logits, fused(query, context).logits
    )


def test_an_output_handed_out_whole_is_what_was_kept() -> None:
    fused = network()
    basis = torch.linalg.qr(torch.randn(IMAGE, IMAGE))[0][:, : STAGES[0]]
    fused.image_basis.copy_(basis)
    fused.image_mean.fill_(0.3)
    kept = embedding()
    whole: Embedding = {
        "image": torch.einsum("bkhw,ck->bchw", kept["image"], basis) + 0.3,
        "levels": kept["levels"],
    }
    torch.testing.assert_close(fused.features(whole), fused.features(kept), atol=1e-4, rtol=1e-4)


def test_adaptation_leaves_what_readings_were_made_with() -> None:
    fused = network()
    found = embedding()
    view = fused.view(found)
    context = context_of(fused, view, masks_of(found))
    query = take(view, torch.tensor([4]))
    before = fused.cross_attention(query, context)
    for parameter in fused.adaptable():
        parameter.add_(0.1)
    after = fused.cross_attention(fused.view(take(found, torch.tensor([4]))), context)
    torch.testing.assert_close(after.fitted, before.fitted)
    torch.testing.assert_close(after.cells, before.cells)
