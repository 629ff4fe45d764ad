"""Fewer numbers for the same picture: fixed projections of an encoder's maps, so that a slice takes little room."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file


@dataclass(frozen=True, eq=False)
class Projection:
    """The principal axes of a map's channels: ``mean`` (c,) and orthonormal ``basis`` (c, k)."""

    mean: torch.Tensor
    basis: torch.Tensor

    @classmethod
    def fit(cls, maps: Iterable[torch.Tensor], channels: int) -> Projection:
        """From maps (c, h, w), every cell counting alike."""
        cells = torch.cat([one.float().flatten(1) for one in maps], dim=1)
        mean = cells.mean(1)
        centred = cells - mean[:, None]
        axes, _, _ = torch.linalg.svd(centred @ centred.T / cells.shape[1])
        return cls(mean, axes[:, :channels].contiguous())

    @property
    def channels(self) -> int:
        """What is left of the channels."""
        return self.basis.shape[1]

    def apply(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, c, h, w) -> (B, k, h, w)."""
        basis, mean = self.basis.to(maps.device), self.mean.to(maps.device)
        with torch.autocast(maps.device.type, enabled=False):  # differences from the mean need all digits
            return torch.einsum("bchw,ck->bkhw", maps.float() - mean[:, None, None], basis)

    def invert(self, kept: torch.Tensor) -> torch.Tensor:
        """(B, k, h, w) -> (B, c, h, w), as near as the projection allows."""
        basis, mean = self.basis.to(kept), self.mean.to(kept)
        return torch.einsum("bkhw,ck->bchw", kept, basis) + mean[:, None, None]


@dataclass(frozen=True, eq=False)
class Reduction:
    """How the maps of an encoder are kept, by the names of its stages; ``image`` is its output.

    A stage without a projection keeps its channels.
    """

    projections: Mapping[str, Projection]
    digest: str
    """sha256 of the file: part of every cache key."""

    @classmethod
    def from_file(cls, path: Path) -> Reduction:
        """What :meth:`save` wrote."""
        tensors = load_file(str(path))
        names = sorted({name.rpartition(".")[0] for name in tensors})
        found = {name: Projection(tensors[f"{name}.mean"], tensors[f"{name}.basis"]) for name in names}
        return cls(found, hashlib.sha256(path.read_bytes()).hexdigest())

    @staticmethod
    def save(projections: Mapping[str, Projection], path: Path) -> None:
        """Write projections as safetensors, float32."""
        tensors = {f"{name}.mean": one.mean.contiguous() for name, one in projections.items()}
        tensors |= {f"{name}.basis": one.basis.contiguous() for name, one in projections.items()}
        save_file(tensors, str(path))

    def channels(self, stage: str, full: int) -> int:
        """Channels that are kept of a stage that has ``full``."""
        return self.projections[stage].channels if stage in self.projections else full

    def level(self, stage: str, maps: torch.Tensor, *, pool: int) -> torch.Tensor:
        """A stage's map (B, c, h, w) as it is kept: means of ``pool`` x ``pool`` cells, projected."""
        pooled = F.avg_pool2d(maps, pool) if pool > 1 else maps
        return self.projections[stage].apply(pooled) if stage in self.projections else pooled
