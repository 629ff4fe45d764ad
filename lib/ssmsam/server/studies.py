"""The folder of studies as a MONAI Label datastore."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel

from ssmsam.annotation.support import SupportSet
from ssmsam.imaging.dicom_file import looks_like_dicom
from ssmsam.server.annotated import AnnotatedStudies
from ssmsam.server.brought_labels import BroughtLabels
from ssmsam.server.folder import SynchronisedFolder
from ssmsam.server.identifiers import VOLUME_SUFFIXES
from ssmsam.server.privacy import keep_names_out_of_logs

logger = logging.getLogger(__name__)

ANNOTATIONS = ".annotations"
LABELS = "labels"

SETTLED_S = 60.0
"""A folder without DICOM files that changed later than this is looked into again each time: files may still be on
their way into it. *Guess*: longer than one file takes to come over a slow network."""


class StudiesFolder(AnnotatedStudies, SynchronisedFolder):
    """MONAI Label's local datastore, which also sees DICOM series and keeps annotations slice by slice.

    Every .nii.gz, .nii or .nrrd file and every sub-folder with DICOM files, at any depth of it, is an image; its id is
    its name without the suffix. Labels lie under ``labels/<tag>/``, annotations in a hidden folder beside them. A final
    label that was put there by hand counts as annotated on all slices; ``named`` are the labels of its values from 1
    where its info does not name them.
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
        self._contents: dict[str, _Contents] = {}
        self._said: set[str] = set()
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
            if file.lower().endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        return file, ""

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Files, whatever the case of their suffix, and folders of series among images. Of one id the last counts.

        Hidden files are none: macOS leaves ._ files beside others.
        """
        files = [name for name in os.listdir(path) if name.lower().endswith(VOLUME_SUFFIXES) and name[0] != "."]
        files.sort(reverse=True)
        if os.path.realpath(path) == os.path.realpath(self._datastore.image_path()):
            whole = {name for name, image in self._datastore.objects.items() if not image.image.ext}
            files = [name for name in [*files, *self._series_in(Path(path))] if name not in whole]
        return self._named_in_text(path, files)

    def _add_non_existing_images(self) -> int:
        """Of files that differ in their suffix only, one has the plain name as its id, the others the whole name."""
        added = int(super()._add_non_existing_images())
        for name in self._list_files(self._datastore.image_path(), []):
            image_id, suffix = self._to_id(name)
            if not suffix:
                self._say_once(name, "the folder %s is not listed: a file has the same name", name)
            elif self._datastore.objects[image_id].image.ext != suffix:
                self._say_once(name, "%s is listed by its whole name: another image is called %s", name, image_id)
                info = {"ts": int(time.time()), "name": name}
                self._datastore.objects[name] = ImageLabelModel(image=DataModel(info=info))
                added += 1
        return added

    def _series_in(self, folder: Path) -> list[str]:
        """The names of the sub-folders that hold DICOM files. What else lies deeper is named once in the log."""
        entries = [
            entry
            for entry in sorted(folder.iterdir())
            if entry.is_dir() and not entry.name.startswith(".") and entry.name not in (LABELS, "lost+found")
        ]
        contents = {entry.name: self._contents.get(entry.name) or _Contents() for entry in entries}
        self._contents = {entry.name: contents[entry.name].looked_at(entry) for entry in entries}
        for name, found in self._contents.items():
            keep_names_out_of_logs([name, found.volume])
            if found.volume:
                self._say_once(
                    name,
                    "%s holds files such as %s, which are no images here: move them into %s itself",
                    name, found.volume, folder,
                )  # fmt: skip
        return [name for name, found in self._contents.items() if found.has_dicom]

    def _say_once(self, about: str, message: str, *arguments: object) -> None:
        """In full to those who may see /info/; the log names no image."""
        if about not in self._said:
            self._said.add(about)
            self.notices.append(message % arguments)
            logger.warning(message, *arguments)


@dataclass(frozen=True)
class _Contents:
    """What was found below a folder, and when each folder there had changed: the watcher asks again and again."""

    has_dicom: bool = False
    volume: str = ""
    changed: Mapping[str, float] = field(default_factory=dict)

    def looked_at(self, folder: Path) -> _Contents:
        """The same if nothing changed since, else what is there now."""
        is_settled = self.has_dicom or time.time() - max(self.changed.values(), default=0.0) > SETTLED_S
        if self.changed and is_settled and all(_changed(path) == then for path, then in self.changed.items()):
            return self
        changed, volume = {}, ""
        for at, folders, files in os.walk(folder):
            changed[at] = _changed(at)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if name.startswith("."):
                    continue
                if name.lower().endswith(VOLUME_SUFFIXES):
                    volume = volume or name
                elif _is_dicom(Path(at) / name):
                    return _Contents(True, volume, changed)
        return _Contents(False, volume, changed)


def _is_dicom(path: Path) -> bool:
    try:
        return looks_like_dicom(path)
    except OSError:  # gone again, or not ours to read
        return False


def _changed(folder: str) -> float:
    try:
        return os.stat(folder).st_mtime
    except OSError:
        return 0.0
