"""MONAI Label's datastore: annotated studies, the files behind them, and final labels that people put there by hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ssmsam.annotation.annotations import InvalidSubmission, SupportSet
from ssmsam.annotation.store import ANNOTATIONS
from ssmsam.dicom.web import DicomStore
from ssmsam.server.datastore.dicomweb import DicomWebArchive
from ssmsam.server.datastore.folder import FolderFiles
from ssmsam.service.annotated_studies import FINAL, AnnotatedStudies
from ssmsam.service.images import SetAside
from ssmsam.volume.errors import UnreadableVolume

logger = logging.getLogger(__name__)


class StudiesDatastore(AnnotatedStudies):
    """Annotated studies under the names by which MONAI Label calls a datastore's methods. Those that are about files
    alone (``json``, ``add_image``, ``get_image_info`` ...) are answered by ``files``.

    Args:
        files: a folder or an archive.
        folder: where the annotations lie, beside what ``files`` keep here.
        labels: what clients are offered, in their order.
    """

    files: FolderFiles | DicomWebArchive

    def __init__(self, files: FolderFiles | DicomWebArchive, folder: Path, *, labels: Sequence[str] = ()) -> None:
        super().__init__(files, files.place_for(folder / ANNOTATIONS), labels=labels)
        if files.writable:
            self.mend_labels()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.files, name)

    @property
    def unused_labels(self) -> list[dict[str, Any]]:
        """Images whose final label was put there by hand and cannot be used: ``image``, ``reason``, ``since``."""
        return []


class StudiesFolder(StudiesDatastore):
    """A folder of studies. Annotations lie in a hidden folder beside the labels.

    A final label that was put there by hand counts as annotated on all slices; ``named`` are the labels of its values
    from 1 where its info does not name them. These labels are read one after the other in a thread of its own. One that
    cannot be used is tried again when its file or its image changes.
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
        files = FolderFiles(folder, auto_reload=auto_reload, read_only=read_only)
        super().__init__(files, Path(folder), labels=labels)
        self._named = tuple(named)
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="label-import")
        self._aside = SetAside(self._label_state)
        files.on_change = self._look
        self._look()

    @property
    def unused_labels(self) -> list[dict[str, Any]]:
        return self._aside.as_json()

    def support(self) -> SupportSet:
        self._last_read.result()
        return super().support()

    def annotated_labels(self) -> list[str]:
        self._last_read.result()
        return super().annotated_labels()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The finished images. A label that was put there by hand counts once it was read."""
        annotated = self._service.store.overviews()
        return [image for image in super().get_labeled_images(label_tag, labels) if image in annotated]

    def _look(self) -> None:
        self._last_read = self._reader.submit(self._read_all)

    def _read_all(self) -> None:
        for image in self.files.list_images():
            if FINAL in self.files.get_labels_by_image_id(image) and not self._aside.reason(image):
                try:
                    self.bring(image, self._named)
                    self._aside.clear(image)
                    continue
                except (InvalidSubmission, UnreadableVolume) as error:
                    why = str(error)
                except Exception as error:  # one bad file stops no other
                    logger.exception("The final label of %s cannot be used", image)
                    why = f"it cannot be used ({type(error).__name__}); the server's log says more"
                told = f"{image}: its label in labels/final is not used: {why}"
                logger.warning("%s", told)
                self._aside.note(image, told)

    def _label_state(self, image: str) -> Hashable:
        try:
            files = (self.files.get_label_uri(image, FINAL), self.files.get_image_uri(image))
            return tuple((os.stat(file).st_mtime_ns, os.stat(file).st_size) for file in files)
        except OSError:
            return ()


class DicomWebStudies(StudiesDatastore):
    """The studies of a DICOMweb store. Annotations stay here until a volume is declared finished."""

    def __init__(self, store: DicomStore, *, folder: Path, labels: Sequence[str] = (), **options: Any) -> None:
        files = DicomWebArchive(store, folder=folder, **options)
        super().__init__(files, folder, labels=labels)
        files.finished = self.get_labeled_images
