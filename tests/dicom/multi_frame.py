"""A series of single-frame files made into one multi-frame file, as scanners and archives write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pydicom
from highdicom.legacy import LegacyConvertedEnhancedCTImage, LegacyConvertedEnhancedMRImage
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

ENHANCED_CT, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.4.1"


def multi_frame(
    series: Path,
    path: Path,
    *,
    order: Sequence[int] | None = None,
    shared: Sequence[str] = (),
    edit: Callable[[Dataset, int], None] | None = None,
) -> Path:
    """Write the files of ``series`` as one file at ``path``, its frames in ``order``. Returns its folder.

    ``shared`` names groups that are said once for all frames; ``edit`` may change the groups of each frame.
    """
    slices = [pydicom.dcmread(file) for file in sorted(series.iterdir())]
    slices = [slices[n] for n in order or range(len(slices))]
    for one in slices:
        one.AcquisitionDate, one.AcquisitionTime = DA("20240101"), TM("120000")  # as highdicom wants them
    kind = LegacyConvertedEnhancedCTImage if slices[0].Modality == "CT" else LegacyConvertedEnhancedMRImage
    made = kind(
        slices, series_instance_uid=slices[0].SeriesInstanceUID, series_number=1, sop_instance_uid=generate_uid(),
        instance_number=1,
    )  # fmt: skip
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = (
        ENHANCED_CT if made.Modality == "CT" else ENHANCED_MR if shared else made.SOPClassUID
    )
    for n, groups in enumerate(made.PerFrameFunctionalGroupsSequence):
        for name in shared:
            made.SharedFunctionalGroupsSequence[0][name] = groups[name]
            del groups[name]
        if edit:
            edit(groups, n)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
    return path.parent


def say(group: str, name: str, values: Sequence[object]) -> Callable[[Dataset, int], None]:
    """An edit that gives each frame its own of ``values`` in a group."""

    def edit(groups: Dataset, n: int) -> None:
        item = groups[group].value[0] if group in groups else Dataset()
        setattr(item, name, values[n])
        setattr(groups, group, [item])

    return edit
