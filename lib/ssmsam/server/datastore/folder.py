"""The folder of studies as a MONAI Label datastore."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore

from ssmsam.annotation.slice_state import InvalidSubmission
from ssmsam.annotation.support import SupportSet
from ssmsam.dicom.file import looks_like_dicom
from ssmsam.server.datastore.annotated import FINAL, AnnotatedStudies
from ssmsam.server.datastore.local_record import SoundRecord
from ssmsam.server.identifiers import VOLUME_SUFFIXES
from ssmsam.service.set_aside import SetAside
from ssmsam.volume.errors import UnreadableVolume


def _synchronised(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: SynchronisedFolder, *args: Any, **kwargs: Any) -> Any:
        with self._changing:
            return method(self, *args, **kwargs)

    return call


class SynchronisedFolder(SoundRecord):
    """The local datastore, with its record read and changed by one thread at a time.

    The watcher of the folder empties the record for a moment while it looks again, and may exchange it for what
    another process wrote. A request that comes in between would find no image, or lose the label that it saves.
    """

    def __init__(self, folder: str | os.PathLike[str], **settings: Any) -> None:
        self._changing = threading.RLock()
        super().__init__(folder, **settings)
        if hasattr(self, "_handler"):  # files that appear in one step come by another name
            self._handler.on_moved = self._on_moved

    def remove_label(self, label_id: str, label_tag: str) -> None:
        with self._changing:
            super().remove_label(label_id, label_tag)
            known = self._datastore.objects.get(label_id)
            if known is not None and known.labels.pop(label_tag, None) is not None:  # the watcher would come later
                self._update_datastore_file()

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()
        else:
            self.refresh()

    list_images = _synchronised(LocalDatastore.list_images)
    get_labeled_images = _synchronised(LocalDatastore.get_labeled_images)
    get_image_uri = _synchronised(LocalDatastore.get_image_uri)
    get_image_info = _synchronised(LocalDatastore.get_image_info)
    get_label_uri = _synchronised(LocalDatastore.get_label_uri)
    get_label_info = _synchronised(LocalDatastore.get_label_info)
    get_labels_by_image_id = _synchronised(LocalDatastore.get_labels_by_image_id)
    save_label = _synchronised(SoundRecord.save_label)
    add_image = _synchronised(SoundRecord.add_image)
    update_image_info = _synchronised(SoundRecord.update_image_info)
    update_label_info = _synchronised(SoundRecord.update_label_info)
    datalist = _synchronised(LocalDatastore.datalist)
    status = _synchronised(LocalDatastore.status)
    json = _synchronised(LocalDatastore.json)
    _reconcile_datastore = _synchronised(LocalDatastore._reconcile_datastore)
    _init_from_datastore_file = _synchronised(SoundRecord._init_from_datastore_file)


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
            if found.volume:
                self._say_once(
                    name,
                    "%s holds files such as %s, which are no images here: move them into %s itself",
                    name, found.volume, folder,
                )  # fmt: skip
        return [name for name, found in self._contents.items() if found.has_dicom]

    def _say_once(self, about: str, message: str, *arguments: object) -> None:
        if about not in self._said:
            self._said.add(about)
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


class BroughtLabels:
    """Reads the final labels of images without annotations, one after the other in a thread of its own.

    ``names`` are the labels of the values from 1 where a label's info does not say. ``aside`` holds those that cannot
    be used; each is tried again when its file or its image changes.
    """

    def __init__(self, studies: StudiesFolder, names: Sequence[str]) -> None:
        self._studies, self._names = studies, tuple(names)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="brought-labels")
        self._last: Future[None] | None = None
        self.aside = SetAside(self._state)

    def look(self) -> None:
        """Look for labels that were not read yet."""
        self._last = self._thread.submit(self._read_all)

    def wait(self) -> None:
        """Until all that there were when :meth:`look` was called last are read."""
        if self._last is not None:
            self._last.result()

    def _read_all(self) -> None:
        for image in self._studies.list_images():
            if FINAL in self._studies.get_labels_by_image_id(image) and not self.aside.reason(image):
                try:
                    self._studies.bring(image, self._names)
                    self.aside.clear(image)
                except (InvalidSubmission, UnreadableVolume) as error:
                    self._put_aside(image, str(error))
                except Exception as error:  # one bad file stops no other
                    logger.exception("The final label of %s cannot be used", image)
                    self._put_aside(image, f"it cannot be used ({type(error).__name__}); the server's log says more")

    def _put_aside(self, image: str, reason: str) -> None:
        told = f"{image}: its label in labels/final is not used: {reason}"
        logger.warning("%s", told)
        self.aside.note(image, told)

    def _state(self, image: str) -> Hashable:
        try:
            files = (self._studies.get_label_uri(image, FINAL), self._studies.get_image_uri(image))
            return tuple((os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files)
        except OSError:
            return ()
