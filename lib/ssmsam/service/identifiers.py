"""Names that a request may carry, and which of them are safe to become part of a path."""

from __future__ import annotations

import re
from pathlib import PurePath

from ssmsam.service.errors import InvalidName, shown

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd")
"""The files that may be uploaded as images or labels."""

_NAME = re.compile(r"[^\W][\w.+@() -]{0,254}")
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
_SESSION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LONGEST_NAME = 255 - max(map(len, VOLUME_SUFFIXES))
"""Bytes of a name with which a file can still be called in any of these kinds: 255 is what file systems take."""


def safe_name(name: str, *, what: str) -> str:
    """``name`` if it can be a file's name without leaving its folder, else :class:`InvalidName`."""
    fits = len(name.encode(errors="surrogatepass")) <= LONGEST_NAME
    if not fits or not _NAME.fullmatch(name) or ".." in name or name.endswith((".", " ")):
        raise InvalidName(
            f"{shown(name)} cannot be {what}: use letters, digits, '_', '-', '.', '+', '@' and spaces, "
            f"starting with a letter or digit, without '..', at most {LONGEST_NAME} bytes"
        )
    return name


def is_session_id(name: str) -> bool:
    """Whether ``name`` has the form that the server gives to its sessions."""
    return _SESSION.fullmatch(name) is not None


def is_uid(name: str) -> bool:
    """Whether ``name`` has the form of a DICOM UID. Leading zeros, which some devices write, are let through."""
    return _UID.fullmatch(name) is not None


def volume_suffix(filename: str | None, *, allowed: tuple[str, ...] = VOLUME_SUFFIXES) -> str:
    """The suffix of an uploaded file; no name counts as ``.nii.gz``. Raises InvalidName for another kind of file."""
    name = PurePath((filename or "image.nii.gz").replace("\\", "/")).name.lower()
    for suffix in allowed:
        if name.endswith(suffix):
            return suffix
    raise InvalidName(f"{shown(name)} is not a kind of file that can be sent here: use {', '.join(allowed)}")
