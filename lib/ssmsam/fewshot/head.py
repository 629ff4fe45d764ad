"""What adaptation leaves behind: a decoder, what it was shown, and a card that tells its story."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ssmsam.fewshot.atlas import Atlas
from ssmsam.fewshot.bank import Bank
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.description import Description
from ssmsam.fewshot.support_check import SupportCheck
from ssmsam.imaging.volume import Grid
from ssmsam.imaging.writing import write_bytes
from ssmsam.models.closed_form import Regression, SliceSums

FORMAT = 5
_READABLE = (4, FORMAT)
"""Heads of format 4 have no atlases."""
_ARRAYS = ("positions", "distances", "centres", "cell_mm", "completed")
_SUMS = "sums"
FEWSHOT = "fewshot"
"""The method whose decoder :func:`ssmsam.fewshot.registry.load_target_decoder` loads."""


class UnusableHead(ValueError):
    """A file is not a head, or not one for these weights. The message says what to do."""


@dataclass(frozen=True, eq=False)
class Head:
    """An adapted decoder with the banks of its labels. ``card`` is plain JSON: labels, support, settings, estimates.

    ``start`` is the decoder before adaptation, which no file holds. It answers past the outermost annotated slices:
    what was learned between them makes a mask run on into a neighbour there. None where it would know nothing.
    ``close`` are the labelled slices of small targets in enlarged windows, by label. ``atlases`` are the volumes that
    were completed; they say where the labels are in other volumes.
    """

    decoder: TargetDecoder
    banks: Mapping[str, Bank]
    card: Mapping[str, Any]
    start: TargetDecoder | None = None
    close: Mapping[str, Bank] = field(default_factory=dict)
    atlases: tuple[Atlas, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.banks)

    @property
    def support_digest(self) -> str:
        """What it was adapted to: see :func:`ssmsam.fewshot.support.digest`."""
        return str(self.card["support_digest"])

    @property
    def completed(self) -> tuple[str, ...]:
        """The labels whose labelled volumes were completed; cards that do not say it are of heads that were."""
        return tuple(self.card.get("completed", self.labels))

    def lacks(self, volume: str) -> tuple[str, ...]:
        """The labels that have to be completed before they are looked for in a volume: it has no slice of them."""
        return tuple(
            label for label, bank in self.banks.items() if label not in self.completed and not bank.annotated(volume)
        )

    def check(self, label: str) -> SupportCheck:
        """How the decoder does on the labelled slices of a label; cards that do not say it know nothing."""
        return SupportCheck(**self.card.get("support_check", {}).get(label, {}))

    def without(self, left_out: Mapping[str, Collection[int]]) -> Head:
        """The same head, shown some slices less: label -> numbers in its bank. It takes no closer look."""
        return replace(
            self, banks={label: bank.without(left_out.get(label, ())) for label, bank in self.banks.items()}, close={}
        )

    def begun_with(self, decoder: TargetDecoder) -> Head:
        """The same, with ``start`` where there is one: the decoder that it was adapted from."""
        return replace(self, start=decoder if self.card.get("adapted") and decoder.pretrained else None)

    def to_bytes(self) -> bytes:
        """One safetensors file with the card in its metadata."""
        tensors = {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        for kind, banks in self._kinds.items():
            for number, bank in enumerate(banks.values()):
                fields = {**vars(bank.description), "looks": bank.looks}
                fields |= {name: torch.from_numpy(getattr(bank, name)) for name in _ARRAYS}
                if bank.regression is not None:
                    fields |= {f"{_SUMS}.{name}": tensor for name, tensor in vars(bank.regression.sums).items()}
                tensors |= {f"{kind}{number}.{name}": tensor for name, tensor in fields.items()}
        for number, atlas in enumerate(self.atlases):
            tensors[f"atlas{number}.image"] = atlas.image
            for place, distances in enumerate(atlas.distances.values()):
                tensors[f"atlas{number}.distances{place}"] = distances
        volumes = {
            kind: {label: list(bank.volumes) for label, bank in banks.items()} for kind, banks in self._kinds.items()
        }
        card = {**self.card, "format": FORMAT, "labels": list(self.labels), "volumes": volumes}
        card["atlases"] = [
            {"volume": one.volume, "affine": one.grid.affine.tolist(), "labels": list(one.distances)}
            for one in self.atlases
        ]
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {"card": json.dumps(card)})

    @property
    def _kinds(self) -> dict[str, Mapping[str, Bank]]:
        return {"bank": self.banks, "close": self.close}

    def save(self, path: Path) -> Path:
        """Write the file, and its card as JSON beside it; readers see the old file or the new one."""
        write_bytes(path, self.to_bytes())
        write_bytes(path.with_suffix(".json"), json.dumps(dict(self.card), indent=1).encode())
        return path

    @classmethod
    def load(cls, path: Path, decoder: TargetDecoder, *, weights_sha256: str) -> Head:
        """Read a head for the encoder with these weights; ``decoder`` is the unadapted one, which stays as it is.

        Raises :class:`UnusableHead`, and FileNotFoundError.
        """
        import copy

        card, tensors = _read(path)
        if card.get("format") not in _READABLE:
            readable = " and ".join(map(str, _READABLE))
            raise UnusableHead(f"{path.name} has format {card.get('format')!r}, this version reads {readable}")
        if card.get("weights_sha256") != weights_sha256:
            raise UnusableHead(
                f"{path.name} was made with other weights ({card.get('encoder')}, sha256 "
                f"{str(card.get('weights_sha256'))[:12]}) than those in use ({weights_sha256[:12]}): "
                "start the server with that encoder, or adapt again"
            )
        adapted = copy.deepcopy(decoder)
        try:
            adapted.load_state_dict(_part(tensors, "decoder"))
            banks, close = (
                {
                    label: _bank(_part(tensors, f"{kind}{number}"), tuple(volumes), adapted)
                    for number, (label, volumes) in enumerate(card["volumes"][kind].items())
                }
                for kind in ("bank", "close")
            )
            atlases = tuple(
                _atlas(_part(tensors, f"atlas{number}"), **told) for number, told in enumerate(card.get("atlases", ()))
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UnusableHead(f"{path.name} lacks parts of a head: export it again. {error}") from error
        kept = {name: value for name, value in card.items() if name not in ("format", "volumes", "atlases")}
        return cls(adapted.eval().requires_grad_(False), banks, kept, close=close, atlases=atlases).begun_with(decoder)


def read_card(path: Path) -> dict[str, Any]:
    """The card of a head's file, without its tensors. Raises :class:`UnusableHead`, and FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no head {path.name}")
    try:
        with safe_open(str(path), framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise UnusableHead(f"{path.name} is not a head, or is damaged: export it again. {error}") from error
    if not isinstance(card, dict):
        raise UnusableHead(f"{path.name} has no card: export it again")
    return card


def method_of(card: Mapping[str, Any]) -> str:
    """The method that a head was adapted with; older cards do not say it."""
    return str(card.get("method", FEWSHOT))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    card = read_card(path)
    with safe_open(str(path), framework="pt") as file:
        return card, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = part + "."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _bank(tensors: dict[str, torch.Tensor], volumes: tuple[str, ...], decoder: TargetDecoder) -> Bank:
    sums, optimiser = _part(tensors, _SUMS), decoder.online_optimiser()
    regression = Regression(optimiser, SliceSums(**sums)) if optimiser is not None else None
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{_SUMS}.")}
    arrays = {name: np.asarray(tensors.pop(name).numpy()) for name in _ARRAYS}
    looks = tensors.pop("looks")
    return Bank(description=Description(**tensors), volumes=volumes, looks=looks, regression=regression, **arrays)


def _atlas(tensors: dict[str, torch.Tensor], volume: str, affine: list[list[float]], labels: list[str]) -> Atlas:
    image = tensors["image"]
    distances = {label: tensors[f"distances{place}"] for place, label in enumerate(labels)}
    return Atlas(volume, image, Grid((image.shape[0], image.shape[1], image.shape[2]), np.array(affine)), distances)
