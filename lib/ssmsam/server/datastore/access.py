"""How to get into the DICOMweb store: from MONAI Label's settings, and a token from the environment."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from monailabel.config import settings

from ssmsam.dicom.web import StoreAccess

TOKEN_VARIABLE = "SSMSAM_DICOMWEB_TOKEN"
"""The environment variable with an OAuth bearer token for the store."""

FILTER_SETTING = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


def is_dicomweb(studies: str) -> bool:
    """Whether the studies are the address of a server rather than a folder."""
    return studies.startswith(("http://", "https://"))


def store_access(url: str) -> StoreAccess:
    """The access to the store at ``url``."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    return StoreAccess(
        url=url.strip().rstrip("/"),
        user=settings.MONAI_LABEL_DICOMWEB_USERNAME,
        password=settings.MONAI_LABEL_DICOMWEB_PASSWORD,
        token=(lambda: token) if token else _google_token if "googleapis.com" in url else None,
        read_s=settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT,
        qido=settings.MONAI_LABEL_QIDO_PREFIX,
        wado=settings.MONAI_LABEL_WADO_PREFIX,
        stow=settings.MONAI_LABEL_STOW_PREFIX,
    )


def search_filters(modalities: tuple[str, ...]) -> dict[str, Any]:
    """Which series are images: those of ``modalities``, unless MONAI Label's own setting says something else."""
    if FILTER_SETTING in settings.model_fields_set:
        return dict(settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER)
    return {"Modality": list(modalities)}


def _google_token() -> str:
    import google.auth.transport.requests

    credentials = _google_credentials()
    if not credentials.valid:
        credentials.refresh(google.auth.transport.requests.Request())
    return str(credentials.token)


@cache
def _google_credentials() -> Any:
    import google.auth

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    return credentials
