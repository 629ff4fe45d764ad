"""What answers after adaptation: a decoder, its support, and a card that tells its story; and the support's cache.

The cache holds labelled slices as a decoder reads them. It shows patients, so that only its owner may read it, it never
leaves its machine, and it can be lost: what was labelled is in the annotations.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ssmsam.fewshot.atlas import Atlas
from ssmsam.fewshot.estimate import SupportCheck
from ssmsam.fewshot.support_bank import ARRAYS, SupportBank
from ssmsam.fewshot.task_checkpoint import TargetSummary, TaskCheckpoint, decoder_digest, delta_of, public
from ssmsam.files import private_folder, write_bytes
from ssmsam.models.closed_form import Regression, SliceSums
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.support_encoding import SupportEncoding
from ssmsam.models.weights import tensors_of
from ssmsam.registration.slices import SliceMotion
from ssmsam.volume.volume import Grid

logger = logging.getLogger(__name__)

FORMAT = 3
"""Part of every key: raise it when the files, or how banks are made, change."""
QUOTA_BYTES = 2 * 2**30
"""A guess: some hundred tasks of a few annotated slices."""
_ARRAYS = {name: name for name in ARRAYS} | {"pseudo_labelled": "completed"}
"""Arrays of a bank, and how files call them."""
_SUMS, _NAMES = "sums", "told"


@dataclass(frozen=True, eq=False)
class SupportBanks:
    """The support of a task: the banks of all labels, of small targets in enlarged windows too (``roi_banks``), and the
    labelled volumes with pseudo-labels as ``atlases``."""

    banks: Mapping[str, SupportBank]
    roi_banks: Mapping[str, SupportBank] = field(default_factory=dict)
    atlases: tuple[Atlas, ...] = ()

    @property
    def _kinds(self) -> dict[str, Mapping[str, SupportBank]]:
        return {"bank": self.banks, "close": self.roi_banks}

    def to_bytes(self) -> bytes:
        """One safetensors file; its metadata names labels and volumes."""
        tensors: dict[str, torch.Tensor] = {}
        for kind, banks in self._kinds.items():
            for number, bank in enumerate(banks.values()):
                tensors |= {f"{kind}{number}.{name}": tensor for name, tensor in _of_bank(bank).items()}
        for number, atlas in enumerate(self.atlases):
            tensors[f"atlas{number}.image"] = atlas.image
            for place, distances in enumerate(atlas.distances.values()):
                tensors[f"atlas{number}.distances{place}"] = distances
        volumes = {
            kind: {label: list(bank.volumes) for label, bank in banks.items()} for kind, banks in self._kinds.items()
        }
        atlases = [
            {"volume": one.volume, "affine": one.grid.affine.tolist(), "labels": list(one.distances)}
            for one in self.atlases
        ]
        motions = {name: motion for bank in self.banks.values() for name, motion in bank.motions.items()}
        for number, motion in enumerate(motions.values()):
            tensors[f"motion{number}.positions"] = torch.from_numpy(motion.positions)
            tensors[f"motion{number}.steps"] = torch.from_numpy(motion.steps)
        names = {"volumes": volumes, "atlases": atlases, "motions": list(motions)}
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, {_NAMES: json.dumps(names)})

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, torch.Tensor], names: Mapping[str, Any], decoder: TargetDecoder
    ) -> SupportBanks:
        """What a file held. Raises LookupError, TypeError, ValueError, RuntimeError or AttributeError for damage."""
        moves = [tensors_of(tensors, f"motion{number}") for number in range(len(names["motions"]))]
        motions = {
            name: SliceMotion(one["positions"].numpy(), one["steps"].numpy())
            for name, one in zip(names["motions"], moves, strict=True)
        }
        banks, enlarged = (
            {
                label: _bank(tensors_of(tensors, f"{kind}{number}"), tuple(volumes), decoder, motions)
                for number, (label, volumes) in enumerate(names["volumes"][kind].items())
            }
            for kind in ("bank", "close")
        )
        atlases = tuple(
            _atlas(tensors_of(tensors, f"atlas{number}"), **one) for number, one in enumerate(names.get("atlases", ()))
        )
        return cls(banks, enlarged, atlases)


class SupportCache:
    """Files of mode 0600 in a folder of mode 0700, at most ``quota_bytes``: what was not used for longest goes first.

    Several processes may use it. A damaged file counts as missing.
    """

    def __init__(self, folder: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self.folder = folder
        self._quota_bytes = quota_bytes

    def find(self, key: str, decoder: TargetDecoder) -> SupportBanks | None:
        """What was kept under a key, for this decoder; None where it is not here any more."""
        path = self._path(key)
        try:
            with safe_open(str(path), framework="pt") as file:
                names = json.loads(file.metadata()[_NAMES])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = SupportBanks.from_parts(tensors, names, decoder)
            os.utime(path)
            return found
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            logger.warning("a support cache entry is damaged and is made again key=%s error=%s", key[:12], error)
            path.unlink(missing_ok=True)
            return None

    def put(self, key: str, banks: SupportBanks) -> None:
        """Keep a support under a key, if it fits. Losing it is no harm: a full disk is only said."""
        try:
            private_folder(self.folder)
            data = banks.to_bytes()
            if len(data) <= self._quota_bytes:
                write_bytes(self._path(key), data)
                self._make_room(key)
        except OSError as error:
            logger.warning("the support of a task checkpoint cannot be kept in %s: %s", self.folder, error)

    def remove(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove everything; how many bytes that were."""
        size = 0
        for path in self._files():
            size += _used_and_bytes(path)[1]
            path.unlink(missing_ok=True)
        return size

    def _make_room(self, newcomer: str) -> None:
        files = sorted((*_used_and_bytes(path), path) for path in self._files())
        excess = sum(size for _, size, _ in files) - self._quota_bytes
        for _, size, path in files:
            if excess <= 0:
                return
            if path.stem != newcomer:
                excess -= size
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self.folder.glob("*.safetensors"))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def support_key(card: Mapping[str, Any], delta_digest: str) -> str:
    """The key of a checkpoint's support: sha256 over everything that it depends on."""
    names = ("support_digest", "weights_sha256", "decoder_sha256", "method", "settings", "completed", "created")
    known = {name: card.get(name) for name in names}
    return hashlib.sha256(json.dumps([FORMAT, known, delta_digest], sort_keys=True, default=str).encode()).hexdigest()


def _used_and_bytes(path: Path) -> tuple[float, int]:
    """When a file was used last, and its size; zeros where it is gone."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return status.st_mtime, status.st_size


def _of_bank(bank: SupportBank) -> dict[str, torch.Tensor]:
    fields = {**vars(bank.encoding), "looks": bank.descriptors}
    fields |= {key: torch.from_numpy(getattr(bank, name)) for name, key in _ARRAYS.items()}
    if isinstance(bank.regression, Regression):
        fields |= {f"{_SUMS}.{name}": tensor for name, tensor in vars(bank.regression.sums).items()}
    return fields


def _bank(
    tensors: dict[str, torch.Tensor],
    volumes: tuple[str, ...],
    decoder: TargetDecoder,
    motions: Mapping[str, SliceMotion],
) -> SupportBank:
    sums, optimiser = tensors_of(tensors, _SUMS), decoder.online_optimiser()
    regression = Regression(optimiser, SliceSums(**sums)) if optimiser is not None else None
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{_SUMS}.")}
    arrays = {name: np.asarray(tensors.pop(key).numpy()) for name, key in _ARRAYS.items()}
    descriptors = tensors.pop("looks")
    return SupportBank(
        encoding=SupportEncoding(**tensors),
        volumes=volumes,
        descriptors=descriptors,
        motions={name: motions[name] for name in dict.fromkeys(volumes) if name in motions},
        regression=regression,
        **arrays,
    )


def _atlas(tensors: dict[str, torch.Tensor], volume: str, affine: list[list[float]], labels: list[str]) -> Atlas:
    image = tensors["image"]
    distances = {label: tensors[f"distances{place}"] for place, label in enumerate(labels)}
    return Atlas(volume, image, Grid((image.shape[0], image.shape[1], image.shape[2]), np.array(affine)), distances)


LOCAL = ("support", "support_digest", "completed")
"""What a card says on the machine where it was made and nowhere else: it names images."""


@dataclass(frozen=True, eq=False)
class AdaptedTask:
    """A decoder that was adapted to labelled slices. Made by :func:`~ssmsam.fewshot.pipeline.adapt`.

    Attributes:
        decoder: Answers for all labels.
        banks: The labelled slices by label.
        card: Plain JSON: labels, support, settings, estimates.
        initial: The decoder before adaptation, which no file holds. It answers past the outermost annotated slices:
            what was learned between them makes a mask run on into a neighbour there. None where it would know nothing.
        roi_banks: The labelled slices of small targets in enlarged windows, by label.
        atlases: The labelled volumes with pseudo-labels; they say where the labels are in other volumes.
        summarised: The labelled slices are not on this machine, and the banks stand for them.
    """

    decoder: TargetDecoder
    banks: Mapping[str, SupportBank]
    card: Mapping[str, Any]
    initial: TargetDecoder | None = None
    roi_banks: Mapping[str, SupportBank] = field(default_factory=dict)
    atlases: tuple[Atlas, ...] = ()
    summarised: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.banks)

    @property
    def learned_from(self) -> dict[str, int]:
        """Label -> how many slices were labelled."""
        return dict(self.card.get("learned_from", {}))

    @property
    def pseudo_labelled(self) -> tuple[str, ...]:
        """The labels whose labelled volumes got pseudo-labels; so did those of cards that do not say it."""
        return tuple(self.card.get("completed", self.labels))

    def lacks(self, volume: str) -> tuple[str, ...]:
        """The labels that need pseudo-labels before they are looked for in a volume: it has no slice of them."""
        return tuple(
            label
            for label, bank in self.banks.items()
            if label not in self.pseudo_labelled and not bank.annotated(volume)
        )

    def support_check(self, label: str) -> SupportCheck:
        """How the decoder does on the labelled slices of a label; cards that do not say it know nothing."""
        return SupportCheck(**self.card.get("support_check", {}).get(label, {}))

    def without(self, left_out: Mapping[str, Collection[int]]) -> AdaptedTask:
        """The same with some slices less: label -> numbers in its bank. It refines nothing in enlarged windows."""
        banks = {label: bank.without(left_out.get(label, ())) for label, bank in self.banks.items()}
        return replace(self, banks=banks, roi_banks={})

    def adapted_from(self, decoder: TargetDecoder) -> AdaptedTask:
        """The same, with ``initial`` where there is one: the decoder that it was adapted from."""
        return replace(self, initial=decoder if self.card.get("adapted") and decoder.pretrained else None)

    @property
    def support(self) -> SupportBanks:
        """Its support, which stays on this machine."""
        return SupportBanks(self.banks, self.roi_banks, self.atlases)

    def with_support(self, support: SupportBanks, local: Mapping[str, Any]) -> AdaptedTask:
        """The same with the labelled slices themselves, and what the card says of them on this machine only."""
        card = {**self.card, **{name: local[name] for name in LOCAL if name in local}}
        return replace(self, **vars(support), card=card, summarised=False)

    def checkpoint(self, base: TargetDecoder) -> TaskCheckpoint:
        """What may leave the machine. ``base`` is the decoder as it came with the encoder's weights."""
        card = {**public(self.card), "labels": list(self.labels), "decoder_sha256": decoder_digest(base)}
        targets = {label: TargetSummary.of(bank) for label, bank in self.banks.items()}
        return TaskCheckpoint(card, delta_of(self.decoder, base), targets)

    @classmethod
    def of(cls, checkpoint: TaskCheckpoint, base: TargetDecoder, name: str) -> AdaptedTask:
        """That of a task checkpoint alone, without the labelled slices. Raises UnusableCheckpoint."""
        decoder = checkpoint.adapted(base, name)
        side = base.logits_side
        banks = {label: target.bank(side) for label, target in checkpoint.targets.items()}
        return cls(decoder, banks, checkpoint.card, summarised=bool(banks)).adapted_from(base)


_KEY = "support_key"


def write_task(path: Path, task: AdaptedTask, *, base: TargetDecoder, cache: SupportCache) -> None:
    """Write the checkpoint of a task, and unless it is from elsewhere what stays here of it.

    ``base`` is the decoder that came with the encoder's weights. Readers see the old files or the new ones.
    """
    data = task.checkpoint(base).to_bytes()
    if not task.summarised:
        _write_support(path, task, hashlib.sha256(data).hexdigest(), cache)
    write_bytes(path, data)


def write_support(path: Path, task: AdaptedTask, *, cache: SupportCache) -> None:
    """Keep the labelled slices of a task that were made again. Its checkpoint stays as it is."""
    _write_support(path, task, hashlib.sha256(path.read_bytes()).hexdigest(), cache)


def read_task(path: Path, *, base: TargetDecoder, weights_sha256: str, cache: SupportCache) -> AdaptedTask:
    """The task of a checkpoint with the labelled slices that it was adapted to where these are in the cache,
    ``summarised`` where not. ``base`` stays as it is.

    Raises :class:`~ssmsam.fewshot.task_checkpoint.UnusableCheckpoint`, and FileNotFoundError.
    """
    checkpoint = TaskCheckpoint.load(path)
    checkpoint.require_made_with(base, weights_sha256, path.name)
    task, local = AdaptedTask.of(checkpoint, base, path.name), read_local(path)
    support = cache.find(str(local[_KEY]), task.decoder) if local else None
    return task if support is None else task.with_support(support, local)


def read_local(path: Path) -> dict[str, Any]:
    """What is known of a checkpoint on this machine only; empty for one from elsewhere."""
    try:
        found = json.loads(path.with_suffix(".json").read_text())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get(_KEY) else {}


def remove_task(path: Path, *, cache: SupportCache) -> None:
    """Remove a checkpoint and all that belongs to it."""
    if local := read_local(path):
        cache.remove(str(local[_KEY]))
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)


def _write_support(path: Path, task: AdaptedTask, digest: str, cache: SupportCache) -> None:
    before, key = read_local(path).get(_KEY), support_key(task.card, digest)
    if task.banks:
        cache.put(key, task.support)
    local = {**{name: task.card[name] for name in LOCAL if name in task.card}, _KEY: key}
    write_bytes(path.with_suffix(".json"), json.dumps(local, indent=1).encode())
    if before and before != key:
        cache.remove(str(before))
