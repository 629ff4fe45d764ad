"""First-order MAML: the gradient of a hand-computed case, and training from labelled slices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted import ORGAN, QUICK, draw_volume, labelled, state_digest, tasks_of, two_labels
from pocket_ssm import pocket_ssm
from torch import nn

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import proposal_loss
from ssmsam.fewshot.config import AdaptationConfig, MetaConfig
from ssmsam.fewshot.meta_learning import Episode, MetaLearner, episodes, meta_train, splits
from ssmsam.fewshot.support import NothingToLearn
from ssmsam.models.encoder import Embedding
from ssmsam.models.fewshot_decoder import Corrections, CrossAttentionFeatures, DecoderContext, Proposal, TargetDecoder
from ssmsam.progress import Cancelled

PLAIN = AdaptationConfig(
    steps=1, budget_s=float("inf"), batch=2, optimiser="sgd", learning_rate=0.5, warm_up=1, weight_decay=0.0,
    clip_norm=1e9, prior_truth=0.0,
)  # fmt: skip
SHORT = MetaConfig(steps=2, tasks=2, inner=replace(QUICK, steps=1, warm_up=1), budget_s=float("inf"))


class OneNumber(TargetDecoder):
    """Says the same logit everywhere: its loss and gradient can be computed by hand."""

    stride, logits_side = 8, 32

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(logit), requires_grad=False)

    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        count, _, height, width = embedding["image"].shape
        return CrossAttentionFeatures(
            torch.zeros(count, height * width, 1), torch.zeros(count, 1, height, width), torch.zeros(count, 0, 1, 1)
        )

    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        count = len(embedding["image"])
        return Proposal(self.logit.expand(count, 32, 32), torch.zeros(count))

    def adaptable(self) -> list[nn.Parameter]:
        return [self.logit]


def slope_at(logit: float, masks: torch.Tensor, known: torch.Tensor) -> float:
    """The derivative of the loss, by central differences in double precision."""
    step = 1e-5

    def loss(value: float) -> float:
        logits = torch.full((len(masks), 32, 32), value, dtype=torch.float64)
        proposal = Proposal(logits, torch.zeros(len(masks), dtype=torch.float64))
        return float(proposal_loss(proposal, masks.double(), known.double(), judge_presence=False))

    return (loss(logit + step) - loss(logit - step)) / (2 * step)


def test_the_gradient_is_that_of_the_adapted_weights(embedder: Embedder) -> None:
    decoder = OneNumber(-0.3)
    views = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder)["organ"]
    adaptation_task = views[0]
    episode = Episode("organ", [adaptation_task], (1,))
    learner = MetaLearner(decoder, config=MetaConfig(inner=PLAIN, tasks=1, clip_norm=1e9))
    learner.step([episode], seed=0)
    adapted = -0.3 - 0.5 * slope_at(-0.3, adaptation_task.masks[[0, 2]], adaptation_task.known[[0, 2]])
    assert adapted != pytest.approx(-0.3, abs=0.01)
    expected = slope_at(adapted, adaptation_task.masks[[1]], adaptation_task.known[[1]])
    assert float(decoder.logit.grad) == pytest.approx(expected, rel=1e-3)


def test_episodes_share_the_gradient_evenly(embedder: Embedder) -> None:
    decoder = OneNumber(0.2)
    adaptation_task = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (2, 4, 6))}, embedder, decoder)[
        "organ"
    ][0]
    gradients = []
    for queries in ([(0,)], [(1,)], [(0,), (1,)]):
        fresh = OneNumber(0.2)
        learner = MetaLearner(fresh, config=MetaConfig(inner=PLAIN, clip_norm=1e9))
        learner.step([Episode("organ", [replace(adaptation_task, decoder=fresh)], query) for query in queries], seed=0)
        gradients.append(float(fresh.logit.grad))
    assert gradients[2] == pytest.approx((gradients[0] + gradients[1]) / 2, rel=1e-4)


def test_a_start_is_learned_and_the_old_one_stays(embedder: Embedder) -> None:
    decoder = pocket_ssm()
    before = state_digest(decoder)
    reported: list[tuple[str, int, int]] = []
    trained = meta_train(
        two_labels(embedder), embedder, decoder, config=SHORT, progress=lambda *now: reported.append(now)
    )
    assert state_digest(decoder) == before != state_digest(trained.decoder)
    assert len(trained.losses) == SHORT.steps
    assert all(np.isfinite(trained.losses))
    assert ("meta", 1, 2) in reported and reported[-1] == ("meta", 2, 2)
    assert not any(parameter.requires_grad for parameter in trained.decoder.parameters())


def test_the_query_loss_falls(embedder: Embedder) -> None:
    config = replace(SHORT, steps=12, outer_rate=1e-3)
    losses = meta_train(two_labels(embedder), embedder, pocket_ssm(), config=config).losses
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_it_can_be_stopped(embedder: Embedder) -> None:
    def progress(phase: str, done: int, total: int) -> None:
        if phase == "meta" and done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        meta_train(two_labels(embedder), embedder, pocket_ssm(), config=SHORT, progress=progress)


def test_too_few_slices_are_refused_with_advice(embedder: Embedder) -> None:
    with pytest.raises(NothingToLearn, match="annotate more slices"):
        meta_train(two_labels(embedder, (3, 4)), embedder, pocket_ssm(), config=SHORT)


def test_queries_are_never_shown(embedder: Embedder) -> None:
    first, second = draw_volume(), draw_volume(seed=4)
    slices = [*labelled(embedder, first, ORGAN, (2, 3, 4, 6)), *labelled(embedder, second, ORGAN, (2, 4, 5))]
    decoder = pocket_ssm()
    tasks = tasks_of({"organ": slices}, embedder, decoder)
    rng, kinds = np.random.default_rng(0), set()
    stream = episodes(tasks, rng)
    for _ in range(30):
        episode = next(stream)
        bank = episode.views[0].bank
        kinds.add(frozenset(bank.volumes[n] for n in episode.query))
        context = episode.query_batch(most=10).context
        hidden = bank.encoding[torch.tensor(episode.query)].tokens.flatten(0, 1)
        given = context.tokens[context.kinds > 0]
        reported = hidden[bank.encoding.kinds[list(episode.query)].flatten() > 0]
        assert torch.cdist(given, reported).min() > 1e-6
    assert {len(kind) for kind in kinds} == {1, 2}, "some queries are another patient, some are between the support"


def test_a_split_leaves_enough_to_learn_from(embedder: Embedder) -> None:
    decoder = pocket_ssm()
    bank = tasks_of({"organ": labelled(embedder, draw_volume(), ORGAN, (0, 3, 4, 5))}, embedder, decoder)["organ"][
        0
    ].bank
    rng = np.random.default_rng(0)
    for _ in range(20):
        query = splits(bank, rng)
        if query is not None:
            assert bank.shows[np.setdiff1d(np.arange(4), query)].sum() >= 2
            assert bank.shows[list(query)].any()
