"""MONAI Label's datastore: annotated studies, and the files behind them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from ssmsam.annotation.support import SupportSet
from ssmsam.dicom.web import DicomStore
from ssmsam.server.datastore.dicomweb import DicomWebArchive
from ssmsam.server.datastore.folder import FolderFiles
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.label_import import LabelImport

ANNOTATIONS = ".annotations"
"""The folder of the annotations, beside that of the labels."""


class StudiesDatastore(AnnotatedStudies, Datastore):
    """Annotated studies under the names by which MONAI Label calls a datastore's methods.

    Args:
        files: a folder or an archive.
        folder: where the annotations lie, beside what ``files`` keep here.
        labels: what clients are offered, in their order.
    """

    files: FolderFiles | DicomWebArchive

    def __init__(self, files: FolderFiles | DicomWebArchive, folder: Path, *, labels: Sequence[str] = ()) -> None:
        super().__init__(files, files.place_for(folder / ANNOTATIONS), labels=labels)

    @property
    def unused_labels(self) -> list[dict[str, Any]]:
        """Images whose final label was put there by hand and cannot be used: ``image``, ``reason``, ``since``."""
        return []

    def name(self) -> str:
        return self.files.name()

    def set_name(self, name: str) -> None:
        self.files.set_name(name)

    def description(self) -> str:
        return str(self.files.description())

    def set_description(self, description: str) -> None:
        self.files.set_description(description)

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.files.datalist(full_path)
        return found

    def list_images(self) -> list[str]:
        return self.files.list_images()

    def get_image(self, image_id: str, params: Any = None) -> Any:
        return self.files.get_image(image_id, params)

    def get_image_uri(self, image_id: str) -> str:
        return self.files.get_image_uri(image_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        return self.files.get_image_info(image_id)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self.files.update_image_info(image_id, info)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        return self.files.add_image(image_id, image_filename, image_info)

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return self.files.get_labels_by_image_id(image_id)

    def get_label_by_image_id(self, image_id: str, tag: str) -> str:
        return self.files.get_labels_by_image_id(image_id).get(tag, "")

    def get_label(self, label_id: str, label_tag: str, params: Any = None) -> Any:
        return self.files.get_label(label_id, label_tag, params)

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return self.files.get_label_uri(label_id, label_tag)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return self.files.get_label_info(label_id, label_tag)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        self.files.update_label_info(label_id, label_tag, info)

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        return str(self.files.get_dataset_archive(limit_cases))

    def refresh(self) -> None:
        self.files.refresh()

    def json(self) -> dict[str, Any]:
        return self.files.json()


class StudiesFolder(StudiesDatastore):
    """A folder of studies. Annotations lie in a hidden folder beside the labels.

    A final label that was put there by hand counts as annotated on all slices; ``named`` are the labels of its values
    from 1 where its info does not name them.
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
        if files.writable:
            self.mend_labels()
        self._import = LabelImport(self, named)
        files.on_change = self._import.look
        self._import.look()

    @property
    def unused_labels(self) -> list[dict[str, Any]]:
        return self._import.aside.as_json()

    def support(self) -> SupportSet:
        self._import.wait()
        return super().support()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """The finished images. A label that was put there by hand counts once it was read."""
        annotated = self._service.store.overviews()
        return [image for image in super().get_labeled_images(label_tag, labels) if image in annotated]


class DicomWebStudies(StudiesDatastore):
    """The studies of a DICOMweb store. Annotations stay here until a volume is declared finished."""

    def __init__(self, store: DicomStore, *, folder: Path, labels: Sequence[str] = (), **options: Any) -> None:
        files = DicomWebArchive(store, folder=folder, **options)
        super().__init__(files, folder, labels=labels)
        files.finished = self.get_labeled_images
