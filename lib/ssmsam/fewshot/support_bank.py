"""What is kept of the labelled slices of one label, and what of it a query gets as context."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from ssmsam import ops
from ssmsam.embeddings.embedder import VolumeEmbeddings, slice_descriptors, stacked
from ssmsam.fewshot.config import PRIOR_REACH, SMALL_PIECE, SupportBankConfig
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.models.closed_form import Regression, SolvedRegression
from ssmsam.models.fewshot_decoder import ATLAS_MAPS, HELD_OUT, DecoderContext, TargetDecoder
from ssmsam.models.frame import draw_mask
from ssmsam.models.prompt_small import closeness
from ssmsam.models.support_encoding import SupportEncoding, TokenKind, describe
from ssmsam.ops import components
from ssmsam.registration.slices import SliceMotion


@dataclass(frozen=True, eq=False)
class Prior:
    """The prior of the neighbouring annotated slices: shape interpolation, as one more prompt.

    A generalisation of the blurred support mask that SSM-SAM (Zhang et al., 2024) hands to its decoder: the signed
    distances of the annotated slices below and above, interpolated, with how far they can be trusted.

    ``distance`` (S, S) signed distance in cells, positive inside, interpolated along the anatomy's motion where that is
    known; ``between`` 1 when annotated slices are on both
    sides, else 0; ``closeness`` in (0, 1], 0 when there is no annotated slice in the volume; ``agreement`` is the Dice
    of the masks on both sides, in [0, 1], 0 with one side only: the less the shape changes from the one to the other,
    the less interpolation can be wrong, whatever the distance.
    """

    distance: np.ndarray
    between: float
    closeness: float
    agreement: float


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Cells to the border of a mask (S, S) bool, positive inside, within -PRIOR_REACH and PRIOR_REACH; float32."""
    if not mask.any():
        return np.full(mask.shape, -PRIOR_REACH, dtype=np.float32)
    # the border runs between pixels: half a cell on either side of it
    distance = ops.signed_distance(mask) - np.where(mask, 0.5, -0.5)
    return np.clip(distance, -PRIOR_REACH, PRIOR_REACH).astype(np.float32)


def interpolated(
    distances: Mapping[float, np.ndarray], position: float, shape: tuple[int, int], motion: SliceMotion | None = None
) -> Prior:
    """The prior at ``position`` from signed distances at other positions, all in millimetres along the volume; along
    its ``motion`` where that is known."""
    if not distances:
        return Prior(np.zeros(shape, dtype=np.float32), 0.0, 0.0, 0.0)
    below = max((z for z in distances if z <= position), default=None)
    above = min((z for z in distances if z >= position), default=None)
    if below is None or above is None:
        near = below if below is not None else above
        assert near is not None
        return Prior(distances[near], 0.0, closeness(near - position), 0.0)
    if above == below:
        return Prior(distances[below], 1.0, 1.0, 1.0)
    share = (position - below) / (above - below)
    lower, upper = (_carried(distances, mm, position, motion) for mm in (below, above))
    mixed = ((1 - share) * lower + share * upper).astype(np.float32)
    agreement = float(ops.dice(lower > 0, upper > 0))
    return Prior(mixed, 1.0, closeness(min(position - below, above - position)), agreement)


def _carried(maps: Mapping[float, np.ndarray], start: float, stop: float, motion: SliceMotion | None) -> np.ndarray:
    return maps[start] if motion is None else motion.carried(maps[start][None], start, stop)[0]


def interpolated_error(
    errors: Mapping[float, np.ndarray], position: float, shape: tuple[int, int], motion: SliceMotion | None = None
) -> np.ndarray:
    """The error at ``position`` from those of slices at other positions, linear between two of them and that of the
    nearest beyond: regression kriging (Odeh et al., 1995) with the decoder as the regression. (2, S, S): along the
    anatomy's ``motion`` where that is known, and without it."""
    if not errors:
        return np.zeros((2, *shape), dtype=np.float32)
    below = max((z for z in errors if z <= position), default=min(errors))
    above = min((z for z in errors if z >= position), default=max(errors))
    share = (position - below) / (above - below) if above > below else 0.0
    both = [[_carried(errors, mm, position, known) for mm in (below, above)] for known in (motion, None)]
    return np.stack([(1 - share) * lower + share * upper for lower, upper in both]).astype(np.float32)


def gathered_context(
    encoding: SupportEncoding,
    supports: torch.Tensor,
    near: torch.Tensor,
    prior: torch.Tensor,
    trust: torch.Tensor,
    *,
    moves: torch.Tensor | None = None,
    weights: torch.Tensor | None = None,
    fit: torch.Tensor | None = None,
    atlas: torch.Tensor | None = None,
    agreement: torch.Tensor | None = None,
    error: torch.Tensor | None = None,
    held_out: torch.Tensor | None = None,
) -> DecoderContext:
    """Gather the contexts of N queries from K encoded slices.

    ``supports`` (N, S) numbers among the K, -1 for none; ``near`` (N, S) closeness of each to the query; ``prior``
    (N, 1, H, W), ``trust`` (N, 2) and ``agreement`` (N, 1) as in DecoderContext. ``moves`` (N, S, 2) are
    added to the places of each slice's cells, (x, y) in input pixels. ``weights`` and ``fit`` are those of the online
    optimiser, ``atlas`` the maps of registered volumes, ``error`` and ``held_out`` what is known of held-out slices.
    """
    given = supports >= 0
    gathered = encoding[supports.clamp(min=0).flatten()]
    count, several = supports.shape

    def per_query(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(0, (count, several)).flatten(1, 2)

    def spread(x: torch.Tensor, times: int) -> torch.Tensor:
        return x[:, :, None].expand(-1, -1, times).flatten(1)

    tokens, cells = gathered.kinds.shape[1], gathered.valid.shape[1]
    places = per_query(gathered.places)
    if moves is not None:
        places = places + moves.repeat_interleave(cells, dim=1)
    return DecoderContext(
        tokens=per_query(gathered.tokens),
        kinds=torch.where(spread(given, tokens), per_query(gathered.kinds), int(TokenKind.NONE)),
        near=spread(near, tokens),
        cells=per_query(gathered.cells),
        places=places,
        shares=per_query(gathered.shares),
        cells_near=spread(near, cells),
        valid=spread(given, cells) & per_query(gathered.valid),
        prior=prior,
        trust=trust,
        agreement=trust.new_zeros(count, 1) if agreement is None else agreement,
        weights=trust.new_zeros(count, 0) if weights is None else weights,
        fit=trust.new_zeros(count, 1) if fit is None else fit,
        atlas=prior.new_zeros(count, ATLAS_MAPS, *prior.shape[-2:]) if atlas is None else atlas,
        error=prior.new_zeros(count, 2, *prior.shape[-2:]) if error is None else error,
        held_out=trust.new_zeros(count, HELD_OUT) if held_out is None else held_out,
    )


@dataclass(frozen=True, eq=False)
class Places:
    """Where K labelled slices are: the names of their ``volumes``, ``positions`` (K,) along them in mm, the body's
    ``centres`` (K, 2) as (x, y) in input pixels, and ``cell_mm`` (K,) the side of a cell of the masks' grid.
    ``motions`` say of volumes how the anatomy moves between their slices."""

    volumes: tuple[str, ...]
    positions: np.ndarray
    centres: np.ndarray
    cell_mm: np.ndarray
    motions: Mapping[str, SliceMotion] = field(default_factory=dict)

    @classmethod
    def of(
        cls, slices: Sequence[LabelledSlice], *, side: int, motions: Mapping[str, SliceMotion] | None = None
    ) -> Places:
        """``side`` is that of the masks' grid."""
        frames = [one.embeddings.frame for one in slices]
        return cls(
            volumes=tuple(one.volume for one in slices),
            positions=np.array([one.position_mm for one in slices]),
            centres=np.stack([one.body_centre for one in slices]),
            cell_mm=np.array([frame.input_mm * frame.size / side for frame in frames]),
            motions=motions or {},
        )


_SURE = 30.0
"""Logits beyond it are as good as certain."""
ARRAYS = ("positions", "distances", "centres", "cell_mm", "pseudo_labelled", "errors", "held_out")
"""The fields of a bank that are arrays of its K slices."""


@dataclass(frozen=True, eq=False)
class SupportBank:
    """K labelled slices.

    Attributes:
        encoding: What a decoder reads of them.
        volumes, positions, centres, cell_mm: Where they are, as in :class:`Places`.
        distances: The target's signed distances (K, S, S) in cells, positive inside, 0 where it is unknown.
        descriptors: A mean embedding of each slice, (K, D) of unit length.
        pseudo_labelled: (K,) bool: slices that no person labelled. They are never context: they say how slices with
            and without the target look.
        errors: (K, S, S) in [-1, 1], the mask less the probability that the decoder gave each cell when the slice was
            held out; all zero where it was not and on the outermost ones.
        held_out: (K, 3) Dice in [0, 1] on the slice when it was held out, of the decoder and of shape interpolation,
            and how far the nearest annotated slice was, in mm; zero where it was not, or has no annotated slices on
            both sides.
        motions: Volume -> how the anatomy moves between its labelled slices; shapes are carried along it.
        regression: What the slices that a person labelled tell the online optimiser, in their order.
    """

    encoding: SupportEncoding
    volumes: tuple[str, ...]
    positions: np.ndarray
    distances: np.ndarray
    descriptors: torch.Tensor
    centres: np.ndarray
    cell_mm: np.ndarray
    pseudo_labelled: np.ndarray
    errors: np.ndarray
    held_out: np.ndarray
    motions: Mapping[str, SliceMotion] = field(default_factory=dict)
    regression: Regression | SolvedRegression | None = None

    def __len__(self) -> int:
        return len(self.volumes)

    @property
    def shows(self) -> np.ndarray:
        """(K,) bool: the slices on which the target is."""
        return (self.distances > 0).any(axis=(1, 2))

    @property
    def in_one_piece(self) -> bool:
        """Whether most labelled slices that show the target show it in one piece."""
        pieces = [_pieces(distance > 0) for distance in self.distances[self.shows & ~self.pseudo_labelled]]
        return sum(count == 1 for count in pieces) > len(pieces) / 2

    def annotated(self, volume: str) -> list[int]:
        """The slices of one volume that a person labelled."""
        return [k for k in range(len(self)) if self.volumes[k] == volume and not self.pseudo_labelled[k]]

    def annotated_masks(self) -> dict[str, tuple[np.ndarray, float]]:
        """Volume -> the masks (n, S, S) bool that a person labelled in it, and the side of their cells in mm."""
        found = {}
        for volume in dict.fromkeys(self.volumes):
            rows = self.annotated(volume)
            if rows:
                found[volume] = self.distances[rows] > 0, float(self.cell_mm[rows[0]])
        return found

    def annotated_slices(self, query: VolumeEmbeddings) -> dict[int, int]:
        """Slices of a volume that a person labelled -> their numbers in the bank."""
        return {query.index_at(self.positions[k]): k for k in self.annotated(query.key.digest)}

    def without(self, numbers: Collection[int]) -> SupportBank:
        """The same without some of its slices."""
        kept = [k for k in range(len(self)) if k not in numbers]
        labelled = np.cumsum(~self.pseudo_labelled) - 1
        rows = torch.tensor([int(labelled[k]) for k in kept if not self.pseudo_labelled[k]], dtype=torch.long)
        return SupportBank(
            regression=self.regression[rows] if self.regression else None,
            encoding=self.encoding[torch.tensor(kept, dtype=torch.long)],
            volumes=tuple(self.volumes[k] for k in kept),
            descriptors=self.descriptors[kept],
            motions=self.motions,
            **{name: getattr(self, name)[kept] for name in ARRAYS},
        )

    def with_pseudo_labels(self, other: SupportBank) -> SupportBank:
        """The same and after it the slices of ``other``, as slices that no person labelled."""
        return self.joined(replace(other, pseudo_labelled=np.ones(len(other), dtype=bool), regression=None))

    def joined(self, other: SupportBank) -> SupportBank:
        """The same and after it the slices of ``other``."""
        regression = self.regression
        if regression is not None and other.regression is not None:
            assert isinstance(other.regression, Regression)
            regression = regression.joined(other.regression)
        return SupportBank(
            regression=regression,
            encoding=SupportEncoding.cat([self.encoding, other.encoding]),
            volumes=self.volumes + other.volumes,
            descriptors=torch.cat([self.descriptors, other.descriptors]),
            motions={**other.motions, **self.motions},
            **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS},
        )

    @classmethod
    def of(cls, slices: Sequence[LabelledSlice], decoder: TargetDecoder) -> SupportBank:
        """Describe labelled slices by their cached embeddings, for a decoder."""
        with torch.no_grad():
            view = decoder.view(stacked([one.embeddings.slice(one.index) for one in slices]))
        images, side = view["image"], decoder.logits_side
        masks, known, unknown = drawn_slices(slices, side, images.device)
        return cls.from_tensors(
            images,
            masks,
            known,
            unknown=unknown,
            stride=decoder.stride,
            places=Places.of(slices, side=side),
            regression=decoder.regression(view, masks, known),
        )

    @classmethod
    @torch.no_grad()
    def from_tensors(
        cls,
        images: torch.Tensor,
        masks: torch.Tensor,
        known: torch.Tensor,
        *,
        unknown: torch.Tensor | None = None,
        stride: int,
        places: Places,
        regression: Regression | None = None,
    ) -> SupportBank:
        """The same from embeddings (K, D, h, w) and masks (K, 1, S, S) in [0, 1].

        ``unknown`` (K, 1, S, S) in [0, 1] is where the mask is no truth inside the slice, whose outside is not meant.
        """
        distances = np.stack([signed_distance(mask) for mask in (masks[:, 0] > 0.5).cpu().numpy()])
        if unknown is not None:
            distances[(unknown[:, 0] > 0.5).cpu().numpy()] = 0
        return cls(
            encoding=describe(images, masks, known, stride),
            distances=distances,
            descriptors=slice_descriptors(images),
            pseudo_labelled=np.zeros(len(images), dtype=bool),
            errors=np.zeros(distances.shape, dtype=np.float32),
            held_out=np.zeros((len(images), 3), dtype=np.float32),
            regression=regression,
            **vars(places),
        )

    def with_errors(self, numbers: Sequence[int], logits: np.ndarray) -> SupportBank:
        """The same with what a decoder answered on some labelled slices when each was held out.

        Args:
            numbers: n labelled slices.
            logits: (n, S, S), the answers.
        """
        errors, held_out = self.errors.copy(), self.held_out.copy()
        answers = 1 / (1 + np.exp(-np.clip(logits, -_SURE, _SURE)))
        for number, answer in zip(numbers, answers, strict=True):
            truth = self.distances[number] > 0
            others = [k for k in self.annotated(self.volumes[number]) if k != number]
            around = {float(self.positions[k]): self.distances[k] for k in others}
            motion = self.motions.get(self.volumes[number])
            shape = interpolated(around, float(self.positions[number]), (truth.shape[0], truth.shape[1]), motion)
            if not shape.between:  # an outermost slice: what is missed there was extrapolated
                continue
            # where a mask is no truth there is no error
            errors[number] = np.where(self.distances[number] == 0, 0, truth - answer)
            if truth.any():
                away = min(abs(place - float(self.positions[number])) for place in around)
                held_out[number] = ops.dice(answer > 0.5, truth), ops.dice(shape.distance > 0, truth), away
        return replace(self, errors=errors, held_out=held_out)

    def context_of(
        self,
        query: VolumeEmbeddings,
        slices: Sequence[int],
        descriptors: torch.Tensor,
        *,
        config: SupportBankConfig,
        atlas: torch.Tensor | None = None,
    ) -> DecoderContext:
        """The context of some slices of a volume.

        Args:
            query: The volume.
            slices: N numbers of slices.
            descriptors: Theirs, (N, D) of unit length.
            config: How many labelled slices are chosen.
            atlas: (N, 3, S, S) the maps of registered volumes.
        """
        digest = query.key.digest
        crossing = any(volume != digest for volume in self.volumes)
        # the voxels are not read for a volume whose context are its own slices
        centres = query.body_centres[list(slices)] if crossing else np.zeros((len(slices), 2))
        positions = [query.position_mm(index) for index in slices]
        return self.context_at(digest, positions, descriptors, centres, config=config, atlas=atlas)

    def context_at(
        self,
        volume: str,
        positions: Sequence[float],
        descriptors: torch.Tensor,
        centres: np.ndarray,
        *,
        config: SupportBankConfig,
        without: Sequence[int] = (),
        atlas: torch.Tensor | None = None,
    ) -> DecoderContext:
        """The context of queries of one volume, at ``positions`` (N) in mm with ``descriptors`` (N, D) and the body's
        ``centres`` (N, 2). Cells of other volumes are moved to where they would be in the query's body.

        ``without`` are numbers of labelled slices that must not be part of it: the queries themselves.
        """
        likeness = (descriptors @ self.descriptors.T).cpu().numpy()
        chosen = [
            self._chosen(volume, position, like, without, config)
            for position, like in zip(positions, likeness, strict=True)
        ]
        longest = max(1, *(len(one) for one in chosen))
        device = self.descriptors.device
        near = [[self._near(k, volume, position) for k in one] for position, one in zip(positions, chosen, strict=True)]
        priors = [
            interpolated(
                {float(self.positions[k]): self.distances[k] for k in one if self.volumes[k] == volume},
                position,
                (self.distances.shape[1], self.distances.shape[2]),
                self.motions.get(volume),
            )
            for position, one in zip(positions, chosen, strict=True)
        ]
        if without:  # the errors of others were found with these as context
            errors = np.zeros((len(chosen), 2, *self.errors.shape[1:]), dtype=np.float32)
            held_out = np.zeros((len(chosen), HELD_OUT), dtype=np.float32)
        else:
            both = zip(positions, chosen, strict=True)
            errors = np.stack([self._error(one, volume, position) for position, one in both])
            held_out = self._held_out(volume, np.asarray(positions))
        moves = np.zeros((len(chosen), longest, 2), dtype=np.float32)
        for row, one in enumerate(chosen):
            for column, k in enumerate(one):
                if self.volumes[k] != volume:
                    moves[row, column] = centres[row] - self.centres[k]
        weights, fit = self._fitted(volume, without, len(chosen))
        return gathered_context(
            self.encoding,
            torch.tensor([one + [-1] * (longest - len(one)) for one in chosen], device=device),
            torch.tensor([one + [0.0] * (longest - len(one)) for one in near], device=device),
            torch.from_numpy(np.stack([prior.distance for prior in priors]))[:, None].to(device),
            torch.tensor([[prior.between, prior.closeness] for prior in priors], device=device),
            agreement=torch.tensor([[prior.agreement] for prior in priors], device=device),
            moves=torch.from_numpy(moves).to(device),
            weights=weights,
            fit=fit,
            atlas=atlas,
            error=torch.from_numpy(errors).to(device),
            held_out=torch.from_numpy(held_out).to(device),
        )

    def solution(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The online optimiser's weights (d + 1,) and fit () from all labelled slices, for other volumes than theirs;
        None where the decoder has none."""
        if self.regression is None:
            return None
        everything = torch.ones(1, int((~self.pseudo_labelled).sum()), dtype=torch.bool)
        weights, fit = self.regression.solved(everything, torch.ones(1))
        return weights[0], fit[0]

    def _fitted(
        self, volume: str, without: Sequence[int], count: int
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The online optimiser's weights and fit for ``count`` queries of a volume: from its own labelled slices where
        two of them show the target, else from all."""
        if self.regression is None:
            return None, None
        labelled = [k for k in range(len(self)) if not self.pseudo_labelled[k]]
        allowed = [k not in without for k in labelled]
        own = [ok and self.volumes[k] == volume for ok, k in zip(allowed, labelled, strict=True)]
        shows = self.shows
        enough = sum(bool(shows[k]) for ok, k in zip(own, labelled, strict=True) if ok) >= 2
        used = own if enough else allowed
        across = any(ok and self.volumes[k] != volume for ok, k in zip(used, labelled, strict=True))
        weights, fit = self.regression.solved(torch.tensor([used]), torch.tensor([float(across)]))
        return weights.expand(count, -1), fit.expand(count)[:, None]

    def _error(self, chosen: Sequence[int], volume: str, position: float) -> np.ndarray:
        """What the decoder missed on the labelled slices around ``position``, (2, S, S): of many only some were held
        out, and beyond the outermost ones it is not known."""
        ends = {edge(self.annotated(volume), key=lambda k: self.positions[k], default=None) for edge in (min, max)}
        told = [k for k in chosen if self.volumes[k] == volume and (k in ends or self.errors[k].any())]
        errors = {float(self.positions[k]): self.errors[k] for k in told}
        shape = self.errors.shape[1], self.errors.shape[2]
        return interpolated_error(errors, position, shape, self.motions.get(volume))

    def _held_out(self, volume: str, positions: np.ndarray) -> np.ndarray:
        """What the labelled slices of a volume that were held out tell N queries, (N, HELD_OUT) float32: see
        :class:`~ssmsam.models.fewshot_decoder.DecoderContext`."""
        annotated = self.annotated(volume)
        own = self.held_out[[k for k in annotated if self.held_out[k, 2]]]
        if not len(own):
            return np.zeros((len(positions), HELD_OUT), dtype=np.float32)
        decoder, interpolation, away = own.mean(axis=0)
        near = np.abs(positions[:, None] - self.positions[annotated]).min(axis=1)
        told = np.broadcast_to([decoder, interpolation, len(own) / (len(own) + 1)], (len(near), 3))
        return np.column_stack([told, np.minimum(near / away, 1)]).astype(np.float32)

    def _near(self, number: int, volume: str, position: float) -> float:
        return closeness(self.positions[number] - position) if self.volumes[number] == volume else 0.0

    def _chosen(
        self, volume: str, position: float, likeness: np.ndarray, without: Sequence[int], config: SupportBankConfig
    ) -> list[int]:
        allowed = [k for k in range(len(self)) if k not in without]
        own = [k for k in allowed if self.volumes[k] == volume and not self.pseudo_labelled[k]]
        others = [k for k in allowed if self.volumes[k] != volume and not self.pseudo_labelled[k]]
        own = sorted(own, key=lambda k: abs(self.positions[k] - position))[: config.own]
        others = sorted(others, key=lambda k: -likeness[k])[: config.others]
        return sorted(own + others)


def _pieces(mask: np.ndarray) -> int:
    """How many pieces a mask (S, S) has, without those much smaller than the largest."""
    _, sizes = components(mask)
    return int((sizes[1:] >= SMALL_PIECE * sizes.max()).sum())


def drawn_slices(
    slices: Sequence[LabelledSlice], side: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of K labelled slices in the encoder's frame, (K, 1, side, side) in [0, 1], 0 outside the slice: the target,
    where that is truth, and where inside the slice it is none."""
    drawn = []
    for one in slices:
        known = np.ones(one.mask.shape, dtype=bool) if one.known is None else one.known
        drawn.append([draw_mask(mask, one.embeddings.frame, side, device) for mask in (one.drawn, known, ~known)])
    masks, known_, unknown = (torch.cat(several) for several in zip(*drawn, strict=True))
    return masks, known_, unknown
