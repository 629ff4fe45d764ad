"""Modules under their names of before version 0.2, for scripts that still ask for these. They go with version 0.3."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

PACKAGES = ("ssmsam.imaging",)
MOVED = {
    "ssmsam.imaging.body": "ssmsam.volume.body",
    "ssmsam.imaging.codes": "ssmsam.dicom.terminology",
    "ssmsam.imaging.colours": "ssmsam.dicom.terminology",
    "ssmsam.imaging.dicom": "ssmsam.dicom.series",
    "ssmsam.imaging.dicom_file": "ssmsam.dicom.file",
    "ssmsam.imaging.dicom_pixels": "ssmsam.dicom.series",
    "ssmsam.imaging.dicom_seg": "ssmsam.dicom.seg_writer",
    "ssmsam.imaging.dicom_seg_check": "ssmsam.dicom.seg_check",
    "ssmsam.imaging.dicom_seg_frames": "ssmsam.dicom.seg_check",
    "ssmsam.imaging.dicom_seg_reading": "ssmsam.dicom.seg_reader",
    "ssmsam.imaging.itk": "ssmsam.volume.formats",
    "ssmsam.imaging.nifti": "ssmsam.volume.formats",
    "ssmsam.imaging.plane": "ssmsam.volume.geometry",
    "ssmsam.imaging.reading": "ssmsam.reading",
    "ssmsam.imaging.recipe": "ssmsam.volume.intensity",
    "ssmsam.imaging.unreadable": "ssmsam.volume.errors",
    "ssmsam.imaging.volume": "ssmsam.volume.volume",
    "ssmsam.imaging.writing": "ssmsam.files",
    "ssmsam.server.dicom_store": "ssmsam.dicom.web",
    "ssmsam.server.dicomweb": "ssmsam.server.datastore.dicomweb",
}
"""The old name of a module -> the one that it has now."""


class _Moved(MetaPathFinder, Loader):
    """Finds what is asked for under an old name where it is now."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in PACKAGES or name in MOVED:
            return ModuleSpec(name, self, is_package=name in PACKAGES)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if spec.name in PACKAGES:
            return None
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is {new} now; the old name goes with version 0.3", DeprecationWarning, stacklevel=2)
        return import_module(new)

    def exec_module(self, module: ModuleType) -> None:
        name = module.__spec__.name if module.__spec__ else ""
        if name in MOVED:  # it is loaded already, and stays what it is
            module.__spec__ = ModuleSpec(MOVED[name], None, origin=module.__file__)


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(one, _Moved) for one in sys.meta_path):
        sys.meta_path.append(_Moved())
