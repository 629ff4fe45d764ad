"""A folder with images and label files, as MONAI Label keeps one."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel
from pydicom.dataset import Dataset

from ssmsam.dicom.file import looks_like_dicom
from ssmsam.dicom.measurements import measurement_files
from ssmsam.server.datastore.local_record import SoundRecord
from ssmsam.server.monailabel_patches import held
from ssmsam.server.privacy import keep_names_out_of_logs
from ssmsam.service.identifiers import VOLUME_SUFFIXES

logger = logging.getLogger(__name__)

LABELS = "labels"

SETTLED_S = 60.0
"""A folder without DICOM files that changed later than this is looked into again each time: files may still be on
their way into it. *Guess*: longer than one file takes to come over a slow network."""


@held(
    "changing", "list_images", "get_labeled_images", "get_image_uri", "get_image_info", "get_label_uri",
    "get_label_info", "get_labels_by_image_id", "save_label", "add_image", "update_image_info", "update_label_info",
    "datalist", "status", "json", "_reconcile_datastore", "_init_from_datastore_file",
)  # fmt: skip
class FolderFiles(SoundRecord):
    """MONAI Label's local datastore, which also sees DICOM series.

    Every .nii.gz, .nii or .nrrd file and every sub-folder with DICOM files, at any depth of it, is an image; its id is
    its name without the suffix. Labels lie under ``labels/<tag>/``. ``on_change`` is called after the folder was looked
    through again.
    """

    remote = False
    place = "the folder of studies, as the label 'final'"

    def __init__(self, folder: str | os.PathLike[str], *, auto_reload: bool = True, read_only: bool = False) -> None:
        self._contents: dict[str, _Contents] = {}
        self._said: set[str] = set()
        self.on_change: Callable[[], None] = lambda: None
        self._lock = threading.RLock()
        super().__init__(
            folder,
            extensions=[f"*{suffix}" for suffix in VOLUME_SUFFIXES],
            auto_reload=auto_reload,
            read_only=read_only,
        )
        if hasattr(self, "_handler"):  # files that appear in one step come by another name
            self._handler.on_moved = self._on_moved

    def changing(self) -> AbstractContextManager[Any]:
        """Of the threads here, one at a time is in this block."""
        return self._lock

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self.changing():
            super().remove_label(label_id, label_tag)
            known = self._datastore.objects.get(label_id)
            if known is not None and known.labels.pop(label_tag, None) is not None:  # the watcher would come later
                self._update_datastore_file()

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()
        else:
            self.refresh()

    def drawn_on(self, image_id: str) -> Iterator[Dataset]:
        """The reports and presentation states beside an image's DICOM files."""
        folder = Path(self.get_image_uri(image_id) or ".nothing")
        return measurement_files(folder) if folder.is_dir() else iter(())

    def knows(self, image_id: str) -> bool:
        return image_id in self.list_images()

    def refresh(self) -> None:
        super().refresh()
        self.on_change()

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        info: dict[str, Any] = super().get_image_info(image_id)
        if os.path.isdir(info.get("path", "")):
            info["path"] = ""  # a viewer on this machine would try to open the folder; it has to ask for the file
            info["name"] = f"{image_id}.nii.gz"
        return info

    def get_image_uri(self, image_id: str) -> str:
        """The file or folder by its own name: what a link leads to may have no suffix."""
        known = self._datastore.objects.get(image_id)
        if known is None:
            return ""
        return os.path.join(os.path.realpath(self._datastore.image_path()), self._filename(image_id, known.image.ext))

    def _to_id(self, file: str) -> tuple[str, str]:
        for suffix in VOLUME_SUFFIXES:
            if file.lower().endswith(suffix):
                return file[: -len(suffix)], file[-len(suffix) :]
        return file, ""

    def _list_files(self, path: str, patterns: list[str]) -> dict[str, str]:
        """Files, whatever the case of their suffix, and folders of series among images. Of one id the last counts.

        Hidden files are none: macOS leaves ._ files beside others. Nor are pipes and devices, which may never end.
        """
        with os.scandir(path) as entries:
            named = [one for one in entries if one.name.lower().endswith(VOLUME_SUFFIXES) and one.name[0] != "."]
        files = sorted((one.name for one in named if os.path.isfile(one)), reverse=True)
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
            if entry.is_dir()
            and not entry.name.startswith(".")
            and entry.name not in (LABELS, "lost+found")
            and not folder.resolve().is_relative_to(entry.resolve())  # a link back to where we are
        ]
        contents = {entry.name: self._contents.get(entry.name) or _Contents() for entry in entries}
        self._contents = {entry.name: contents[entry.name].looked_at(entry) for entry in entries}
        for name, found in self._contents.items():
            # a folder that is no image is named: whoever started the server has to find it
            keep_names_out_of_logs([name, found.volume] if found.has_dicom else [found.volume])
            if found.volume:
                self._say_once(
                    name,
                    "%s holds files such as %s, which are no images here: move them into %s itself",
                    name, found.volume, folder,
                )  # fmt: skip
        return [name for name, found in self._contents.items() if found.has_dicom]

    def _say_once(self, about: str, message: str, *arguments: object) -> None:
        """In full to those who may see /info/; the log names no image and no volume."""
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
