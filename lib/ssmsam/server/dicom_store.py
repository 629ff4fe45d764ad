"""A DICOMweb server: what it holds, fetching a series, storing a segmentation. Knows nothing of MONAI Label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ssmsam.imaging.dicom import NOT_IMAGES

Filters = Mapping[str, Any]
"""What a query asks for, keyword -> value. A list of values means any of them."""

FIELDS = ["Modality", "StudyDate", "StudyTime", "PatientID", "NumberOfSeriesRelatedInstances"]

AS_STORED = (("application/dicom", "*"),)
"""Whatever transfer syntax the files have: nothing is decompressed on the way, our reader does that."""

SEG_TAGS = ("0020000D", "0020000E", "00080018", "00081115", "00080023", "00080033", "00080021", "00080031")
"""What is read of a DICOM SEG's metadata; descriptions of its frames can be megabytes."""


class StoreUnavailable(ConnectionError):
    """The DICOMweb store does not answer, or not with everything. It is worth trying again."""


class StoreRefused(RuntimeError):
    """The DICOMweb store answers, but not with what was asked for. Trying again changes nothing."""


@dataclass(frozen=True, kw_only=True)
class StoreAccess:
    """Where the store is and how to get in. ``token`` makes an OAuth bearer token; it goes before user and password."""

    url: str
    user: str = ""
    password: str = field(default="", repr=False)
    token: Callable[[], str] | None = field(default=None, repr=False)
    connect_s: float = 3.0
    read_s: float = 30.0
    """The longest silence of the store, in seconds; an answer as a whole may take longer."""
    retries: int = 2
    qido: str | None = None
    wado: str | None = None
    stow: str | None = None

    @property
    def shown(self) -> str:
        """The address without anything secret, for messages."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@dataclass(frozen=True)
class SeriesRecord:
    """One series as the store lists it. ``instances`` is 0 where the store does not say."""

    study_uid: str
    series_uid: str
    modality: str
    instances: int
    patient_id: str = field(default="", repr=False)
    study_date: str = ""
    study_time: str = ""


@dataclass(frozen=True)
class SegmentationRecord:
    """One DICOM SEG in the store, and the series it is of. ``written`` sorts by time."""

    study_uid: str
    series_uid: str
    instance_uid: str
    image_uid: str
    written: str


class DicomStore:
    """Queries, downloads and stores. Every call raises StoreUnavailable or StoreRefused when it fails.

    Safe for threads as far as a ``requests`` session is: no cookies are kept, nothing else is shared.
    """

    def __init__(self, access: StoreAccess) -> None:
        self.access = access
        self.client = DICOMwebClient(
            url=access.url.rstrip("/"),
            session=StoreSession(access),
            qido_url_prefix=access.qido,
            wado_url_prefix=access.wado,
            stow_url_prefix=access.stow,
            permissive_uid=True,
        )
        self.client.set_http_retry_params(retry=False)  # the session does it, and waits less

    def series(self, filters: Filters) -> list[SeriesRecord]:
        """Every series that fits, in the store's order. Series that show no image (SEG, SR ...) only when asked for."""
        wanted = dict(filters)
        modalities = wanted.pop("Modality", None)
        if modalities is None or isinstance(modalities, str):
            modalities = [modalities]
        found: dict[str, SeriesRecord] = {}
        for modality in modalities:  # one by one: few servers know lists of values
            query = {**wanted, "Modality": modality} if modality else wanted
            for record in map(_series_record, self._pages(query)):
                if modality == record.modality or (modality is None and record.modality not in NOT_IMAGES):
                    found[record.series_uid] = record
        return list(found.values())

    def segmentations(self, series: SeriesRecord) -> list[SegmentationRecord]:
        """What the objects of a SEG series refer to; those that do not say it are left out."""
        with self._errors():
            headers = self.client.retrieve_series_metadata(series.study_uid, series.series_uid)
            read = [Dataset.from_json({tag: header[tag] for tag in SEG_TAGS if tag in header}) for header in headers]
            return [record for header in read if (record := _segmentation_record(header))]

    def fetch(self, series: SeriesRecord, folder: Path) -> None:
        """Write every file of a series into ``folder``. Raises StoreUnavailable when some did not come."""
        expected = series.instances or self._count(series)
        seen: set[str] = set()
        with self._errors():
            for header in self.client.iter_series(series.study_uid, series.series_uid, media_types=AS_STORED):
                if str(header.get("SeriesInstanceUID")) != series.series_uid:
                    raise StoreRefused(f"{self.access.shown} sent files of another series than {series.series_uid}")
                seen.add(str(header.SOPInstanceUID))
                header.save_as(folder / f"{len(seen):05d}.dcm")
        if len(seen) < expected:
            raise StoreUnavailable(
                f"{self.access.shown} sent {len(seen)} of the {expected} images of series {series.series_uid}. "
                "Try again in a moment; if that does not help, send the series to the store again."
            )

    def fetch_segmentation(self, record: SegmentationRecord, path: Path) -> None:
        """Write one DICOM SEG to ``path``."""
        with self._errors():
            found = self.client.retrieve_instance(
                record.study_uid, record.series_uid, record.instance_uid, media_types=AS_STORED
            )
            found.save_as(path)

    def add(self, path: Path) -> SegmentationRecord:
        """Store one DICOM SEG. Raises StoreRefused when the store does not keep it."""
        dataset = pydicom.dcmread(path)
        with self._errors():
            answer = self.client.store_instances([dataset])
        kept = [str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()]
        if answer.get("FailedSOPSequence") or (kept and str(dataset.SOPInstanceUID) not in kept):
            raise StoreRefused(f"{self.access.shown} did not keep the segmentation; its own log says why")
        record = _segmentation_record(dataset)
        assert record is not None, "write_seg always refers to its series"
        return record

    def _pages(self, query: Filters) -> Iterator[dict[str, Any]]:
        """Every answer to a query of series. Stores may send a part at a time; some always send everything."""
        seen: set[str] = set()
        while True:
            with self._errors():
                page = self.client.search_for_series(search_filters=dict(query), fields=FIELDS, offset=len(seen))
            fresh = [answer for answer in page if _value(answer, "0020000E") not in seen]
            if not fresh:
                return
            seen.update(_value(answer, "0020000E") for answer in fresh)
            yield from fresh

    def _count(self, series: SeriesRecord) -> int:
        with self._errors():
            return len(self.client.search_for_instances(series.study_uid, series.series_uid))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What can go wrong between us and the store, as one of our two errors."""
        try:
            yield
        except requests.HTTPError as error:
            raise self._refused(error.response.status_code if error.response is not None else 500) from error
        except requests.RequestException as error:
            raise StoreUnavailable(
                f"the DICOMweb store {self.access.shown} cannot be reached ({type(error).__name__}). "
                "Check that it runs and that the address is right; nothing is lost, try again then."
            ) from error
        except (ValueError, KeyError, AttributeError, TypeError, pydicom.errors.InvalidDicomError) as error:
            raise StoreRefused(
                f"the DICOMweb store {self.access.shown} sent an answer that is not DICOMweb ({type(error).__name__}). "
                "Give the address of its DICOMweb root, such as http://127.0.0.1:8042/dicom-web."
            ) from error

    def _refused(self, status: int) -> Exception:
        if status in (401, 403):
            return StoreRefused(
                f"the DICOMweb store {self.access.shown} refuses the login ({status}). Set "
                "MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD, or SSMSAM_DICOMWEB_TOKEN, and start again."
            )
        if status in (408, 429) or status >= 500:
            return StoreUnavailable(f"the DICOMweb store {self.access.shown} failed ({status}). Try again in a moment.")
        return StoreRefused(
            f"the DICOMweb store {self.access.shown} refuses the request ({status}). Is this the address of its "
            "DICOMweb root, such as http://127.0.0.1:8042/dicom-web?"
        )


class StoreSession(requests.Session):
    """Logs in, waits for a limited time, and tries again what only reads."""

    def __init__(self, access: StoreAccess) -> None:
        super().__init__()
        self._timeout = (access.connect_s, access.read_s)
        if access.token:
            self.auth = _Bearer(access.token)
        elif access.user:
            self.auth = (access.user, access.password)
        retry = Retry(
            total=access.retries,
            read=access.retries or False,  # False keeps a time-out a time-out
            backoff_factor=0.3, status_forcelist=(429, 502, 503, 504),
            allowed_methods={"GET"}, raise_on_status=False,
        )  # fmt: skip
        for scheme in ("http://", "https://"):
            self.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=16))

    def request(self, *arguments: Any, **options: Any) -> requests.Response:
        options.setdefault("timeout", self._timeout)
        return super().request(*arguments, **options)


class _Bearer(requests.auth.AuthBase):
    """As an auth object the token is not replaced by what a .netrc file says, and not sent to other hosts."""

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token()}"
        return request


def newest(records: Iterable[SegmentationRecord]) -> dict[str, SegmentationRecord]:
    """Series UID of an image -> the segmentation of it that was written last."""
    return {record.image_uid: record for record in sorted(records, key=lambda one: (one.written, one.instance_uid))}


def _series_record(answer: Mapping[str, Any]) -> SeriesRecord:
    count = _value(answer, "00201209")
    return SeriesRecord(
        study_uid=_value(answer, "0020000D"),
        series_uid=_value(answer, "0020000E"),
        modality=_value(answer, "00080060"),
        instances=int(count) if count.isdecimal() else 0,
        patient_id=_value(answer, "00100020"),
        study_date=_value(answer, "00080020"),
        study_time=_value(answer, "00080030"),
    )


def _value(answer: Mapping[str, Any], tag: str) -> str:
    values = (answer.get(tag) or {}).get("Value") or [""]
    return str(values[0] if values[0] is not None else "").strip()


def _segmentation_record(header: Dataset) -> SegmentationRecord | None:
    referenced = header.get("ReferencedSeriesSequence")
    image = str(referenced[0].get("SeriesInstanceUID") or "") if referenced else ""
    if not image:
        return None
    when = [str(header.get(f"{what}{unit}") or "") for what in ("Content", "Series") for unit in ("Date", "Time")]
    return SegmentationRecord(
        str(header.StudyInstanceUID), str(header.SeriesInstanceUID), str(header.SOPInstanceUID), image, " ".join(when)
    )
