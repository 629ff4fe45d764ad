"""The file of what was learned: a few MB without a voxel, a mask, or an id of a patient, study, series or image.

It holds what adaptation changed of the decoder, of every label a :class:`TargetSummary`, and a card. The labelled
slices themselves stay on the machine where they are: see :mod:`ssmsam.fewshot.support_cache`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from ssmsam.fewshot.target_summary import TargetSummary
from ssmsam.files import write_bytes
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.models.weights import tensors_of

FORMAT = 6
LARGEST = 48 * 2**20
"""Bytes that a file may have: the decoder of a large SAM, adapted as a whole, has 16 MB in single precision."""
FEWSHOT = "fewshot"
"""The method whose decoder :func:`ssmsam.models.registry.load_target_decoder` loads."""
_TEXT, _NUMBER = (str,), (int, float)
PUBLIC: Mapping[str, tuple[type, ...]] = {
    "labels": (list,), "learned_from": (dict,), "numbers": (dict, type(None)), "plane": (str, type(None)),
    "encoder": _TEXT, "weights_sha256": _TEXT, "decoder_sha256": _TEXT, "method": _TEXT, "start": _TEXT,
    "created": _TEXT, "settings": (dict,), "adapted": (bool,), "trained": (bool,), "steps": (int,),
    "seconds": _NUMBER, "loss": (*_NUMBER, type(None)), "first_loss": (*_NUMBER, type(None)), "support_check": (dict,),
    "dice_estimate": (dict,), "shipped_estimate": (dict,),
}  # fmt: skip
"""What a card may say outside the machine where it was made, and of what type it is. Nothing else is ever written."""
_REQUIRED = ("labels", "encoder", "weights_sha256", "decoder_sha256", "created", "dice_estimate")
_ESTIMATES = ("dice_estimate", "shipped_estimate", "support_check")
_MOST_LABELS, _LONGEST_NAME, _LONGEST_CARD = 255, 200, 2**20


class UnusableCheckpoint(ValueError):
    """A file is no task checkpoint, or not one for these weights. The message says what to do."""


@dataclass(frozen=True, eq=False)
class TaskCheckpoint:
    """``card`` is plain JSON of :data:`PUBLIC`; ``delta`` are the decoder's tensors that differ from those that came
    with its weights, none where it was not adapted; ``targets`` are the summaries by label."""

    card: Mapping[str, Any]
    delta: Mapping[str, torch.Tensor]
    targets: Mapping[str, TargetSummary]

    def to_bytes(self) -> bytes:
        """One safetensors file with the card in its metadata. The same checkpoint always makes the same bytes."""
        tensors = {f"delta.{name}": tensor for name, tensor in self.delta.items()}
        for number, target in enumerate(self.targets.values()):
            tensors |= {f"target{number}.{name}": tensor for name, tensor in target.tensors.items()}
        facts = [target.facts for target in self.targets.values()]
        card = {**self.card, "labels": list(self.targets), "format": FORMAT, "targets": facts}
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return save(kept, {"card": json.dumps(card, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> TaskCheckpoint:
        """Read a file, which may come from anywhere: nothing in it is executed, everything is checked.

        ``name`` is for messages. Raises :class:`UnusableCheckpoint`.
        """
        _require_small(len(data), name)
        card = _checked_card(_header_card(data, name), name)
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError, OverflowError, MemoryError) as error:
            raise _damaged(name, error) from error
        try:
            parts = [tensors_of(tensors, f"target{number}") for number in range(len(card["labels"]))]
            targets = {
                label: TargetSummary.from_parts(part, facts)
                for label, part, facts in zip(card["labels"], parts, card["targets"], strict=True)
            }
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            raise UnusableCheckpoint(f"{name} lacks parts of a task checkpoint: export it again. {error}") from error
        delta = tensors_of(tensors, "delta")
        if len(delta) + sum(map(len, parts)) != len(tensors):
            raise UnusableCheckpoint(f"{name} holds more than a task checkpoint: export it again")
        return cls({key: card[key] for key in PUBLIC if key in card}, delta, targets)

    @classmethod
    def load(cls, path: Path) -> TaskCheckpoint:
        """Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
        if is_old(path):  # which may be large
            read_card(path)
        _require_file(path)
        _require_small(path.stat().st_size, path.name)
        return cls.from_bytes(path.read_bytes(), path.name)

    def save(self, path: Path) -> Path:
        """Write the file, for its owner to read (mode 0600); readers see the old file or the new one."""
        write_bytes(path, self.to_bytes())
        return path

    def require_made_with(self, decoder: TargetDecoder, weights_sha256: str, name: str) -> None:
        """Raises :class:`UnusableCheckpoint` for another encoder's weights or another few-shot decoder than these."""
        card = self.card
        if card["weights_sha256"] != weights_sha256:
            raise UnusableCheckpoint(
                f"{name} was made with other weights ({card['encoder'][:40]}, sha256 {card['weights_sha256'][:12]}) "
                f"than those in use ({weights_sha256[:12]}): take that encoder (--encoder for a command, "
                "--conf encoder for a server), or adapt again"
            )
        if card["decoder_sha256"] != decoder_digest(decoder):
            raise UnusableCheckpoint(
                f"{name} was made with another version of the few-shot decoder "
                f"(sha256 {card['decoder_sha256'][:12]}) than the one in use: adapt again"
            )

    def adapted(self, decoder: TargetDecoder, name: str) -> TargetDecoder:
        """A copy of ``decoder``, which is as it came with its weights, with what adaptation changed.

        Raises :class:`UnusableCheckpoint`.
        """
        changed = copy.deepcopy(decoder)
        known = changed.state_dict()
        for tensor, value in self.delta.items():
            if tensor not in known or known[tensor].shape != value.shape or known[tensor].dtype != value.dtype:
                raise UnusableCheckpoint(
                    f"{name} changes {tensor[:80]!r}, which this decoder does not have: adapt again"
                )
            if value.is_floating_point() and not bool(value.isfinite().all()):
                raise UnusableCheckpoint(f"{name} holds what is no number in {tensor}: adapt again")
        changed.load_state_dict({**known, **self.delta})
        return changed.eval().requires_grad_(False)


def delta_of(decoder: TargetDecoder, base: TargetDecoder) -> dict[str, torch.Tensor]:
    """The tensors of a decoder that are not those of ``base``, bit by bit."""
    before = base.state_dict()
    return {name: one for name, one in decoder.state_dict().items() if not torch.equal(one, before[name].to(one))}


def decoder_digest(decoder: TargetDecoder) -> str:
    """sha256 over all tensors of a decoder."""
    sha = hashlib.sha256()
    for name, tensor in sorted(decoder.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def public(card: Mapping[str, Any]) -> dict[str, Any]:
    """What of a card may leave the machine."""
    return {name: card[name] for name in PUBLIC if name in card}


def method_of(card: Mapping[str, Any]) -> str:
    """The method that a checkpoint was adapted with; older cards do not say it."""
    return str(card.get("method", FEWSHOT))


def read_card(path: Path) -> dict[str, Any]:
    """The card of a file, without its tensors. Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
    return public(_checked_card(_raw_card(path), path.name))


def _raw_card(path: Path) -> dict[str, Any]:
    _require_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            return _parsed_card((file.metadata() or {}).get("card"), path.name)
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, UnusableCheckpoint):
            raise
        raise _damaged(path.name, error) from error


def is_old(path: Path) -> bool:
    """Whether a file is one of an earlier version, which holds copies of images."""
    try:
        return _is_old(_raw_card(path))
    except (UnusableCheckpoint, FileNotFoundError):
        return False


def _is_old(card: Mapping[str, Any]) -> bool:
    return type(card.get("format")) is int and card["format"] < FORMAT


def _checked_card(card: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same card if it is one of a task checkpoint. Raises :class:`UnusableCheckpoint`."""
    if _is_old(card):
        raise UnusableCheckpoint(
            f"{name} is from an earlier version and holds copies of patients' images, so it is not taken: adapt again"
        )
    if card.get("format") != FORMAT:
        found = str(card.get("format"))[:20]
        raise UnusableCheckpoint(f"{name} has format {found!r}, this version reads {FORMAT}: adapt again with this one")
    for key in _REQUIRED:
        if key not in card:
            raise UnusableCheckpoint(f"{name} lacks {key!r} in its card: export it again")
    for key, types in PUBLIC.items():
        if key in card and (not isinstance(card[key], types) or (isinstance(card[key], bool) and bool not in types)):
            raise UnusableCheckpoint(
                f"{name} has a card whose {key!r} is a {type(card[key]).__name__}: export it again"
            )
    _require_labels(card, name)
    _require_estimates(card, name)
    return dict(card)


def _require_labels(card: Mapping[str, Any], name: str) -> None:
    labels, facts = card["labels"], card.get("targets")
    sound = all(isinstance(one, str) and 0 < len(one) <= _LONGEST_NAME for one in labels)
    if not sound or len(set(labels)) != len(labels) or len(labels) > _MOST_LABELS:
        raise UnusableCheckpoint(f"{name} has labels that are no names: export it again")
    if not isinstance(facts, list) or len(facts) != len(labels) or not all(isinstance(one, dict) for one in facts):
        raise UnusableCheckpoint(f"{name} does not say what was seen of each label: export it again")
    adaptation = card.get("settings", {}).get("adaptation", {})
    if not isinstance(adaptation, dict) or not isinstance(adaptation.get("steps", 0), int):
        raise UnusableCheckpoint(f"{name} has a card whose 'settings' are none: export it again")
    for key in ("learned_from", "numbers"):
        if not all(type(one) is int and 0 <= one < 2**31 for one in (card.get(key) or {}).values()):
            raise UnusableCheckpoint(f"{name} has a card whose {key!r} does not count: export it again")


def _require_estimates(card: Mapping[str, Any], name: str) -> None:
    """Each is a number or None for each label."""
    for key in _ESTIMATES:
        for one in card.get(key, {}).values():
            if not isinstance(one, dict) or not all(
                value is None or (isinstance(value, int | float) and math.isfinite(value)) for value in one.values()
            ):
                raise UnusableCheckpoint(f"{name} has a card whose {key!r} is no estimate: export it again")
    for one in card["dice_estimate"].values():
        if not all(isinstance(one.get(when), int | float) for when in ("before", "after")):
            raise UnusableCheckpoint(f"{name} has an estimate without a before and after: export it again")
    for one in card.get("support_check", {}).values():
        if not set(one) <= {"dice", "presence", "absence", "slices"}:
            raise UnusableCheckpoint(f"{name} has a card whose 'support_check' is none: export it again")


def _header_card(data: bytes, name: str) -> dict[str, Any]:
    """The card out of a file's header: length (8 bytes), JSON."""
    length = int.from_bytes(data[:8], "little")
    try:
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("it is cut short")
        header = json.loads(data[8 : 8 + length])
        return _parsed_card(header["__metadata__"].get("card"), name)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, UnusableCheckpoint):
            raise
        raise _damaged(name, error) from error


def _parsed_card(text: object, name: str) -> dict[str, Any]:
    if not isinstance(text, str):
        raise _damaged(name, "it has no card")
    if len(text) > _LONGEST_CARD:
        raise UnusableCheckpoint(f"{name} has a card of {len(text) >> 20} MB: this is no task checkpoint")
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _damaged(name, error) from error
    if not isinstance(card, dict):
        raise UnusableCheckpoint(f"{name} has no card: export it again")
    return card


def _damaged(name: str, why: object) -> UnusableCheckpoint:
    return UnusableCheckpoint(f"{name} is no task checkpoint, or is damaged: export it again. {str(why)[:200]}")


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no task checkpoint {path.name}")


def _require_small(size: int, name: str) -> None:
    if size > LARGEST:
        raise UnusableCheckpoint(
            f"{name} has {size / 2**20:.0f} MB, a task checkpoint has at most {LARGEST >> 20}: is this an exported one?"
        )
