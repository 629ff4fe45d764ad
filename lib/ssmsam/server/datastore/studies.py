"""MONAI Label's datastore: annotated studies, and the files behind them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from ssmsam.annotation.annotations import SupportSet
from ssmsam.annotation.store import ANNOTATIONS
from ssmsam.dicom.web import DicomStore
from ssmsam.server.datastore.dicomweb import DicomWebArchive
from ssmsam.server.datastore.folder import FolderFiles
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.label_import import LabelImport


def _of_files(name: str) -> Callable[..., Any]:
    """A method that the files have under this name."""

    def call(self: StudiesDatastore, *arguments: Any, **options: Any) -> Any:
        return getattr(self.files, name)(*arguments, **options)

    return call


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

    name = _of_files("name")
    set_name = _of_files("set_name")
    description = _of_files("description")
    set_description = _of_files("set_description")
    refresh = _of_files("refresh")
    json = _of_files("json")
    datalist = _of_files("datalist")
    get_dataset_archive = _of_files("get_dataset_archive")
    list_images = _of_files("list_images")
    add_image = _of_files("add_image")
    get_image = _of_files("get_image")
    get_image_uri = _of_files("get_image_uri")
    get_image_info = _of_files("get_image_info")
    update_image_info = _of_files("update_image_info")
    get_labels_by_image_id = _of_files("get_labels_by_image_id")
    get_label_by_image_id = _of_files("get_label_by_image_id")
    get_label = _of_files("get_label")
    get_label_uri = _of_files("get_label_uri")
    get_label_info = _of_files("get_label_info")
    update_label_info = _of_files("update_label_info")


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

    def annotated_labels(self) -> list[str]:
        self._import.wait()
        return super().annotated_labels()

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
        self.mend_labels()
