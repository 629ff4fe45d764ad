"""The interface of every few-shot mask decoder: its input, its answer, and what adaptation may change."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ssmsam.models.closed_form import ClosedFormOptimiser, Regression
from ssmsam.models.encoder import Batch, Embedding

ATLAS_MAPS = 3
"""Maps that say of each cell what registered volumes tell: distance, trust, and how likely the whole is right."""
HELD_OUT = 4
"""Numbers that say how the annotated slices around did when they were held out."""


@dataclass(frozen=True, eq=False)
class DecoderContext(Batch):
    """The context of N (slice, target) pairs: T tokens and M cells of all their support slices.

    ``tokens`` (N, T, D), ``kinds`` (N, T), ``near`` (N, T) closeness of the token's slice to the query, 0 for other
    volumes; ``cells`` (N, M, D), ``places`` (N, M, 2), ``shares`` (N, M), ``cells_near`` (N, M), ``valid`` (N, M);
    ``prior`` (N, 1, S, S) signed distance in cells, ``trust`` (N, 2) its (between, closeness) and ``agreement`` (N, 1),
    all zero without: see :class:`~ssmsam.fewshot.support_bank.Prior`; ``weights`` (N, d) of the online optimiser and
    ``fit`` (N, 1) how well it answers labelled slices that it was not context, in [0, 1]; d is 0 for decoders without
    one. ``atlas`` (N, 3, S, S) is what labelled volumes that were registered with the query's say of each cell: see
    :attr:`~ssmsam.fewshot.atlas.Guide.maps`; zero without any. ``error`` (N, 2, S, S) in [-1, 1] is what the decoder
    missed on the annotated slices around when they were held out, along the anatomy and in place; ``held_out`` (N, 4)
    is what is known of that: the mean Dice of decoder and interpolation there, n / (n + 1) for n slices, and how far
    the query is from the nearest annotated slice, in parts of how far they were; zero without.
    """

    tokens: torch.Tensor
    kinds: torch.Tensor
    near: torch.Tensor
    cells: torch.Tensor
    places: torch.Tensor
    shares: torch.Tensor
    cells_near: torch.Tensor
    valid: torch.Tensor
    prior: torch.Tensor
    trust: torch.Tensor
    agreement: torch.Tensor
    weights: torch.Tensor
    fit: torch.Tensor
    atlas: torch.Tensor
    error: torch.Tensor
    held_out: torch.Tensor


@contextmanager
def same_initial_state() -> Iterator[None]:
    """What a decoder has beside the weights in its file begins with the same numbers in every process: task checkpoints
    say what differs from them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@dataclass(frozen=True, eq=False)
class Corrections:
    """Clicks on a proposal: ``points`` (N, P, 2) in input pixels, ``kinds`` (N, P) of :class:`PointKind`, and the
    proposal's logits ``previous`` (N, 1, S, S)."""

    points: torch.Tensor
    kinds: torch.Tensor
    previous: torch.Tensor

    @classmethod
    def none(cls, prior: torch.Tensor) -> Corrections:
        """No click, no proposal."""
        count = len(prior)
        kinds = torch.zeros(count, 0, dtype=torch.long, device=prior.device)
        return cls(prior.new_zeros(count, 0, 2), kinds, torch.zeros_like(prior))


@dataclass(frozen=True, eq=False)
class Proposal:
    """``logits`` (N, S, S) and ``presence`` logits (N,)."""

    logits: torch.Tensor
    presence: torch.Tensor


@dataclass(frozen=True, eq=False)
class CrossAttentionFeatures(Batch):
    """What the cells of N queries found in the support slices before anything else is known: ``cells`` (N, h*w, D) and
    ``votes`` (N, V, h, w); ``fitted`` (N, 2, h', w') are the logits of the online optimiser and its fit, (N, 0, 1, 1)
    without one. It does not depend on the parameters that adaptation changes, so it is made once."""

    cells: torch.Tensor
    votes: torch.Tensor
    fitted: torch.Tensor


def likeness_votes(image: torch.Tensor, context: DecoderContext, sharpness: float) -> torch.Tensor:
    """The share of the target in the support's cells that each cell of the query looks like.

    Cosines times ``sharpness`` decide how much each support cell counts.

    Args:
        image: (N, D, h, w), the queries' embeddings.
        context: With cells of the same D channels.
        sharpness: Without unit; the larger, the fewer cells count.

    Returns:
        (N, 1, h, w) in [0, 1].
    """
    cells = F.normalize(image.flatten(2).transpose(1, 2), dim=2)
    scores = sharpness * cells @ F.normalize(context.cells, dim=2).transpose(1, 2)
    scores = scores.masked_fill(~context.valid[:, None], -1e4)
    vote = scores.softmax(2) @ context.shares[..., None]
    return vote.transpose(1, 2).unflatten(2, (image.shape[-2], image.shape[-1]))


class TargetDecoder(nn.Module, ABC):
    """Embeddings of queries + DecoderContext (+ :class:`Corrections`) -> :class:`Proposal`. Never sees pixels.

    After Xie et al. (WACV 2024): target embeddings of labelled slices are prompts of a SAM-like mask decoder.
    """

    pretrained: bool = True
    """Whether it learned to segment from labelled slices before any adaptation."""
    enlarges: bool = True
    """Whether it may look at slices in enlarged windows: it has seen such, and encoding slices anew is quick."""
    varies: bool = True
    """Whether adaptation looks at labelled slices in further views, each of which goes through the encoder."""
    moving: bool = False
    """Whether annotated shapes reach its queries along the anatomy, by registration of slices."""
    corrects: bool = False
    """Whether it reads what was missed on annotated slices that were held out."""
    follows: bool = False
    """Whether targets that a single slice shows are followed outwards: where that was measured to gain."""
    stride: int
    """Input pixels per cell of the image embedding."""
    width: int
    """Channels of the image embedding that it reads."""
    logits_side: int
    """Side S of the logits for the encoder's declared input size."""

    def view(self, embedding: Embedding) -> Embedding:
        """What this decoder reads of an encoder's embeddings: what :meth:`cross_attention` and :meth:`forward`
        expect."""
        return embedding

    def online_optimiser(self) -> ClosedFormOptimiser | None:
        """What :meth:`regression` solves with, if this decoder has one."""
        return None

    def moments(self, view: Embedding, known: torch.Tensor) -> torch.Tensor | None:
        """What :meth:`regression` needs of N slices whatever the label; ``known`` (N, 1, S, S) is 0 or 1."""
        return None

    def regression(
        self, view: Embedding, masks: torch.Tensor, known: torch.Tensor, moments: torch.Tensor | None = None
    ) -> Regression | None:
        """What N labelled slices tell the online optimiser; None without one.

        Args:
            view: Of the slices, as :meth:`view` gives it.
            masks: (N, 1, S, S) in [0, 1], the target.
            known: (N, 1, S, S) in [0, 1], where the masks are truth.
            moments: Those of :meth:`moments` for the same ``known``, where they are there already.
        """
        return None

    @abstractmethod
    def cross_attention(self, embedding: Embedding, context: DecoderContext) -> CrossAttentionFeatures:
        """Compare N slices with their support slices: the part of :meth:`forward` that adaptation does not change."""

    def forward(
        self,
        embedding: Embedding,
        context: DecoderContext,
        corrections: Corrections | None = None,
        features: CrossAttentionFeatures | None = None,
    ) -> Proposal:
        """Propose a mask for each of N (slice, target) pairs.

        Args:
            embedding: Of N slices, as :meth:`view` gives it, repeated for several targets of one slice.
            context: What is known of the targets, N each.
            corrections: Clicks on earlier proposals.
            features: Those of :meth:`cross_attention`, where they were kept.

        Returns:
            Logits (N, S, S) and presence logits (N,).
        """
        corrections = Corrections.none(context.prior) if corrections is None else corrections
        features = self.cross_attention(embedding, context) if features is None else features
        return self.decode(embedding, context, corrections, features)

    @abstractmethod
    def decode(
        self, embedding: Embedding, context: DecoderContext, corrections: Corrections, features: CrossAttentionFeatures
    ) -> Proposal:
        """:meth:`forward` with everything given."""

    @abstractmethod
    def adaptable(self) -> list[nn.Parameter]:
        """The parameters that adaptation changes: none on which :meth:`cross_attention` depends."""

    def rated(self) -> list[tuple[list[nn.Parameter], float]]:
        """The same in groups, each with what its learning rate is multiplied by."""
        return [(self.adaptable(), 1.0)]
