"""What the decoder learns from: labelled slices as queries, each with the others as context and never itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from ssmsam.embeddings.embedder import Embedder, stacked
from ssmsam.fewshot.config import AdaptationConfig, SupportBankConfig, ViewConfig
from ssmsam.fewshot.motion import motions
from ssmsam.fewshot.support import LabelledSlice, Support, checked
from ssmsam.fewshot.support_bank import Places, SupportBank, drawn_slices
from ssmsam.models.encoder import Embedding, take
from ssmsam.models.fewshot_decoder import CrossAttentionFeatures, DecoderContext, TargetDecoder
from ssmsam.progress import Progress, silent
from ssmsam.registration.slices import SliceMotion

_BATCH = 8


@dataclass(frozen=True, eq=False)
class View:
    """Slices in one view: their embeddings, and how they were moved, None for not at all."""

    embedding: Embedding
    matrix: torch.Tensor | None = None

    def moved(self, masks: torch.Tensor) -> torch.Tensor:
        """Masks (K, 1, S, S) of the slices as they are, moved like the slices."""
        return masks if self.matrix is None else _moved(masks, self.matrix)


def embedded_views(
    slices: Sequence[LabelledSlice],
    embedder: Embedder,
    *,
    config: ViewConfig,
    seed: int,
    progress: Progress = silent,
) -> list[View]:
    """The slices as they are, from their cached embeddings, and ``config.views`` others, through the encoder."""
    made = [View(stacked([one.embeddings.slice(one.index) for one in slices]))]
    if not config.views:
        return made
    inputs = torch.cat([one.embeddings.inputs([one.index]) for one in slices])
    rng = np.random.default_rng(seed)
    for number in range(config.views):
        progress("views", number, config.views)
        matrix = _matrix(rng, config)
        varied = _moved(inputs, matrix).clamp(0, 1) ** _gamma(rng, config)
        encoded = []
        for batch in varied.split(_BATCH):
            encoded += [embedder.embedding_of(half) for half in embedder.encode(batch)]
        made.append(View(stacked(encoded), matrix))
    progress("views", config.views, config.views)
    return made


def random_move(rng: np.random.Generator, config: ViewConfig) -> tuple[Callable[[torch.Tensor], torch.Tensor], float]:
    """One random view: how images (N, C, h, w) are moved, and the gamma of their contrast."""
    return partial(_moved, matrix=_matrix(rng, config)), _gamma(rng, config)


def _gamma(rng: np.random.Generator, config: ViewConfig) -> float:
    return float(np.exp(rng.uniform(-config.gamma, config.gamma)))


def _matrix(rng: np.random.Generator, config: ViewConfig) -> torch.Tensor:
    """A random similarity of the input, (1, 2, 3) as affine_grid takes it."""
    angle = np.deg2rad(rng.uniform(-config.rotation_deg, config.rotation_deg))
    scale = np.exp(rng.uniform(-config.scale, config.scale))
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    x, y = rng.uniform(-config.shift, config.shift, 2) * 2
    return torch.tensor([[[cos, -sin, x], [sin, cos, y]]], dtype=torch.float32)


def _moved(images: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    grid = F.affine_grid(matrix, [1, 1, *images.shape[-2:]], align_corners=False).to(images.device)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), mode="bilinear", align_corners=False)


_ELSEWHERE = ""
"""The name of no volume."""


@dataclass(frozen=True, eq=False)
class QueryBatch:
    """N queries with their context and what they read of it, their masks and where those are truth (N, 1, S, S)."""

    embedding: Embedding
    context: DecoderContext
    features: CrossAttentionFeatures
    masks: torch.Tensor
    known: torch.Tensor
    judged: bool = False
    """Whether presence can be learned: some slice of the label is known to be without it."""


@dataclass(frozen=True, eq=False)
class AdaptationTask:
    """One label in one view: the bank of its K slices, their embeddings, masks and known (K, 1, S, S)."""

    bank: SupportBank
    embedding: Embedding
    masks: torch.Tensor
    known: torch.Tensor
    decoder: TargetDecoder
    config: SupportBankConfig
    _contexts: dict[tuple, tuple[DecoderContext, CrossAttentionFeatures]] = field(default_factory=dict)

    def query_batch(self, numbers: Sequence[int], *, hidden: Sequence[int] = ()) -> QueryBatch:
        """Some slices as queries, each with all the others but the ``hidden`` as context."""
        return self._query_batch(numbers, [self._context(number, (number, *hidden)) for number in numbers])

    def query_batch_from(
        self, numbers: Sequence[int], other: AdaptationTask, *, hidden: Sequence[int] = ()
    ) -> QueryBatch:
        """The same slices with their context in ``other`` view, as if that were of another volume: for a single
        slice."""
        return self._query_batch(
            numbers, [self._read(number, other.bank, _ELSEWHERE, 0.0, hidden) for number in numbers]
        )

    def _context(self, number: int, without: tuple[int, ...]) -> tuple[DecoderContext, CrossAttentionFeatures]:
        if (number, without) not in self._contexts:
            volume, position = self.bank.volumes[number], float(self.bank.positions[number])
            self._contexts[number, without] = self._read(number, self.bank, volume, position, without)
        return self._contexts[number, without]

    @torch.no_grad()
    def _read(
        self, number: int, bank: SupportBank, volume: str, position: float, without: Sequence[int]
    ) -> tuple[DecoderContext, CrossAttentionFeatures]:
        """A slice's context in a bank as if it were there in that volume, and what it reads of it."""
        descriptors, centres = self.bank.descriptors[number][None], self.bank.centres[number][None]
        context = bank.context_at(volume, [position], descriptors, centres, config=self.config, without=without)
        return context, self.decoder.cross_attention(picked(self.embedding, [number]), context)

    def _query_batch(
        self, numbers: Sequence[int], parts: list[tuple[DecoderContext, CrossAttentionFeatures]]
    ) -> QueryBatch:
        index = torch.tensor(list(numbers), device=self.masks.device)
        return QueryBatch(
            picked(self.embedding, numbers),
            padded([context for context, _ in parts]),
            CrossAttentionFeatures.cat([features for _, features in parts]),
            self.masks[index],
            self.known[index],
            judged=not self.bank.shows.all(),
        )


AdaptationTasks = Mapping[str, Sequence[AdaptationTask]]
"""Label -> its task in every view, the slices as they are first."""


def picked(embedding: Embedding, numbers: Sequence[int]) -> Embedding:
    """Some slices of a batch."""
    return take(embedding, torch.tensor(list(numbers), device=embedding["image"].device))


def tally(answer: torch.Tensor, masks: torch.Tensor, known: torch.Tensor) -> np.ndarray:
    """Twice the overlap of masks (N, S, S) bool with the truth (N, 1, S, S) and the sum of both areas, in known cells:
    (2,)."""
    where = known[:, 0] > 0.5
    answer, truth = answer & where, (masks[:, 0] > 0.5) & where
    return np.array([2 * float((answer & truth).sum()), float(answer.sum() + truth.sum())])


def with_truth(
    query_batch: QueryBatch, bank: SupportBank, numbers: Sequence[int], shares: Sequence[float]
) -> QueryBatch:
    """The same with a share of each query's own signed distance in its prior, where it has one."""
    context = query_batch.context
    truth = torch.from_numpy(bank.distances[list(numbers)])[:, None].to(context.prior)
    share = torch.tensor(shares, device=context.prior.device, dtype=context.prior.dtype) * (context.trust.amax(1) > 0)
    share = share[:, None, None, None]
    return replace(query_batch, context=replace(context, prior=(1 - share) * context.prior + share * truth))


def adaptation_tasks(
    support: Support,
    embedder: Embedder,
    decoder: TargetDecoder,
    *,
    config: AdaptationConfig,
    progress: Progress = silent,
) -> AdaptationTasks:
    """Label -> its labelled slices in every view, as they are first. The encoder runs for the views and not after."""
    support = checked(support)
    unique: dict[tuple[str, int], LabelledSlice] = {}
    for slices in support.values():
        unique |= {(one.volume, one.index): one for one in slices}
    varied = config.views if decoder.varies else replace(config.views, views=0)
    views = embedded_views(list(unique.values()), embedder, config=varied, seed=config.seed, progress=progress)
    rows = {key: row for row, key in enumerate(unique)}
    encoded = [_as_read(list(unique.values()), view, decoder) for view in views]
    moved = motions(list(unique.values()), progress=progress) if decoder.moving else {}
    made: dict[str, list[AdaptationTask]] = {}
    for label, slices in support.items():
        numbers = [rows[one.volume, one.index] for one in slices]
        made[label] = [_adaptation_task(slices, *one, numbers, decoder, config.bank, moved) for one in encoded]
    return made


@torch.no_grad()
def _as_read(
    slices: Sequence[LabelledSlice], view: View, decoder: TargetDecoder
) -> tuple[View, Embedding, torch.Tensor | None]:
    """A view as a decoder reads it, and the moments of its slices where these are known as a whole."""
    embedding = _channels_last(decoder.view(view.embedding))
    device = embedding["image"].device
    _, whole, _ = drawn_slices([replace(one, known=None) for one in slices], decoder.logits_side, device)
    return view, embedding, decoder.moments(embedding, view.moved(whole))


def _adaptation_task(
    slices: Sequence[LabelledSlice],
    view: View,
    everything: Embedding,
    moments: torch.Tensor | None,
    rows: Sequence[int],
    decoder: TargetDecoder,
    config: SupportBankConfig,
    moved: Mapping[str, SliceMotion],
) -> AdaptationTask:
    side = decoder.logits_side
    masks, known, unknown = drawn_slices(slices, side, everything["image"].device)
    embedding = picked(everything, rows)
    if moments is not None:
        moments = moments[list(rows)] if all(one.known is None for one in slices) else None
    masks, known = view.moved(masks), view.moved(known)
    bank = SupportBank.from_tensors(
        embedding["image"],
        masks,
        known,
        unknown=view.moved(unknown),
        stride=decoder.stride,
        places=Places.of(slices, side=side, motions=moved if view.matrix is None else {}),
        regression=decoder.regression(embedding, masks, known, moments),
    )
    return AdaptationTask(bank, embedding, masks, known, decoder, config)


def _channels_last(embedding: Embedding) -> Embedding:
    """The same numbers in the order in memory that training's convolutions are fastest with."""
    return {
        "image": embedding["image"].contiguous(memory_format=torch.channels_last),
        "levels": [level.contiguous(memory_format=torch.channels_last) for level in embedding["levels"]],
    }


def padded(several: Sequence[DecoderContext]) -> DecoderContext:
    """The contexts of several queries as one batch; missing tokens and cells count as not given."""
    fields = {name: [getattr(one, name) for one in several] for name in vars(several[0])}
    return DecoderContext(**{name: torch.cat(_of_one_length(tensors)) for name, tensors in fields.items()})


def _of_one_length(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    longest = max(tensor.shape[1] for tensor in tensors)
    return [
        torch.cat([tensor, tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])], dim=1)
        for tensor in tensors
    ]
