"""The images and label files of a DICOMweb store, with a part of them in a folder here."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from pydicom.dataset import Dataset

import ssmsam
from ssmsam.annotation.annotations import InvalidSubmission
from ssmsam.annotation.labels import read_label_info
from ssmsam.dicom.measurements import MODALITIES
from ssmsam.dicom.seg_check import NOTHING_COVERED, Covered
from ssmsam.dicom.seg_reader import read_segs
from ssmsam.dicom.seg_writer import AlgorithmNotes, write_seg
from ssmsam.dicom.series import DicomSeries, find_series
from ssmsam.dicom.web import (
    DicomStore,
    Filters,
    SegmentationRecord,
    SeriesRecord,
    StoreRefused,
    StoreUnavailable,
    segmentation_record,
    series_record,
)
from ssmsam.files import private_folder, write_bytes
from ssmsam.paths import SERIES
from ssmsam.progress import Cancelled, shielded
from ssmsam.reading import UnreadableVolume, read_volume
from ssmsam.server.datastore.catalogue import FRESH_S, DicomCatalogue, SeriesCache
from ssmsam.server.datastore.local_record import SoundRecord
from ssmsam.service.annotated_studies import FINAL, UNSENT, Info, raw_mask, required_names, turned_to
from ssmsam.service.errors import InvalidRequest, NotKnown
from ssmsam.service.identifiers import is_uid
from ssmsam.service.jobs import Job, Jobs
from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume

logger = logging.getLogger(__name__)

STORE = "store"
"""The kind of a job that takes a finished label to the archive."""
STORED = "stored"
"""Of an image: the UIDs of the SEGs that were stored from here, the last one last."""
STORED_DIGEST = "stored_digest"
"""Of an image: what the last of them was made of."""
OUTGOING = "outgoing"
"""The folder of SEGs that the store did not confirm. It may have them: they are sent again as they are."""
KEPT = (
    f"The mask is kept on this server under the tag {UNSENT!r} and sent as soon as the store takes it; submit it again "
    "to try at once."
)
MOST_STORED = 100
"""How many of them are remembered. A guess: only the last few can come from a clock that was set back."""


class DicomWebArchive(SoundRecord):
    """CT and MR series of a DICOMweb store are the images, by series UID; a final label becomes a DICOM SEG there.

    ``folder`` keeps downloaded series (within ``quota_bytes``, the least recently used go first) and every label
    that is not final. Which images have a final label is what the store says: a SEG that somebody else stored
    counts, several are put together, each label as the newest has it, and one that is removed there is gone here.

    Raises StoreUnavailable and StoreRefused wherever the store is asked; NotKnown for other images.
    """

    remote = True
    place = "the archive, as DICOM SEG"

    def __init__(
        self,
        store: DicomStore,
        *,
        folder: Path,
        filters: Filters,
        quota_bytes: int,
        fresh_s: float = FRESH_S,
        jobs: Jobs | None = None,
    ) -> None:
        # not as a DICOMWebDatastore: it watches its folder and mistakes files that come and go for images
        SoundRecord.__init__(self, folder, images_dir=SERIES, auto_reload=False, read_only=True)
        folder.chmod(0o700)  # what lies here shows patients
        self._store = store
        self._catalogue = DicomCatalogue(store, filters=filters, stored=self._stored_before, fresh_s=fresh_s)
        self._cache = SeriesCache(folder / SERIES, quota_bytes=quota_bytes)
        self._outgoing = folder / OUTGOING
        self._registry = threading.RLock()
        self._jobs = jobs or Jobs()
        self.finished: Callable[[], list[str]] = self.get_labeled_images
        """The images whose final labels are given away as training data."""
        logger.info("Studies come from %s; local files are in %s", store.access.name, folder)

    def name(self) -> str:
        return self._store.access.name

    def knows(self, image_id: str) -> bool:
        """Whether this is the UID of an image series in the store."""
        try:
            return self._find(image_id) is not None
        except (StoreUnavailable, StoreRefused):
            if image_id not in self._datastore.objects:
                raise
            return True

    def list_images(self) -> list[str]:
        return list(self._catalogue.images())

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        return list(self._catalogue.segmentations())

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        finished = self._catalogue.segmentations()
        return [image for image in self._catalogue.images() if image not in finished]

    def status(self) -> dict[str, Any]:
        """Counts for viewers, who ask often. Never raises: ``trouble`` says that the store does not answer."""
        tags: dict[str, int] = {}
        for image in list(self._datastore.objects.values()):
            for tag in image.labels:
                tags[tag] = tags.get(tag, 0) + (tag != FINAL)
        total, completed = (_count(what) for what in (self.list_images, self.get_labeled_images))
        tags[FINAL] = completed
        trouble = {"trouble": why} if (why := self._catalogue.trouble) else {}
        return {"total": total, "completed": completed, "label_tags": {k: n for k, n in tags.items() if n}, **trouble}

    def json(self) -> dict[str, Any]:
        """Every image of the store with its labels, in the shape of the local datastore's file."""
        contents: dict[str, Any] = super().json()
        for image in self.list_images():
            contents["objects"].setdefault(image, ImageLabelModel(image=_image_model(image)).model_dump())
        for image, records in self._catalogue.segmentations().items():
            stored = {"SeriesInstanceUID": records[0].series_uid, "SOPInstanceUID": records[0].instance_uid}
            contents["objects"][image]["labels"].setdefault(FINAL, {"ext": ".dcm", "info": stored})
        return contents

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """What viewers show of an image. What names the patient comes from the store and is not written to disk."""
        record = self._record(image_id)
        self._register(image_id)
        info = copy.deepcopy(self._datastore.objects[image_id].image.info)
        for ours in (STORED, STORED_DIGEST):
            info.pop(ours, None)
        return {
            **info,
            "path": "",  # a viewer on this machine would try to open the folder; it has to ask for the file
            "Modality": record.modality,
            "PatientID": record.patient_id,
            "StudyDate": record.study_date,
            "StudyTime": record.study_time,
            "StudyInstanceUID": record.study_uid,
            "SeriesInstanceUID": record.series_uid,
        }

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self._record(image_id)
        self._register(image_id)
        super().update_image_info(image_id, info)

    def get_image_uri(self, image_id: str) -> str:
        """The folder with the files of the series, downloaded now if need be."""
        record = self._record(image_id)
        self._register(image_id)
        whole = self._cache.find(image_id, files=record.instances)
        if whole is None:
            whole = self._cache.add(image_id, lambda folder: self._store.fetch(record, folder), files=record.instances)
            logger.info("Downloaded series %s", image_id)
        return str(whole)

    def drawn_on(self, image_id: str) -> Iterator[Dataset]:
        """The reports and presentation states of an image's study."""
        return self._store.objects(self._record(image_id).study_uid, MODALITIES)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        raise InvalidRequest(f"images come from {self.name()}: send the DICOM series there, and it is listed here")

    def remove_image(self, image_id: str) -> None:
        raise InvalidRequest(f"images belong to {self.name()}: remove the series there")

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        labels: dict[str, str] = super().get_labels_by_image_id(image_id)
        labels.pop(FINAL, None)
        return labels | ({FINAL: image_id} if image_id in self._catalogue.segmentations() else {})

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The label's file, "" when there is none. ``label_id`` is the image's id."""
        if label_tag != FINAL:
            return str(LocalDatastore.get_label_uri(self, label_id, label_tag))
        records = self._catalogue.segmentations().get(label_id)
        if not records:  # it may be on its way
            return str(LocalDatastore.get_label_uri(self, label_id, UNSENT))
        self._record(label_id)
        self._read_back(label_id, records)
        return str(LocalDatastore.get_label_uri(self, label_id, FINAL))

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        if label_tag == FINAL:
            self.get_label_uri(label_id, label_tag)
            label_tag = FINAL if self._datastore.label(label_id, FINAL) else UNSENT
        info: dict[str, Any] = super().get_label_info(label_id, label_tag)
        return info

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: Info, covered: Covered = NOTHING_COVERED
    ) -> str:
        """Keep a label. A final one is stored as DICOM SEG first, where labels may overlap; returns the image's id.

        Raises InvalidRequest for a mask that cannot be stored: it is empty, not on the image's grid, or has values
        without a name in ``label_info``. When the store does not take the SEG, or does not send the image that it is
        of, the mask is kept under ``unsent``.
        """
        try:
            self._record(image_id)
        except (StoreUnavailable, StoreRefused):
            if image_id not in self._datastore.objects:
                raise
        self._register(image_id)
        file, info = Path(label_filename), dict(label_info or {})
        is_raw = file.suffix == ".bin"
        if label_tag != FINAL and not is_raw:
            return self._keep(image_id, label_filename, label_tag, info)
        try:
            series = find_series(Path(self.get_image_uri(image_id)))
        except (StoreUnavailable, StoreRefused) as error:
            if is_raw:
                raise
            raise self._kept(image_id, file, info, error) from error
        with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
            mask = raw_mask(file, series.grid) if is_raw else turned_to(read_volume(file), series.grid)
            file = Path(scratch) / "label.nii.gz"
            write_volume(mask, file)
            if label_tag == FINAL:
                self._store_final(image_id, mask, series, file, info, covered)
            return self._keep(image_id, str(file), label_tag, info)

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """Remove a label here. The DICOM SEG of a final one stays in the store, which has its own rules for that."""
        self.require_writable()
        if path := str(LocalDatastore.get_label_uri(self, label_id, label_tag)):
            Path(path).unlink(missing_ok=True)
        with self._registry:
            self._init_from_datastore_file()
            image = self._datastore.objects.get(label_id)
            if image and image.labels.pop(label_tag, None):
                self._update_datastore_file()

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Image and final label of everything that is finished, downloaded. What cannot be read is left out."""
        pairs = []
        for image in self.finished():
            try:
                pairs.append({"image": self.get_image_uri(image), "label": self.get_label_uri(image, FINAL)})
            except (StoreUnavailable, StoreRefused, UnreadableVolume, InvalidRequest) as error:
                logger.warning("Image %s is left out: %s", image, error)
        return pairs

    def _store_final(
        self, image_id: str, mask: Volume, series: DicomSeries, file: Path, info: dict[str, Any], covered: Covered
    ) -> None:
        """Mask -> DICOM SEG -> store, once: what may have arrived there before is not sent a second time under another
        UID. Adds to ``info`` which object it became. A job, which can be stopped until the SEG is sent."""
        title, owner = f"the label of {image_id} goes to the archive", str(info.get("client_id") or "")
        job = Job(STORE, title=title, owner=owner, image=image_id, brief=True)
        try:
            with self._jobs.running(job):
                job.progress("write", 0, 2)
                labels = _names(info, mask)
                digest = _digest(mask, labels, series, covered)
                seg = self._outgoing / f"{image_id}-{digest}.dcm"
                tried = seg.exists()  # then it may have been sent
                if not tried:
                    _write_seg(seg, mask, labels, series, info, covered)
                self._keep(image_id, str(file), UNSENT, info)  # before it is sent: this process may be killed then
                job.progress("send", 1, 2)
                with shielded():
                    record = self._there(image_id, digest, seg, tried) or self._sent(image_id, digest, seg)
        except Cancelled:
            self._keep(image_id, str(file), UNSENT, info)
            raise InvalidRequest(
                f"stopped before anything was sent. The mask is kept on this server under the tag {UNSENT!r}; submit "
                "it again to send it"
            ) from None
        except (StoreUnavailable, StoreRefused) as error:
            raise self._kept(image_id, file, info, error) from error
        self._note_stored(image_id, record, digest)
        self._catalogue.forget()
        info |= _info_of([record], labels)
        if UNSENT in self._datastore.objects[image_id].labels:
            self.remove_label(image_id, UNSENT)
        for sent in self._outgoing.glob(f"{image_id}-*"):
            sent.unlink(missing_ok=True)
        logger.info("Stored the label of %s as SEG series %s", image_id, record.series_uid)

    def _kept(self, image_id: str, file: Path, info: dict[str, Any], error: Exception) -> Exception:
        """Keep a final label that the store did not take; the error that says so."""
        self._keep(image_id, str(file), UNSENT, info)
        return type(error)(f"{error} {KEPT}")

    def _there(self, image_id: str, digest: str, seg: Path, tried: bool) -> SegmentationRecord | None:
        """The SEG as the store has it already: it came to its end there, and the answer not here."""
        known = self._datastore.objects[image_id].image.info
        uid = segmentation_record(seg).instance_uid if tried else ""
        if not tried and known.get(STORED_DIGEST) == digest:
            uid = self._stored_before(image_id)[-1]
        if not uid:
            return None
        self._catalogue.forget()
        newest = next(iter(self._catalogue.segmentations().get(image_id, ())), None)
        return newest if newest and newest.instance_uid == uid else None

    def _sent(self, image_id: str, digest: str, seg: Path) -> SegmentationRecord:
        """Send the SEG. Raises StoreUnavailable where the store neither says that it has it nor lists it: what is in
        between may have taken it, such as a page that asks for a login."""
        if not self._store.add(seg) and self._there(image_id, digest, seg, True) is None:
            raise StoreUnavailable(
                f"{self._store.access.name} did not say that it has the segmentation, and does not list it."
            )
        return segmentation_record(seg)

    def _stored_before(self, image_id: str) -> list[str]:
        known = self._datastore.objects.get(image_id)
        return list(known.image.info.get(STORED) or ()) if known else []

    def _note_stored(self, image_id: str, record: SegmentationRecord, digest: str) -> None:
        with self._registry:
            self._register(image_id)
            info = self._datastore.objects[image_id].image.info
            before = [uid for uid in self._stored_before(image_id) if uid != record.instance_uid]
            info[STORED] = [*before, record.instance_uid][-MOST_STORED:]
            info[STORED_DIGEST] = digest
            self._update_datastore_file()

    def _read_back(self, image_id: str, records: Sequence[SegmentationRecord]) -> None:
        """Make the local copy of a final label what the store holds: ``records``, the newest first."""
        self._register(image_id)
        local = self._datastore.label(image_id, FINAL)
        path = Path(LocalDatastore.get_label_uri(self, image_id, FINAL) or ".")
        if local and path.is_file() and _stored_as(local.info) == [record.instance_uid for record in records]:
            return
        grid = find_series(Path(self.get_image_uri(image_id))).grid
        with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
            segs = [Path(scratch) / f"{n}.dcm" for n in range(len(records))]
            for seg, record in zip(segs, records, strict=True):
                self._store.fetch_segmentation(record, seg)
            called = {str(seg): f"SEG {record.instance_uid}" for seg, record in zip(segs, records, strict=True)}
            try:
                found = read_segs(segs, grid)
            except UnreadableVolume as error:
                raise UnreadableVolume(_renamed(str(error), called)) from error
            for n, reason in found.left_out.items():
                logger.warning("%s of image %s is left out: %s", called[str(segs[n])], image_id, reason)
            notes = [*found.notes, *(f"left out: {_renamed(reason, called)}" for reason in found.left_out.values())]
            for note in found.notes:
                logger.warning("The segmentation of image %s: %s", image_id, note)
            file = Path(scratch) / "label.nii.gz"
            write_volume(found.volume, file)
            self._keep(image_id, str(file), FINAL, _info_of(records, found.labels, source=found.source, notes=notes))

    def _keep(self, image_id: str, file: str, tag: str, info: dict[str, Any]) -> str:
        with self._registry:
            self._register(image_id)
            return str(SoundRecord.save_label(self, image_id, file, tag, info))

    def _find(self, image_id: str) -> SeriesRecord | None:
        """What the store says of an image; where it was not reached yet, what the files say if they are here."""
        if not is_uid(image_id):
            return None
        try:
            return self._catalogue.find(image_id)
        except (StoreUnavailable, StoreRefused):
            here = self._cache.find(image_id)
            if here is None:
                raise
            return series_record(next(here.glob("*.dcm")))

    def _record(self, image_id: str) -> SeriesRecord:
        record = self._find(image_id)
        if record is None:
            raise NotKnown("image", image_id, step="GET /datastore/?output=all lists what there is")
        return record

    def _register(self, image_id: str) -> None:
        """Make a place for what will be known of an image of the store. Batches, in processes of their own, write to
        the record too."""
        with self._registry:
            self._init_from_datastore_file()
            if image_id not in self._datastore.objects:
                self._datastore.objects[image_id] = ImageLabelModel(image=_image_model(image_id))
                self._update_datastore_file()

    def _reconcile_datastore(self) -> None:
        """Labels stay known when their image leaves the cache; where the record was lost, by their files."""
        self._init_from_datastore_file()
        if not self._rebuilt:
            return
        for file in sorted(Path(self._datastore.label_path(None)).glob("*/*.nii.gz")):
            image_id, ext = self._to_id(file.name)
            if is_uid(image_id):
                known = self._datastore.objects.setdefault(image_id, ImageLabelModel(image=_image_model(image_id)))
                known.labels.setdefault(file.parent.name, DataModel(ext=ext, info={"name": file.name}))
        self._update_datastore_file()


def _count(listed: Callable[[], list[str]]) -> int:
    try:
        return len(listed())
    except (StoreUnavailable, StoreRefused):
        return 0


def _image_model(image_id: str) -> DataModel:
    return DataModel(info={"name": f"{image_id}.nii.gz"})


def _info_of(
    records: Sequence[SegmentationRecord],
    labels: dict[str, int],
    *,
    source: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """What is said of a final label: of which objects of the store it is, the newest first, and which labels each gave.

    ``notes`` say what the mask cannot show: segments that overlap, files that cannot be read.
    """
    of = source or dict.fromkeys(labels, 0)
    stored = [
        {
            "SeriesInstanceUID": record.series_uid,
            "SOPInstanceUID": record.instance_uid,
            "labels": [name for name in labels if of[name] == n],
        }
        for n, record in enumerate(records)
    ]
    if len(records) > 1:
        notes = [f"{len(records)} SEGs of this image; each label is from the newest that has it", *notes]
    return {
        "label_info": [{"name": name, "idx": value} for name, value in labels.items()],
        "SeriesInstanceUID": records[0].series_uid,
        "SOPInstanceUID": records[0].instance_uid,
        "StudyInstanceUID": records[0].study_uid,
        "segmentations": stored,
        **({"notes": list(notes)} if notes else {}),
    }


def _stored_as(info: Mapping[str, Any]) -> list[str]:
    """The objects of the store that a local copy was made of."""
    stored = info.get("segmentations") or [info]
    return [str(one.get("SOPInstanceUID") or "") for one in stored]


def _renamed(message: str, called: Mapping[str, str]) -> str:
    """A message that names no scratch file."""
    for path, name in called.items():
        message = message.replace(path, name)
    return message


def _names(info: Mapping[str, Any], mask: Volume) -> dict[str, int]:
    """Label -> value in a mask. Raises InvalidRequest."""
    try:
        return read_label_info(required_names(info), values=np.unique(mask.array).tolist())
    except (ValueError, InvalidSubmission) as error:
        raise InvalidRequest(str(error)) from error


def _digest(mask: Volume, labels: Mapping[str, int], series: DicomSeries, covered: Covered) -> str:
    """What a SEG is made of: two with the same say the same."""
    told = json.dumps([sorted(labels.items()), mask.array.shape, str(mask.array.dtype), series.series_uid])
    sha = hashlib.sha256(told.encode() + np.ascontiguousarray(mask.array).tobytes())
    for name, area in sorted(covered.items()):
        sha.update(name.encode() + np.packbits(area).tobytes())
    return sha.hexdigest()[:32]


def _write_seg(
    path: Path, mask: Volume, labels: dict[str, int], series: DicomSeries, info: Mapping[str, Any], covered: Covered
) -> None:
    """Write a final label as DICOM SEG, whole or not at all. Raises InvalidRequest."""
    model = str(info.get("model") or "")[:64]
    notes = AlgorithmNotes(name="ssmsam", version=ssmsam.__version__, parameters={"model": model} if model else {})
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
        try:
            write_seg(mask, labels, series, Path(scratch) / "label.dcm", algorithm=notes, covered=covered)
        except (ValueError, InvalidSubmission) as error:
            raise InvalidRequest(str(error)) from error
        private_folder(path.parent)
        write_bytes(path, (Path(scratch) / "label.dcm").read_bytes())
