"""Small checked files: JSON and packed masks that appear whole or not at all, and are noticed when damaged."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmsam.annotation.truth import PackedMask
from ssmsam.imaging.writing import write_bytes


class CorruptAnnotations(ValueError):
    """A stored file is damaged or missing. The message names it and says what to do."""


class UnknownSchema(CorruptAnnotations):
    """A stored file is whole, and of another version."""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file in one step, with the sha256 of its content inside."""
    text = json.dumps(content, sort_keys=True)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), **content}
    write_bytes(path, json.dumps(sealed, indent=1, sort_keys=True).encode())


def read_json(path: Path, *, schema: int) -> dict[str, Any]:
    """What :func:`write_json` wrote. Raises :class:`CorruptAnnotations`, also for another ``schema``."""
    try:
        content = json.loads(path.read_bytes())
        seal = content.pop("sha256")
        text = json.dumps(content, sort_keys=True)
    except FileNotFoundError:
        raise _corrupt(path, "is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _corrupt(path, "is not the JSON that was written") from None
    if hashlib.sha256(text.encode()).hexdigest() != seal:
        raise _corrupt(path, "was changed from outside")
    if content.get("schema") != schema:
        raise UnknownSchema(
            f"{path} has schema {content.get('schema')!r}, and this version reads {schema}: "
            "use the version that wrote it"
        )
    return content


def write_masks(path: Path, masks: Sequence[PackedMask]) -> str:
    """Write masks as one compressed .npz; the file's sha256."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{f"mask{n}": np.frombuffer(mask.bits, np.uint8) for n, mask in enumerate(masks)})
    write_bytes(path, buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_masks(path: Path, shapes: Sequence[tuple[int, int]], *, sha256: str) -> list[PackedMask]:
    """The masks that :func:`write_masks` wrote. Raises :class:`CorruptAnnotations` when the file is another one."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):  # all but the first: no such name
        raise _corrupt(path, "is missing") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _corrupt(path, "is damaged (its sha256 is another one)")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            masks = [PackedMask(shape, arrays[f"mask{n}"].tobytes()) for n, shape in enumerate(shapes)]
        if any(len(mask.bits) != -(-mask.shape[0] * mask.shape[1] // 8) for mask in masks):
            raise ValueError("a mask of another shape")
        return masks
    except Exception:  # zip and numpy raise what they like for a damaged file
        raise _corrupt(path, "does not hold the masks that belong to it") from None


def _corrupt(path: Path, what: str) -> CorruptAnnotations:
    return CorruptAnnotations(f"the annotation file {path} {what}.")
