"""The folder of studies as a MONAI Label datastore."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.folder import SynchronisedFolder
from ssmsam.server.identifiers import VOLUME_SUFFIXES

ANNOTATIONS = ".annotations"


class StudiesFolder(AnnotatedStudies, SynchronisedFolder):
    """MONAI Label's local datastore, which also sees DICOM series and keeps annotations slice by slice.

    Every .nii.gz, .nii or .nrrd file and every sub-folder with DICOM files is an image; its id is its name without
    the suffix. Labels lie under ``labels/<tag>/``, annotations in a hidden folder beside them.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        labels: Sequence[str] = (),
        auto_reload: bool = True,
        read_only: bool = False,
    ) -> None:
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
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            files.update({name: name for name in _series_in(Path(path))})
        return files


def _series_in(folder: Path) -> list[str]:
    """The names of the sub-folders that hold DICOM files."""
    candidates = (entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return sorted(entry.name for entry in candidates if _holds_dicom(entry))


def _holds_dicom(folder: Path) -> bool:
    """Whether the first file that is not hidden has DICOM's mark. One file is enough: folders can be large."""
    with os.scandir(folder) as entries:
        first = next((entry.path for entry in entries if entry.is_file() and not entry.name.startswith(".")), None)
    if first is None:
        return False
    with open(first, "rb") as file:
        return file.read(132)[128:] == b"DICM"
