"""SSM-SAM's full mode: adapters inside the frozen encoder learn from the labelled slices, together with the decoder.

For SAM the adapters of Zhang et al. (WACV 2024), which are the explicit visual prompts of Liu et al. (CVPR 2023): what
a high-pass filter leaves of the image, and the patch embedding, are narrowed, joined, and added to the tokens before
each block. For encoders that are pyramids, the small one and LiteMedSAM's, the equivalent: after each stage the
features and the filtered image are narrowed, joined, widened again, and added. The published adapters begin at random;
ours change nothing until they are trained. Every step encodes the support anew: that is what makes this mode slow, and
why the product adapts on cached embeddings (:func:`ssmsam.fewshot.pipeline.adapt`). It gained nothing there.
"""

from __future__ import annotations

import copy
import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.embeddings.embedder import Embedder
from ssmsam.fewshot.adaptation import proposal_loss, query_slices, rate
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import AdaptationConfig
from ssmsam.fewshot.episodes import AdaptationTask, adaptation_tasks, random_move, with_truth
from ssmsam.fewshot.estimate import check_support, held_out_answers
from ssmsam.fewshot.pipeline import estimate_card, support_card
from ssmsam.fewshot.support import LabelledSlice, Support, checked
from ssmsam.fewshot.support_bank import Places, SupportBank, drawn_slices
from ssmsam.models.encoder import Embedding, Encoder
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.sam_encoder import LiteMedSamEncoder, SamEncoder
from ssmsam.models.small_encoder import STAGES, SmallEncoder
from ssmsam.progress import Progress, silent

LOW_SHARE = 0.25
"""Share of the spectrum, around its middle, that the high-pass filter takes away."""
NARROWING = 32
"""A SAM adaptor is this many times narrower than the tokens."""
NARROW = 8
"""Channels of an adaptor in a pyramid."""


def high_pass(slices: torch.Tensor) -> torch.Tensor:
    """What (B, C, H, W) are without their low frequencies: absolute values, the same shape."""
    height, width = slices.shape[-2:]
    half = int((height * width * LOW_SHARE) ** 0.5 // 2)
    spectrum = torch.fft.fftshift(torch.fft.fft2(slices, norm="forward"), dim=(-2, -1))
    keep = torch.ones(height, width, device=slices.device)
    keep[height // 2 - half : height // 2 + half, width // 2 - half : width // 2 + half] = 0
    filtered = torch.fft.ifft2(torch.fft.ifftshift(spectrum * keep, dim=(-2, -1)), norm="forward")
    return filtered.real.abs()


Adaptor = Callable[[int, torch.Tensor], torch.Tensor]
"""``adaptor(stage, features)`` -> the features that go on, (B, C, h, w) or tokens (B, h, w, C)."""


@contextmanager
def adapting(stages: Sequence[nn.Module], adaptor: Adaptor, *, before: bool = False) -> Iterator[None]:
    """In this block an adaptor changes what each stage answers, or what it is asked, ``before`` it."""

    def after_stage(number: int) -> Callable[..., torch.Tensor]:
        return lambda stage, given, answer: adaptor(number, answer)

    def before_stage(number: int) -> Callable[..., torch.Tensor]:
        return lambda stage, given: adaptor(number, *given)

    hooks = [
        stage.register_forward_pre_hook(before_stage(number))
        if before
        else stage.register_forward_hook(after_stage(number))
        for number, stage in enumerate(stages)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


Base = TypeVar("Base", bound=Encoder)


class AdaptedEncoder(Encoder, Generic[Base]):
    """A frozen encoder with adapters. Only :meth:`adapters` train; ``base`` is shared, not copied."""

    def __init__(self, base: Base) -> None:
        super().__init__()
        self._base = [base]  # not a submodule: its weights are neither ours to save nor to train
        self.spec = base.spec

    @property
    def base(self) -> Base:
        return self._base[0]

    @property
    def weights_sha256(self) -> str:  # type: ignore[override]
        """Of the encoder and its adapters together: embeddings of another state are never taken for these."""
        sha = hashlib.sha256(self.base.weights_sha256.encode())
        for name, tensor in sorted(self.state_dict().items()):
            sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()

    @abstractmethod
    def encode(self, slices: torch.Tensor) -> Embedding: ...

    def compress(self, embedding: Embedding) -> Embedding:
        return self.base.compress(embedding)

    def expand(self, kept: Embedding) -> Embedding:
        return self.base.expand(kept)


class AdaptedPyramid(AdaptedEncoder[Base]):
    """An encoder with an adaptor after some of its stages; ``stages`` maps their numbers to their channels."""

    def __init__(self, base: Base, stages: Mapping[int, int]) -> None:
        super().__init__(base)
        self.down = nn.ModuleDict({str(stage): nn.Conv2d(channels, NARROW, 1) for stage, channels in stages.items()})
        self.filtered = nn.ModuleDict({str(stage): nn.Conv2d(3, NARROW, 3, padding=1) for stage in stages})
        self.up = nn.ModuleDict(
            {str(stage): _zero(nn.Conv2d(NARROW, channels, 1)) for stage, channels in stages.items()}
        )

    def adaptor(self, slices: torch.Tensor) -> Adaptor:
        """What the adapters add to the features of these slices."""
        edges = high_pass(slices)

        def adaptor(stage: int, features: torch.Tensor) -> torch.Tensor:
            name = str(stage)
            if name not in self.up:
                return features
            edge_features = self.filtered[name](F.adaptive_avg_pool2d(edges, (features.shape[-2], features.shape[-1])))
            return features + self.up[name](F.gelu(self.down[name](features) + edge_features))

        return adaptor


class AdaptedSmallEncoder(AdaptedPyramid[SmallEncoder]):
    """The small encoder with an adaptor after each stage."""

    def __init__(self, base: SmallEncoder) -> None:
        super().__init__(base, {stage: channels for stage, (_, channels) in enumerate(STAGES)})

    def encode(self, slices: torch.Tensor) -> Embedding:
        base = self.base
        with adapting((base.stem, base.stage4, base.stage8, base.stage16), self.adaptor(slices)):
            return base(slices)


class AdaptedLiteMedSamEncoder(AdaptedPyramid[LiteMedSamEncoder]):
    """LiteMedSAM's encoder with an adaptor after each stage but the first: that one has a cell for every pixel, and a
    gradient through what follows it would need gigabytes."""

    def __init__(self, base: LiteMedSamEncoder) -> None:
        widths = base.sam.image_encoder.config.widths
        super().__init__(base, {stage: widths[stage] for stage in range(1, len(widths))})

    def encode(self, slices: torch.Tensor) -> Embedding:
        adaptor = self.adaptor(slices)

        def on_maps(stage: int, features: torch.Tensor) -> torch.Tensor:
            return adaptor(stage, features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        with adapting([stage.blocks[-1] for stage in self.base.sam.image_encoder.layers], on_maps):
            return self.base.encode(slices)


class AdaptedSamEncoder(AdaptedEncoder[SamEncoder]):
    """SAM's encoder with an adaptor before each block; 1/32 of the tokens' width, as published."""

    def __init__(self, base: SamEncoder) -> None:
        super().__init__(base)
        vit = base.sam.image_encoder
        patch, width = vit.patch_embed.proj, vit.patch_embed.proj.out_channels
        narrow = width // NARROWING
        self.embedded = nn.Linear(width, narrow)
        self.filtered = nn.Conv2d(3, narrow, patch.kernel_size, stride=patch.stride)
        self.each = nn.ModuleList(nn.Linear(narrow, narrow) for _ in vit.blocks)
        self.shared = nn.Linear(narrow, width)
        for layer in (self.embedded, self.filtered, *self.each):
            nn.init.trunc_normal_(layer.weight, std=0.02)
        _zero(self.shared)

    def encode(self, slices: torch.Tensor) -> Embedding:
        edges = self.filtered(high_pass(slices)).permute(0, 2, 3, 1)
        with torch.no_grad():
            patches = self.base.sam.image_encoder.patch_embed(slices)
        narrow = self.embedded(patches) + edges

        def adaptor(block: int, tokens: torch.Tensor) -> torch.Tensor:
            return tokens + self.shared(F.gelu(self.each[block](narrow)))

        with adapting(self.base.sam.image_encoder.blocks, adaptor, before=True):
            return self.base.encode(slices)


def adapted_encoder(base: Encoder) -> AdaptedEncoder:
    """The encoder with adapters that do nothing yet. Raises TypeError for an encoder that has no place for them."""
    if isinstance(base, SmallEncoder):
        return AdaptedSmallEncoder(base)
    if isinstance(base, LiteMedSamEncoder):
        return AdaptedLiteMedSamEncoder(base)
    if isinstance(base, SamEncoder):
        return AdaptedSamEncoder(base)
    raise TypeError(f"there are no adapters for {type(base).__name__}: use the mode without them")


def _zero(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True, eq=False)
class Online:
    """The encoder with its adapters, an embedder around it, and the task for the embeddings that it makes."""

    encoder: AdaptedEncoder
    embedder: Embedder
    task: AdaptedTask
    losses: tuple[float, ...]


def adapt_online(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    config: AdaptationConfig,
    progress: Progress = silent,
) -> Online:
    """Adapt encoder and decoder to the labelled slices; both stay as they are, copies and adapters change.

    Raising :class:`~ssmsam.progress.Cancelled` in ``progress("adapt", done, total)`` stops between two steps. Raises
    :class:`~ssmsam.fewshot.support.NothingToLearn`, and TypeError for an encoder without a place for adapters. Always
    by AdamW, whatever ``config.optimiser`` says, and every step sees a new view.
    """
    support = checked(support)
    encoder = adapted_encoder(embedder.encoder).to(embedder.device)
    fitted = copy.deepcopy(decoder).train().requires_grad_(False)
    learned = [p.requires_grad_(True) for p in (*encoder.parameters(), *fitted.adaptable())]
    optimiser = torch.optim.AdamW(learned, lr=config.learning_rate, weight_decay=config.weight_decay)
    rng = np.random.default_rng(config.seed)
    losses: list[float] = []
    started = time.perf_counter()
    for step in range(config.steps):
        progress("adapt", step, config.steps)
        if time.perf_counter() - started > config.budget_s:
            break
        for group in optimiser.param_groups:
            group["lr"] = rate(step, config)
        label = list(support)[step % len(support)]
        losses.append(_step(support[label], encoder, fitted, optimiser, rng, config))
    progress("adapt", config.steps, config.steps)
    encoder.eval().requires_grad_(False)
    fitted.eval().requires_grad_(False)
    anew = Embedder(encoder=encoder, store=embedder.store, bfloat16=embedder.bfloat16)
    task = _task(support, anew, fitted, config, steps=len(losses), seconds=time.perf_counter() - started)
    return Online(encoder, anew, task, tuple(losses))


def _step(
    slices: Sequence[LabelledSlice],
    encoder: AdaptedEncoder,
    decoder: TargetDecoder,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    config: AdaptationConfig,
) -> float:
    """One step on one label: its slices in a new view, some of them as queries with the others as context."""
    adaptation_task = _adaptation_task(slices, encoder, decoder, rng, config)
    waiting = query_slices(adaptation_task.bank)
    numbers = sorted(int(n) for n in rng.permutation(waiting)[: config.batch])
    query_batch = adaptation_task.query_batch(numbers)
    shares = rng.uniform(0, config.prior_truth, len(numbers)).tolist()
    query_batch = with_truth(query_batch, adaptation_task.bank, numbers, shares)
    proposal = decoder(query_batch.embedding, query_batch.context, features=query_batch.features)
    loss = proposal_loss(proposal, query_batch.masks, query_batch.known, judge_presence=query_batch.judged)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], config.clip_norm)
    optimiser.step()
    return float(loss.detach())


def _adaptation_task(
    slices: Sequence[LabelledSlice],
    encoder: AdaptedEncoder,
    decoder: TargetDecoder,
    rng: np.random.Generator,
    config: AdaptationConfig,
) -> AdaptationTask:
    """All slices of a label, encoded now, with a gradient to the adapters."""
    side, device = decoder.logits_side, next(encoder.parameters()).device
    moved, gamma = random_move(rng, config.views)
    inputs = torch.cat([one.embeddings.inputs([one.index]) for one in slices]).to(device)
    embedding = encoder.encode(moved(inputs).clamp(0, 1) ** gamma)
    masks, known, unknown = drawn_slices(slices, side, device)
    masks, known = moved(masks), moved(known)
    bank = SupportBank.from_tensors(
        embedding["image"].detach(),
        masks,
        known,
        unknown=moved(unknown),
        stride=decoder.stride,
        places=Places.of(slices, side=side),
    )
    return AdaptationTask(bank, embedding, masks, known, decoder, config.bank)


def _task(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    config: AdaptationConfig,
    *,
    steps: int,
    seconds: float,
) -> AdaptedTask:
    """The labelled slices as the adapted encoder sees them, with the fitted decoder."""
    reencoded = {label: [reopened(one, embedder) for one in slices] for label, slices in support.items()}
    as_they_are = replace(config, views=replace(config.views, views=0))
    tasks = adaptation_tasks(reencoded, embedder, decoder, config=as_they_are)
    checks = {label: check_support(views[0], held_out_answers(decoder, views[0])) for label, views in tasks.items()}
    fitting = {"settings": asdict(config), "adapted": True, "steps": steps, "seconds": round(seconds, 2)}
    card = {**support_card(support, embedder), **fitting, **estimate_card(checks, {})}
    return AdaptedTask(decoder, {label: views[0].bank for label, views in tasks.items()}, card)


def reopened(one: LabelledSlice, embedder: Embedder) -> LabelledSlice:
    """The same labelled slice, with the embeddings that another embedder makes of its volume."""
    opened = embedder.open(one.embeddings.volume, recipe=one.embeddings.recipe, plane=one.embeddings.plane)
    return replace(one, embeddings=opened)
