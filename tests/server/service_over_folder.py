"""The small few-shot service, over MONAI Label's datastore."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pocket_service
from pocket_service import LABELS

from ssmsam.server.datastore.studies import StudiesFolder
from ssmsam.service.fewshot_service import FewShotService


def make_service(folder: Path, *, images: Sequence[str] = ("a", "b")) -> FewShotService:
    def over(studies: Path) -> StudiesFolder:
        return StudiesFolder(studies, labels=LABELS, auto_reload=False)

    return pocket_service.make_service(folder, images=images, over=over)
