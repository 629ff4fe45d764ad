"""The services run where no server's framework is installed."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from plain_files import PlainFiles

import ssmsam.service
from ssmsam.reading import read_volume
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.volume.writing import write_volume


def test_no_service_imports_one() -> None:
    names = [f"ssmsam.service.{module.name}" for module in pkgutil.iter_modules(ssmsam.service.__path__)]
    code = (
        "import importlib, sys\n"
        "sys.modules.update(dict.fromkeys(['monailabel', 'fastapi', 'starlette']))\n"  # None: not to be had
        f"[importlib.import_module(name) for name in {names!r}]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_annotated_slices_over_plain_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    image = write(tmp_path / "a.nii.gz")
    studies = AnnotatedStudies(PlainFiles(tmp_path), tmp_path / "annotations", labels=("liver",))
    mask = np.zeros((6, 20, 24), np.uint8)
    mask[2, 4:9, 4:9] = 1
    write_volume(read_volume(image).with_array(mask), tmp_path / "mask.nrrd")
    named = {"label_info": [{"name": "liver", "idx": 1}], "client_id": "reader"}
    receipt = studies.submit("a", tmp_path / "mask.nrrd", named)
    assert receipt.answer()["counted"] == ["counted as annotated: 2 (liver)"]
    assert studies.get_unlabeled_images() == ["a"] and studies.status()["partial"] == 1
    studies.save_label("a", str(tmp_path / "mask.nrrd"), "final", {**named, "partial": {"complete": True}})
    assert studies.get_labeled_images() == ["a"]
    assert np.array_equal(read_volume(studies.files.get_label_uri("a", "final")).array, mask)
    studies.undo("a", client="reader")
    assert studies.get_labeled_images() == [] and studies.files.get_labels_by_image_id("a") == {"partial": "a"}
