"""What was annotated as files of other programs: of one image, and of many as a data set to train on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import ssmsam
from ssmsam.annotation.annotations import Annotations, covered_voxels, label_map
from ssmsam.annotation.store import ANNOTATIONS, AnnotationStore
from ssmsam.dicom.rtstruct import write_rtstruct
from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered
from ssmsam.dicom.seg_writer import AlgorithmNotes, EmptySegmentation, write_seg
from ssmsam.files import WRITING
from ssmsam.reading import read_volume
from ssmsam.service.annotated_studies import AnnotatedStudies
from ssmsam.service.errors import InvalidRequest
from ssmsam.service.identifiers import VOLUME_SUFFIXES
from ssmsam.service.images import UNUSABLE, Images
from ssmsam.volume.intensity import guess_modality
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

FORMATS = {"nifti": ".nii.gz", "nrrd": ".nrrd", "dicom_seg": ".dcm", "rtstruct": ".dcm"}
"""Format -> the suffix of its file."""
OF_DICOM = {"dicom_seg": write_seg, "rtstruct": write_rtstruct}
"""Those that belong to the DICOM files of their image."""
IGNORE = "ignore"
"""What nnU-Net calls the label of voxels of which nothing is known."""

NOT_FINISHED = "it is not finished"


def export_formats(source: Path) -> list[str]:
    """The formats that can be made of an image that is stored at ``source``."""
    return [one for one in FORMATS if one not in OF_DICOM or source.is_dir()]


def write_labels(
    mask: Volume,
    labels: Mapping[str, int],
    path: Path,
    *,
    format: str,
    source: Path | None = None,
    notes: AlgorithmNotes | None = None,
    covered: Covered = NOTHING_COVERED,
) -> Path:
    """Write a label map as one of :data:`FORMATS`. ``source`` is the folder of the image's DICOM files; what labels
    ``covered`` of one another is in the formats of DICOM only.

    Raises InvalidRequest for another format, for an image that is no DICOM series where the format needs one, and where
    no label has a voxel there.
    """
    if format not in FORMATS:
        raise InvalidRequest(f"there is no format {format[:40]!r}: choose one of {', '.join(FORMATS)}")
    if format not in OF_DICOM:
        write_volume(mask, path)
        return path
    if source is None or format not in export_formats(source):
        raise InvalidRequest(
            f"{format} refers to DICOM images, and this image is a file of another kind: export nifti or nrrd, or put "
            "the series as a folder of DICOM files among the studies"
        )
    notes = notes or AlgorithmNotes(name="ssmsam", version=ssmsam.__version__)
    try:
        return OF_DICOM[format](mask, labels, source, path, algorithm=notes, covered=covered)
    except EmptySegmentation as error:
        raise InvalidRequest(str(error)) from None


def annotated_labels(
    annotations: Annotations, *, order: Sequence[str] = (), only: Collection[str] = ()
) -> tuple[Volume, dict[str, int], dict[str, np.ndarray]]:
    """What is annotated as a label map, which value is which label, and where labels lie beneath others. Raises
    InvalidRequest where nothing is."""
    array, values = label_map(annotations, order=order, only=only or None)
    if not values:
        of = f" of {', '.join(sorted(only))}" if only else ""
        raise InvalidRequest(f"no slice{of} is annotated: accept or draw one first")
    return Volume(array, annotations.grid.affine), values, covered_voxels(annotations, array, values)


@dataclass(frozen=True, kw_only=True)
class DatasetCase:
    """An image for a data set: its name, how it is read, and what is annotated."""

    name: str
    read: Callable[[], Volume]
    annotations: Annotations


def folder_cases(folder: Path) -> Iterator[DatasetCase]:
    """The annotated images of a folder of studies, without a server."""
    store = AnnotationStore(folder / ANNOTATIONS)
    for image in store.images():
        places = [folder / f"{image}{suffix}" for suffix in ("", *VOLUME_SUFFIXES)]
        place = next((one for one in places if one.exists()), None)
        known = store.load(image)
        if place is not None and known is not None:
            yield DatasetCase(name=image, read=partial(read_volume, place), annotations=known)


def studies_cases(studies: AnnotatedStudies, images: Images) -> Iterator[DatasetCase]:
    """The annotated images of a server's studies. An archive's are fetched when they are read."""
    for image, known in studies.all_annotations():

        def read(image: str = image) -> Volume:
            return images.open(images.from_datastore(image)).volume

        yield DatasetCase(name=image, read=read, annotations=known)


def write_nnunet(
    cases: Iterable[DatasetCase], folder: Path, *, labels: Sequence[str] = (), finished: bool = True, modality: str = ""
) -> dict[str, Any]:
    """Write a data set folder of nnU-Net v2, whole or not at all: ``dataset.json``, ``imagesTr`` and ``labelsTr``;
    returns a report.

    A voxel that nobody said anything about has the label ``ignore``, which nnU-Net leaves out of its loss: one on a
    slice that is not annotated, or outside of this image's labels where another label of the set is not annotated.

    Args:
        cases: those without a label of the set are left out.
        labels: those of the set, in their order; all that any case holds unless told.
        finished: leave out what is not finished.
        modality: only images of this one, as in CT. A data set has one.

    The report holds ``cases`` (name -> name in the files), ``labels`` (name -> value) and ``left_out`` (name -> why).
    Raises InvalidRequest where nothing is left, or where there are several modalities.
    """
    chosen, left_out = list[DatasetCase](), dict[str, str]()
    for case in cases:
        held = {key.label for key in case.annotations.slices} & set(labels or case.annotations.labels)
        if not held or (finished and not held <= case.annotations.complete):
            left_out[case.name] = NOT_FINISHED if held else "no slice of these labels is annotated"
        else:
            chosen.append(case)
    names = list(labels) or sorted({key.label for case in chosen for key in case.annotations.slices})
    if IGNORE in names:
        raise InvalidRequest(f"{IGNORE!r} is what nnU-Net calls unknown voxels: choose labels without it")
    values = {name: value for value, name in enumerate(names, start=1)}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=WRITING) as scratch:
        place = Path(scratch) / "set"
        written = dict[str, _Written]()
        for case in chosen:
            found = _write_case(case, place, values, modality=modality, taken={one.name for one in written.values()})
            if isinstance(found, _Written):
                written[case.name] = found
            else:
                left_out[case.name] = found
        report = {"cases": {name: one.name for name, one in written.items()}, "labels": values, "left_out": left_out}
        if not written:
            raise InvalidRequest(_none_left(left_out))
        (place / "dataset.json").write_text(json.dumps(_described(list(written.values()), values), indent=1))
        (place / "export.json").write_text(json.dumps(report, indent=1))
        place.rename(folder)
    return report


@dataclass(frozen=True)
class _Written:
    name: str
    modality: str
    ignores: bool
    """Whether something in it is unknown."""


def _write_case(
    case: DatasetCase, folder: Path, values: Mapping[str, int], *, modality: str, taken: Collection[str]
) -> _Written | str:
    """Write the image and the label of a case, or say why not."""
    try:
        volume = case.read()
    except UNUSABLE:
        return "its image cannot be read"
    if not volume.grid.matches(case.annotations.grid):
        return "its annotations belong to another image of this name"
    kind = volume.modality or guess_modality(volume)
    if modality and kind != modality:
        return f"it is {kind}"
    target, plain = nnunet_target(case.annotations, values), re.sub(r"[^\w.-]", "_", case.name)
    names = (plain, *(f"{plain}_{n}" for n in range(2, len(taken) + 3)))
    name = next(one for one in names if one not in taken)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_volume(volume, folder / "imagesTr" / f"{name}_0000.nii.gz")
    write_volume(Volume(target, volume.affine), folder / "labelsTr" / f"{name}.nii.gz")
    return _Written(name, kind, bool((target == len(values) + 1).any()))


def _none_left(left_out: Mapping[str, str]) -> str:
    """Why there is no data set, and what to do."""
    if NOT_FINISHED in left_out.values():
        step = "finish one, or take all that are annotated (--only annotated, over REST only=annotated)"
    else:
        step = "annotate a slice of each label, or choose other labels or another modality"
    first = "".join(f" ({name}: {why})" for name, why in list(left_out.items())[:1])
    return f"no image is left for the data set{first}: {step}"


def _described(written: Sequence[_Written], values: Mapping[str, int]) -> dict[str, Any]:
    """The content of ``dataset.json``. Raises InvalidRequest."""
    if len(kinds := sorted({one.modality for one in written})) > 1:
        raise InvalidRequest(f"the images are {' and '.join(kinds)}: a data set has one kind, choose it with modality")
    unknown = {IGNORE: len(values) + 1} if any(one.ignores for one in written) else {}
    return {
        "channel_names": {"0": kinds[0]},
        "labels": {"background": 0, **values, **unknown},
        "numTraining": len(written),
        "file_ending": ".nii.gz",
    }


def nnunet_target(annotations: Annotations, values: Mapping[str, int]) -> np.ndarray:
    """(slices, rows, columns) with the ``values`` of labels, 0 where it is known that none of them is there, and one
    more than the last value elsewhere."""
    array, own = label_map(annotations, order=list(values), only=values)
    table = np.zeros(len(own) + 1, dtype=np.uint8 if len(values) < 255 else np.uint16)
    for name, value in own.items():
        table[value] = values[name]
    target = table[array]
    known = np.ones(target.shape, dtype=bool)
    for name in values:
        known &= annotations.target(name)[1] > 0
    target[(target == 0) & ~known] = len(values) + 1
    return target
