"""A group of slices, how groups are drawn, and several of them as a batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from ssmsam_research.training.augmentation import AugmentationConfig

Target = tuple[np.ndarray, ...]
"""One boolean array (n, height, width) for each volume of the group."""


@dataclass(frozen=True)
class GroupConfig:
    """How groups are drawn. Lengths in input pixels unless the name says millimetres."""

    groups: int = 2
    """Groups in a batch of the largest side; smaller crops come in more groups, at about the same cost."""
    slices: int = 4
    targets: int = 2
    rows: int = 16
    """At most this many (query, target) pairs of a batch."""
    sides: tuple[int, ...] = (160, 256)
    cross_share: float = 0.5
    """Share of groups over two volumes, where a dataset has two with the same label."""
    twin_share: float = 0.0
    """Share of groups in one volume that show it as though it were two patients."""
    twin_bend: float = 1.5
    """How much more than other images twins are bent: patients differ in more than size and pose."""
    twin_recolour: float = 0.0
    """Chance for each of two twins that its regions are repainted a little, as by another phase of contrast agent."""
    organ_share: float = 0.7
    """Share of targets in one volume that are labelled organs; the others are regions."""
    organ_size_power: float = 0.25
    margin_mm: float = 40.0
    """How far beyond the target slices may be drawn."""
    far_share: float = 0.6
    """Chance that one slice of a group comes from anywhere in its volume."""
    own_share: float = 0.25
    """Chance that a query of a group over two volumes is also shown a slice of its own volume."""
    no_prior_share: float = 0.15
    zoom_share: float = 0.25
    zoom: tuple[float, float] = (1.4, 2.4)
    """Enlargement of groups in one volume that are looked at closely, and how often they are."""
    min_area: int = 24
    dataset_weights: dict[str, float] = field(default_factory=dict)
    augmentation: AugmentationConfig = field(default_factory=lambda: AugmentationConfig(scale=(0.8, 1.3), flip=0.25))


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """B slices with K masks on them and N queries; S = side / 2.

    ``slices`` (B, 3, side, side) in [0, 1]; ``described`` (K,) numbers of slices and ``masks`` (K, 1, S, S) in [0, 1]
    the targets on them. For each query: ``asked`` (N,) its place among the K, ``supports`` (N, slices - 1) those it
    is shown, -1 for none, ``near`` (N, slices - 1), ``prior`` (N, 1, S, S) and ``trust`` (N, 2) as the network takes
    them. ``semantic`` (B, side / 4, side / 4) class numbers, -1 where they are not to be learned, and ``labelled``
    (B, C) bool the classes whose absence means something.
    """

    slices: torch.Tensor
    described: torch.Tensor
    masks: torch.Tensor
    asked: torch.Tensor
    supports: torch.Tensor
    near: torch.Tensor
    prior: torch.Tensor
    trust: torch.Tensor
    semantic: torch.Tensor
    labelled: torch.Tensor

    def to(self, device: str) -> GroupBatch:
        """The same batch on another device."""
        return GroupBatch(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Group:
    """Drawn slices: ``pixels`` (n, 3, side, side), ``masks`` (targets, n, S, S) in [0, 1], ``volume`` (n,) which of the
    volumes, ``position`` (n,) in millimetres, ``semantic`` (n, side / 4, side / 4), ``labelled`` (n, C)."""

    pixels: np.ndarray
    masks: np.ndarray
    volume: np.ndarray
    position: np.ndarray
    semantic: np.ndarray
    labelled: np.ndarray
