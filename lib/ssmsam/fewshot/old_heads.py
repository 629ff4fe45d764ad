"""Reading the files of versions that kept copies of images in them, to turn them into task checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors import safe_open

from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.head import Head
from ssmsam.fewshot.support_cache import SupportBanks
from ssmsam.fewshot.task_checkpoint import UnusableCheckpoint, raw_card

READABLE = (4, 5)
"""Files of format 4 have no atlases."""


def read_old_head(path: Path, base: TargetDecoder, *, weights_sha256: str) -> Head:
    """The head of a file of an earlier version. Raises :class:`UnusableCheckpoint`, and FileNotFoundError."""
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
        shown = SupportBanks.from_parts(tensors, card, decoder)
        counts = {label: len(slices) for label, slices in card.get("support", {}).items()}
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UnusableCheckpoint(f"{path.name} lacks parts of a head: adapt again. {error}") from error
    kept = {name: value for name, value in card.items() if name not in ("format", "volumes", "atlases")}
    kept = {"learned_from": counts, **kept}
    head = Head(decoder.eval().requires_grad_(False), shown.banks, kept, close=shown.close, atlases=shown.atlases)
    return head.begun_with(base)
