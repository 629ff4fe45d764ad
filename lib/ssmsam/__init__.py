"""Annotate a few slices of a volume and get the rest.

>>> from ssmsam import FewShotSegmenter, PromptSegmenter, read_volume

Everything that is meant to be called from outside can be imported from here, see :mod:`ssmsam.api`. It is loaded when
it is first asked for: ``import ssmsam`` alone takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ssmsam import moved

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ssmsam.api import (
        Example,
        FewShotSegmenter,
        PromptMask,
        PromptSegmenter,
        Propagated,
        Segmentation,
        SegmentationTask,
        task_card,
        write_dicom_seg,
        write_volume,
    )
    from ssmsam.reading import read_volume
    from ssmsam.volume.volume import as_volume

__all__ = [
    "Example",
    "FewShotSegmenter",
    "PromptMask",
    "PromptSegmenter",
    "Propagated",
    "Segmentation",
    "SegmentationTask",
    "as_volume",
    "read_volume",
    "task_card",
    "write_dicom_seg",
    "write_volume",
]


_ELSEWHERE = {"as_volume": "ssmsam.volume.volume", "read_volume": "ssmsam.reading"}
"""What can be had without loading PyTorch."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ssmsam' has no attribute {name!r}")
    return getattr(import_module(_ELSEWHERE.get(name, "ssmsam.api")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


moved.install()
