"""A task checkpoint on disk and what stays beside it: which slices it was adapted to, and these slices in a cache.

``NAME.safetensors`` is the checkpoint, all of which may leave the machine. ``NAME.json`` names images and stays.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

from ssmsam.fewshot.adapted_task import LOCAL, AdaptedTask
from ssmsam.fewshot.support_cache import SupportBanks, SupportCache, support_key
from ssmsam.fewshot.task_checkpoint import TaskCheckpoint, UnusableCheckpoint, raw_card
from ssmsam.files import write_bytes
from ssmsam.models.fewshot_decoder import TargetDecoder

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


READABLE = (4, 5)
"""Files of format 4 have no atlases."""


def read_old_task(path: Path, base: TargetDecoder, *, weights_sha256: str) -> AdaptedTask:
    """The task of a file of an earlier version. Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
    card = raw_card(path)
    if card.get("format") not in READABLE:
        raise UnusableCheckpoint(f"{path.name} has format {card.get('format')!r} and cannot be read: adapt again")
    if card.get("weights_sha256") != weights_sha256:
        raise UnusableCheckpoint(
            f"{path.name} was made with other weights ({card.get('encoder')}) than those in use: "
            "start the server with that encoder, or adapt again"
        )
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        decoder = copy.deepcopy(base)
        decoder.load_state_dict(
            {name.removeprefix("decoder."): one for name, one in tensors.items() if name.startswith("decoder.")}
        )
        support = SupportBanks.from_parts(tensors, card, decoder)
        counts = {label: len(slices) for label, slices in card.get("support", {}).items()}
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UnusableCheckpoint(f"{path.name} lacks parts of a task: adapt again. {error}") from error
    kept = {name: value for name, value in card.items() if name not in ("format", "volumes", "atlases")}
    kept = {"learned_from": counts, **kept}
    task = AdaptedTask(decoder.eval().requires_grad_(False), card=kept, **vars(support))
    return task.adapted_from(base)
