"""Images and label files in a folder, without any server's framework."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered

SUFFIX = ".nii.gz"


class PlainFiles:
    """Every NIfTI file is an image. Labels lie under ``labels/<tag>/``; what is said of them is kept in memory."""

    remote = False
    writable = True
    place = "a folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._infos: dict[tuple[str, str], dict[str, Any]] = {}
        self.notices: list[str] = []

    def name(self) -> str:
        return self._folder.name

    def list_images(self) -> list[str]:
        return sorted(file.name.removesuffix(SUFFIX) for file in self._folder.glob(f"*{SUFFIX}"))

    def knows(self, image_id: str) -> bool:
        return image_id in self.list_images()

    def get_image_uri(self, image_id: str) -> str:
        return str(self._folder / f"{image_id}{SUFFIX}")

    def get_labeled_images(self) -> list[str]:
        return [image for image, tag in self._infos if tag == "final"]

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        return {tag: image for image, tag in self._infos if image == image_id}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        return str(self._folder / "labels" / label_tag / f"{label_id}{SUFFIX}")

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        return self._infos.get((label_id, label_tag), {})

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        covered: Covered = NOTHING_COVERED,
    ) -> str:
        file = Path(self.get_label_uri(image_id, label_tag))
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(label_filename, file)
        self._infos[image_id, label_tag] = dict(label_info)
        return image_id

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        self._infos[label_id, label_tag].update(info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        del self._infos[label_id, label_tag]
        Path(self.get_label_uri(label_id, label_tag)).unlink()

    def remove_image(self, image_id: str) -> None:
        Path(self.get_image_uri(image_id)).unlink()

    def status(self) -> dict[str, Any]:
        return {"total": len(self.list_images())}

    def require_writable(self) -> None:
        """It always is."""
