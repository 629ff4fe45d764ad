"""The folder of studies as a MONAI Label datastore."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from ssmsam.imaging.dicom import looks_like_dicom
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.folder import SynchronisedFolder
from ssmsam.server.identifiers import VOLUME_SUFFIXES

logger = logging.getLogger(__name__)

ANNOTATIONS = ".annotations"
LABELS = "labels"

_SEEN: LRUCache[str, tuple[dict[str, int], tuple[bool, str]]] = LRUCache(maxsize=100_000)
"""What was found below a folder, and when the folders there changed last: the watcher asks again and again."""


class StudiesFolder(AnnotatedStudies, SynchronisedFolder):
    """MONAI Label's local datastore, which also sees DICOM series and keeps annotations slice by slice.

    Every .nii.gz, .nii or .nrrd file and every sub-folder with DICOM files, at any depth of it, is an image; its id is
    its name without the suffix. Labels lie under ``labels/<tag>/``, annotations in a hidden folder beside them.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        labels: Sequence[str] = (),
        auto_reload: bool = True,
        read_only: bool = False,
    ) -> None:
        self._named: set[str] = set()
        self.keep_annotations(Path(folder) / ANNOTATIONS, labels=labels)
        super().__init__(
            folder,
            extensions=[f"*{suffix}" for suffix in VOLUME_SUFFIXES],
            auto_reload=auto_reload,
            read_only=read_only,
        )

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info: dict[str, Any] = super().get_image_info(image_id)
        if os.path.isdir(info.get("path", "")):
            info["path"] = ""  # a viewer on this machine would try to open the folder; it has to ask for the file
            info["name"] = f"{image_id}.nii.gz"
        return info

    def _to_id(self, file: str) -> tuple[str, str]:
        for suffix in VOLUME_SUFFIXES:
            if file.endswith(suffix):
                return file[: -len(suffix)], suffix
        return file, ""

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        files: dict[str, str] = super()._list_files(path, patterns)
        files = {name: file for name, file in files.items() if not name.startswith(".")}  # macOS leaves ._ files
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            files.update({name: name for name in self._series_in(Path(path))})
        return files

    def _series_in(self, folder: Path) -> list[str]:
        """The names of the sub-folders that hold DICOM files. What else lies deeper is named once in the log."""
        found = []
        for entry in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
            if entry.name.startswith(".") or entry.name in (LABELS, "lost+found"):
                continue
            dicom, volumes = _contents(entry)
            if dicom:
                found.append(entry.name)
            if volumes and entry.name not in self._named:
                self._named.add(entry.name)
                logger.warning(
                    "%s holds files such as %s, which are no images here: move them into %s itself",
                    entry.name, volumes, folder,
                )  # fmt: skip
        return found


def _contents(folder: Path) -> tuple[bool, str]:
    """Whether DICOM files lie at any depth below a folder, and the first volume file below it ("" for none)."""
    key, volume = str(folder), ""
    with suppress(KeyError):
        stamps, known = _SEEN[key]
        if stamps == {path: _changed(path) for path in stamps}:
            return known
    stamps, dicom = {}, False
    for at, folders, files in os.walk(folder):
        stamps[at] = _changed(at)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(VOLUME_SUFFIXES):
                volume = volume or name
            elif not dicom:
                with suppress(OSError):
                    dicom = looks_like_dicom(Path(at) / name)
        if dicom:
            break
    _SEEN[key] = stamps, (dicom, "" if dicom else volume)
    return _SEEN[key][1]


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0
