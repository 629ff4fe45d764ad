"""Submissions to an image that cannot be had just now, kept until it can."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from ssmsam.annotation.annotations import now
from ssmsam.files import DAMAGED, private_folder, put_aside, write_bytes
from ssmsam.service.errors import InvalidRequest

logger = logging.getLogger(__name__)

RECORD = "submission.json"
MOST = 1000
"""How many may wait. A guess: far more than come in while an archive is away, far less than fill a disk."""


@dataclass(frozen=True)
class Waiting:
    """One submission: the mask as it was sent, and what was said of it."""

    record: Path
    mask: Path
    image: str
    tag: str
    params: dict[str, Any]

    def done(self) -> None:
        shutil.rmtree(self.record.parent)

    def put_aside(self) -> str:
        """Keep it where it is not tried again; the new name of its folder."""
        return put_aside(self.record.parent)


@dataclass(frozen=True)
class WaitingRoom:
    """Submissions under ``root``, a folder each, of which the record is written last. Several processes may add."""

    root: Path

    def add(self, image: str, mask: Path, *, tag: str, params: Mapping[str, Any]) -> None:
        """Keep a submission. Raises InvalidRequest where too many wait."""
        private_folder(self.root)
        if len(list(self.root.glob("*"))) >= MOST:
            raise InvalidRequest(f"{MOST} submissions wait for the archive already, no more are kept: send it later")
        folder = self.root / f"{now()}-{uuid4().hex[:8]}".replace(":", "")
        suffix = ".nii.gz" if mask.name.endswith(".nii.gz") else mask.suffix
        write_bytes(folder / f"mask{suffix}", mask.read_bytes())
        write_bytes(folder / RECORD, json.dumps({"image": image, "tag": tag, "params": dict(params)}).encode())

    def listed(self) -> list[Waiting]:
        """What waits, the oldest first. What is damaged is put aside."""
        found = []
        for record in sorted(self.root.glob(f"[0-9]*/{RECORD}")):
            if DAMAGED in record.parent.name:
                continue
            try:
                said = json.loads(record.read_bytes())
                mask = next(record.parent.glob("mask.*"))
                found.append(Waiting(record, mask, str(said["image"]), str(said["tag"]), dict(said["params"])))
            except (ValueError, KeyError, TypeError, StopIteration, OSError) as error:
                logger.error("A submission that waits is damaged and kept as %s: %s", put_aside(record.parent), error)
        return found
