"""What protocol "clicks" compares: ours, and what a user would pick instead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssmsam_research.evaluation.cases import LabelledSet
from ssmsam_research.evaluation.clicks import ClickProtocol
from ssmsam_research.evaluation.prompted import ModelChoice

LITE_MEDSAM_SAW = (
    "pretraining may have seen such images and organs: its makers name the sets of the CVPR 2024 challenge (CT, MR, "
    "ultrasound, X-ray, dermoscopy, fundus, endoscopy, microscopy), not each image"
)
BOXES_ONLY = "a box; it was not trained for clicks, which are left out"


@dataclass(frozen=True)
class ClickMethod:
    """One column of the comparison."""

    encoder: str
    published: bool = False
    pretraining: str = ""
    """What the weights may have seen before any training of ours."""
    bfloat16: bool | None = None

    def choice(self, common: ModelChoice) -> ModelChoice:
        """The model, found and run where ``common`` says."""
        return replace(common, encoder=self.encoder, published=self.published, bfloat16=self.bfloat16)

    def protocol(self, protocol: ClickProtocol) -> ClickProtocol:
        """Only boxes for a decoder that knows nothing else."""
        return replace(protocol, clicks=False) if self.published else protocol

    @property
    def prompts(self) -> str:
        return BOXES_ONLY if self.published else "clicks and a box"


METHODS = {
    "medsam_lite": ClickMethod("medsam_lite", pretraining=LITE_MEDSAM_SAW),
    "medsam_lite published": ClickMethod("medsam_lite", published=True, pretraining=LITE_MEDSAM_SAW),
    "small": ClickMethod("small"),
}


@dataclass(frozen=True)
class TrainingRecord:
    """What is recorded of which sets weights of ours were trained on: sha256 -> names of sets."""

    sets: dict[str, list[str]]

    @classmethod
    def read(cls, path: Path) -> TrainingRecord:
        """From JSON ``{name: {"sha256": ..., "sets": [...]}}``. Raises ValueError for a file of another shape."""
        try:
            entries: dict[str, Any] = json.loads(path.read_text())
            return cls({entry["sha256"]: list(entry["sets"]) for entry in entries.values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            shape = '{name: {"sha256": digest, "sets": [set, ...]}}'
            raise ValueError(f"{path} is no record of training sets ({error!r}); expected {shape}") from error

    def of(self, digests: Sequence[str], data: LabelledSet, held_out: Sequence[str]) -> str:
        """Whether training of ours saw a set: "unseen", "seen", or "other cases seen" where the measured ones were held
        out; "not recorded" where one of the weights is not in the record."""
        if any(digest not in self.sets for digest in digests):
            return "not recorded"
        if not any(data.name in self.sets[digest] for digest in digests):
            return "unseen"
        return "other cases seen" if {case.name for case in data.cases} <= set(held_out) else "seen"
