"""The folder of studies as a MONAI Label datastore."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssmsam.annotation.support import SupportSet
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.brought_labels import BroughtLabels
from ssmsam.server.folder import SynchronisedFolder
from ssmsam.server.identifiers import VOLUME_SUFFIXES

ANNOTATIONS = ".annotations"


class StudiesFolder(AnnotatedStudies, SynchronisedFolder):
    """MONAI Label's local datastore, which also sees DICOM series and keeps annotations slice by slice.

    Every .nii.gz, .nii or .nrrd file and every sub-folder with DICOM files is an image; its id is its name without
    the suffix. Labels lie under ``labels/<tag>/``, annotations in a hidden folder beside them. A final label that was
    put there by hand counts as annotated on all slices; ``named`` are the labels of its values from 1 where its info
    does not name them.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        labels: Sequence[str] = (),
        named: Sequence[str] = (),
        auto_reload: bool = True,
        read_only: bool = False,
    ) -> None:
        super().__init__(
            folder,
            extensions=[f"*{suffix}" for suffix in VOLUME_SUFFIXES],
            auto_reload=auto_reload,
            read_only=read_only,
        )
        self.keep_annotations(self.place_for(Path(folder) / ANNOTATIONS), labels=labels)
        if self.writable:
            self.mend_labels()
        self._brought = BroughtLabels(self, named)
        self._brought.look()

    @property
    def unused_labels(self) -> list[dict[str, Any]]:
        """Images whose final label was put there by hand and cannot be used: ``image``, ``reason``, ``since``."""
        return self._brought.aside.as_json()

    def support(self) -> SupportSet:
        self._brought.wait()
        return super().support()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The finished images. A label that was put there by hand counts once it was read."""
        annotated = self._service.store.overviews()
        return [image for image in super().get_labeled_images(label_tag, labels) if image in annotated]

    def refresh(self) -> None:
        super().refresh()
        if hasattr(self, "_brought"):  # the folder may be looked through before it is
            self._brought.look()

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
