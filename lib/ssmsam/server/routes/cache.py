"""What is kept of patients' images only to save time: how much there is, and removing it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ssmsam.server.routes.common import Admin, the_app
from ssmsam.service.patient_cache import cached, purge

router = APIRouter(prefix="/cache", tags=["Cache"])


@router.get("", summary="Cached patient data: what there is, and what DELETE would remove")
@router.get("/", include_in_schema=False)
def cache(user: Admin) -> dict[str, Any]:
    return {"places": [place.as_json() for place in cached(the_app().cache_folders())]}


@router.delete("", summary="Remove all cached patient data; annotations, labels and task checkpoints stay")
@router.delete("/", include_in_schema=False)
def remove(user: Admin) -> dict[str, Any]:
    """Embeddings, support caches, downloaded series and sessions on disk. What is needed is made again, which takes
    time. What is in the memory of a running server goes when it ends."""
    app = the_app()
    told = purge(cached(app.cache_folders()))
    app.answers.clear()
    return {"removed": told}
