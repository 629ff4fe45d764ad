"""A DICOMweb server: what it holds, fetching a series, storing a segmentation. Knows nothing of MONAI Label."""

from __future__ import annotations

import itertools
import logging
import math
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from email.message import Message
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pydicom
import requests
from cachetools import TTLCache
from dicomweb_client import DICOMwebClient
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from ssmsam.dicom.file import read_dataset
from ssmsam.dicom.series import NOT_IMAGES
from ssmsam.progress import Cancelled

HEADERS_END = re.compile(rb"\r?\n[ \t]*\r?\n")
MOST_PREAMBLE = 1 << 20
"""Bytes before the first part, at most. A guess: what comes before it is a remark."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart answer, b"" where its type names none. Raises ValueError for other types."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_maintype() != "multipart":
        raise ValueError(f"an answer of several files was expected, not {message.get_content_type()}")
    return str(message.get_param("boundary", "")).encode("latin-1", "replace")


def parts(boundary: bytes, pieces: Iterable[bytes], *, whole: bool = True) -> Iterator[bytes]:
    """The content of each part, without its headers, from an answer that arrives in pieces.

    Takes a preamble and an epilogue, lines that end with a bare LF, parts without headers, and an answer whose last
    boundary is missing where it is known to be ``whole``. Raises EOFError where it may be cut short, and ValueError for
    anything else.
    """
    first = re.compile(rb"(?:\A|\n)--" + re.escape(boundary) + rb"(?=[ \t]*(\r?\n)|--)")
    data, searched, delimiter = bytearray(), 0, b""
    for piece in pieces:
        data += piece
        if not delimiter:
            start = first.search(data)
            if start is None:
                if len(data) > MOST_PREAMBLE:
                    break
                continue
            # where the first line ends with a bare LF, the others do
            delimiter = (start[1] or b"\r\n") + b"--" + boundary
            del data[: start.end()]
        while (end := data.find(delimiter, searched)) >= 0:
            if data.startswith(b"--"):
                return
            yield _content(data[:end])
            del data[: end + len(delimiter)]
            searched = 0
        searched = max(0, len(data) - len(delimiter) + 1)
    if not delimiter:
        raise ValueError("the answer has no part")
    if data.startswith(b"--"):
        return
    if not whole:
        raise EOFError("the answer ends before its last boundary")
    if data.strip():
        yield _content(data)


def _content(part: bytearray) -> bytes:
    """What follows the headers; the line of the boundary is still in front of them."""
    end = HEADERS_END.search(part)
    if end is None:
        raise ValueError("a part has no end of its headers")
    return bytes(part[end.end() :])


UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")
"""Leading zeros, which some devices write, are let through."""
REFERENCED_SERIES, OTHER_STUDIES, SERIES_UID = "00081115", "00081200", "0020000E"
SHARED_GROUPS, FRAME_GROUPS, DERIVATION = "52009229", "52009230", "00089124"
IMAGES = ("00081140", "00082112", "0008114A")
"""ReferencedImageSequence, SourceImageSequence, ReferencedInstanceSequence."""
INSTANCE_UID = "00081155"


def value_of(answer: Mapping[str, Any], tag: str) -> str:
    """The first value of an element as text that can be written, "" where there is none."""
    element = answer.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    first = values[0] if isinstance(values, list) and values else None
    return ("" if first is None else str(first)).strip(" \t\r\n\0").encode(errors="replace").decode()


def referenced_series(header: Mapping[str, Any]) -> list[str]:
    """The UIDs of the series that the object names, in its order."""
    holders = (header, *_items(header, OTHER_STUDIES))
    found = [value_of(series, SERIES_UID) for holder in holders for series in _items(holder, REFERENCED_SERIES)]
    return [uid for uid in dict.fromkeys(found) if uid]


def referenced_instance(header: Mapping[str, Any]) -> str:
    """The UID of an image that the object, or one of its frames, names; "" where there is none."""
    return next((uid for uid in _instances(header) if uid), "")


def _instances(header: Mapping[str, Any]) -> Iterator[str]:
    holders = [header, *_items(header, REFERENCED_SERIES), *_items(header, SHARED_GROUPS)]
    for holder in (*holders, *_items(header, FRAME_GROUPS)):
        for source in (holder, *_items(holder, DERIVATION)):
            for tag in IMAGES:
                for image in _items(source, tag):
                    yield value_of(image, INSTANCE_UID)


def _items(holder: Mapping[str, Any], tag: str) -> list[Mapping[str, Any]]:
    element = holder.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return [item for item in values or () if isinstance(item, Mapping)]


logger = logging.getLogger(__name__)

T = TypeVar("T")

Filters = Mapping[str, Any]
"""What a query asks for, keyword -> value. A list of values means any of them."""

FIELDS = ["Modality", "StudyDate", "StudyTime", "PatientID", "NumberOfSeriesRelatedInstances"]

AS_STORED = (("application/dicom", "*"),)
"""Whatever transfer syntax the files have: nothing is decompressed on the way, our reader does that."""

LONGEST_PAUSE_S = 5.0
"""How long a store may make us wait before it is asked again (Retry-After). A guess."""

PIECE = 1 << 20
"""Bytes that are read at a time."""

STUDY_FRESH_S = 60.0
"""How long the series of a study are believed where a store has to be asked study by study. A guess."""

MOST_STUDIES = 20_000
"""Whose series are remembered, at most."""

RECORD_TAGS = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "ReferencedSeriesSequence", "Manufacturer",
    "ContentDate", "ContentTime", "SeriesDate", "SeriesTime",
)  # fmt: skip
"""What a :class:`SegmentationRecord` is made of."""

DUPLICATE = 0x0111
"""The reason of a store for not keeping an object: it has it already."""

NOT_SO = (400, 404, 405, 410, 501)
"""What stores answer to a question that they do not take, and some where nothing matches."""

WRITER = "ssmsam"
"""The manufacturer that :func:`ssmsam.dicom.seg_writer.write_seg` states."""


class StoreUnavailable(RuntimeError):
    """The DICOMweb store does not answer, or not with everything. It is worth trying again."""


class StoreRefused(RuntimeError):
    """The DICOMweb store answers, but not with what was asked for. Trying again changes nothing."""


class SeriesUnavailable(StoreUnavailable):
    """The store works, and one series does not come out of it. It is worth trying again."""


class SeriesRefused(StoreRefused):
    """The store lists a series and does not send it, or sends something else."""


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
    """How often what only reads is asked for again, where the store fails."""
    patient: bool = True
    """Whether it is asked again, too, where it cannot be reached or does not answer in time."""
    qido: str | None = None
    wado: str | None = None
    stow: str | None = None

    @property
    def name(self) -> str:
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
    """One DICOM SEG in the store, and the series it is of. ``written`` sorts by time. ``is_own``: written here."""

    study_uid: str
    series_uid: str
    instance_uid: str
    image_uid: str
    written: str
    is_own: bool = False


class DicomStore:
    """Queries, downloads and stores. Every call raises StoreUnavailable or StoreRefused when it fails.

    Safe for threads as far as a ``requests`` session is: no cookies are kept, nothing else is shared.
    """

    def __init__(self, access: StoreAccess) -> None:
        self.access = access
        self.client = _Client(
            url=access.url.rstrip("/"),
            session=StoreSession(access),
            qido_url_prefix=access.qido,
            wado_url_prefix=access.wado,
            stow_url_prefix=access.stow,
            permissive_uid=True,
        )
        self.client.set_http_retry_params(retry=False)  # the session does it, and waits less
        self._relational: bool | None = None
        """Whether series can be asked for without naming their study; None until it matters."""
        self._by_study: TTLCache[str, list[dict[str, Any]]] = TTLCache(MOST_STUDIES, STUDY_FRESH_S)
        self._studies = threading.Lock()
        self._media: tuple[Any, ...] = (AS_STORED, None)
        """What is asked for in turn: some stores know no wildcard, and send what everybody has to read."""

    def series(self, filters: Filters) -> list[SeriesRecord]:
        """Every series that fits, in the store's order. Series that show no image (SEG, SR ...) only when asked for."""
        wanted = dict(filters)
        modalities = wanted.pop("Modality", None)
        if modalities is None or isinstance(modalities, str):
            modalities = [modalities]
        found: dict[str, SeriesRecord] = {}
        for modality in modalities:  # one by one: few servers know lists of values
            query = {**wanted, "Modality": modality} if modality else wanted
            with self._errors():
                for record in self._records(query):
                    if modality and not record.modality:
                        record = replace(record, modality=modality)  # some stores do not repeat what was asked for
                    if modality == record.modality or (modality is None and record.modality not in NOT_IMAGES):
                        found[record.series_uid] = record
        return list(found.values())

    def _records(self, query: Filters) -> Iterator[SeriesRecord]:
        """What the store lists, without what has no UIDs: nothing can be asked of that."""
        for answer in self._pages(query):
            record = _series_record(answer)
            if UID.fullmatch(record.series_uid) and UID.fullmatch(record.study_uid):
                yield record
            else:
                logger.warning("%s lists a series without valid UIDs, which is left out", self.access.name)

    def segmentations(self, series: SeriesRecord, images: Collection[SeriesRecord]) -> list[SegmentationRecord]:
        """Of the objects of a SEG series those that are of one of ``images``, the candidates from its study.

        What names no image at all, and what cannot be understood, is left out with a word in the log.
        """
        with self._errors(f"of SEG series {series.series_uid}"):
            headers = self.client.retrieve_series_metadata(series.study_uid, series.series_uid)
        found = []
        for header in headers:
            try:  # one odd object must not hide the others
                with self._errors():
                    image_uid = self._image_of(header, images)
                    if image_uid:
                        found.append(_segmentation_record(header, image_uid))
            except StoreRefused as error:
                logger.warning("A SEG of series %s is left out: %s", series.series_uid, error)
        return found

    def _image_of(self, header: Mapping[str, Any], images: Collection[SeriesRecord]) -> str:
        """The series among ``images`` that a SEG is of, "" for none of them."""
        known = {image.series_uid for image in images}
        if named := referenced_series(header):
            return next((uid for uid in named if uid in known), "")
        instance = referenced_instance(header)
        holder = next((image.series_uid for image in images if instance and self._holds(image, instance)), "")
        if not holder:
            logger.warning(
                "SEG %s is left out: it names %s", value_of(header, "00080018"),
                "an image that no listed series holds" if instance else "neither a series nor an image",
            )  # fmt: skip
        return holder

    def _holds(self, series: SeriesRecord, instance_uid: str) -> bool:
        answers = self._instances(series, {"SOPInstanceUID": instance_uid})
        return any(value_of(answer, "00080018") == instance_uid for answer in answers)  # some ignore the filter

    def fetch(self, series: SeriesRecord, folder: Path) -> None:
        """Write every file of a series into ``folder``.

        Raises StoreUnavailable when some did not come: fewer than the store lists for the series, if it says that, and
        fewer than it names one by one, for the first of these is a count that may be old.
        """
        seen: set[str] = set()
        with self._errors(f"of series {series.series_uid}"):
            for header in self._files(series):
                if _is_short(header):
                    raise SeriesUnavailable(
                        f"{self.access.name} sent an image of series {series.series_uid} with fewer pixels than it "
                        "says. Try again in a moment; if that does not help, send the series to the store again."
                    )
                if str(header.get("SeriesInstanceUID")) != series.series_uid:
                    raise SeriesRefused(f"{self.access.name} sent files of another series than {series.series_uid}")
                if str(header.SOPInstanceUID) in seen:  # some stores send an image twice
                    continue
                seen.add(str(header.SOPInstanceUID))
                header.save_as(folder / f"{len(seen):05d}.dcm")
        if (not series.instances or len(seen) < series.instances) and len(seen) < (expected := self._count(series)):
            raise SeriesUnavailable(
                f"{self.access.name} sent {len(seen)} of the {expected} images of series {series.series_uid}. "
                "Try again in a moment; if that does not help, send the series to the store again."
            )
        if not seen:
            raise SeriesRefused(
                f"{self.access.name} lists series {series.series_uid} and sends no image of it: "
                "send the series to the store again."
            )

    def objects(self, study_uid: str, modalities: Sequence[str]) -> Iterator[Any]:
        """Every object of these modalities in a study, one by one."""
        for series in self.series({"StudyInstanceUID": study_uid, "Modality": list(modalities)}):
            with self._errors(f"of series {series.series_uid}"):
                yield from self._files(series)

    def fetch_segmentation(self, record: SegmentationRecord, path: Path) -> None:
        """Write one DICOM SEG to ``path``."""
        with self._errors(f"of SEG series {record.series_uid}"):
            found = self._in_any_syntax(
                lambda media: self.client.retrieve_instance(
                    record.study_uid, record.series_uid, record.instance_uid, media_types=media
                )
            )
            found.save_as(path)

    def _files(self, series: SeriesRecord) -> Iterator[Any]:
        """The files of a series one by one, none of which has to fit into memory beside the others."""

        def ask(media: Any) -> Iterator[Any]:
            coming = iter(self.client.iter_series(series.study_uid, series.series_uid, media_types=media))
            first = list(itertools.islice(coming, 1))  # only now is the store asked
            return itertools.chain(first, coming)

        return self._in_any_syntax(ask)

    def _in_any_syntax(self, ask: Callable[[Any], T]) -> T:
        """What the store sends as it is stored, or where it knows no wildcard (406) as everybody has to read it."""
        try:
            return ask(self._media[0])
        except requests.HTTPError as error:
            if _status(error) != 406 or len(self._media) == 1:
                raise
            found = ask(self._media[1])
            self._media = self._media[1:]
            return found

    def add(self, path: Path) -> bool:
        """Store one DICOM SEG; whether the store says that it has it. Raises StoreRefused when it does not keep it."""
        dataset = read_dataset(path)
        with self._errors():
            try:
                answer = self.client.store_instances([dataset])
            except requests.HTTPError as error:
                if _status(error) != 409 or _not_kept(error) != {DUPLICATE}:
                    raise
                return True
        kept = [str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or ()]
        is_there = str(dataset.SOPInstanceUID) in kept or _reasons(answer) == {DUPLICATE}
        if not is_there and (kept or _reasons(answer)):
            raise StoreRefused(f"{self.access.name} did not keep the segmentation; its own log says why")
        return is_there

    def _pages(self, query: Filters) -> Iterator[dict[str, Any]]:
        """Every answer to a query of series. Stores may send a part at a time; some always send everything."""
        if self._relational is False:
            return self._study_by_study(query)
        try:
            return iter(self._paged(self._search_series(query), "0020000E"))
        except requests.HTTPError as error:
            if _status(error) not in NOT_SO:
                raise
            if self._is_relational():  # it says in this way that nothing matches
                return iter(())
            return self._study_by_study(query)

    def _is_relational(self) -> bool:
        """Whether the store answers queries of series that name no study. Raises HTTPError where nothing is a store."""
        if self._relational is None:
            try:
                self.client.search_for_series(limit=1)
                self._relational = True
            except requests.HTTPError as error:
                if _status(error) not in NOT_SO:
                    raise
                self.client.search_for_studies(limit=1)
                logger.info("%s lists the series of one study at a time only: it is asked study by study",
                            self.access.name)  # fmt: skip
                self._relational = False
        return self._relational

    def _study_by_study(self, query: Filters) -> Iterator[dict[str, Any]]:
        """The series of all studies that fit what a query says of studies; the caller looks at the modality."""
        wanted = {name: value for name, value in query.items() if name != "Modality"}

        def studies(offset: int) -> list[dict[str, Any]]:
            return self.client.search_for_studies(search_filters=wanted, offset=offset)

        for answer in self._paged(studies, "0020000D"):
            study = value_of(answer, "0020000D")
            for series in self._series_of(study):
                yield {"0020000D": {"vr": "UI", "Value": [study]}, **series}

    def _series_of(self, study: str) -> list[dict[str, Any]]:
        with self._studies:  # what is remembered may grow too old between two calls
            known = self._by_study.get(study)
        if known is None:
            known = self._paged(self._search_series({}, study), "0020000E")
            with self._studies:
                self._by_study[study] = known
        return known

    def _search_series(self, query: Filters, study: str | None = None) -> Callable[[int], list[dict[str, Any]]]:
        return lambda offset: self.client.search_for_series(
            study, search_filters=dict(query), fields=FIELDS, offset=offset
        )

    @staticmethod
    def _paged(page: Callable[[int], list[dict[str, Any]]], tag: str) -> list[dict[str, Any]]:
        """All answers with different UIDs under ``tag``."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            try:
                answers = page(len(found))
            except requests.HTTPError as error:
                if found and _status(error) == 404:  # no more
                    answers = []
                else:
                    raise
            if not isinstance(answers, list):
                raise ValueError("a list was expected")
            sound = [one for one in answers if isinstance(one, Mapping)]
            fresh = {value_of(one, tag): one for one in sound if value_of(one, tag) not in found}
            if not fresh:
                return list(found.values())
            found |= fresh

    def _count(self, series: SeriesRecord) -> int:
        """How many images the store has of a series, one by one: the count in its list may be old."""
        with self._errors(f"of series {series.series_uid}"):
            try:
                return _different(self.client.retrieve_series_metadata(series.study_uid, series.series_uid))
            except requests.HTTPError as error:
                if _status(error) not in NOT_SO:
                    raise
        return _different(self._instances(series, {}))

    def _instances(self, series: SeriesRecord, query: Filters) -> list[dict[str, Any]]:
        with self._errors(f"of series {series.series_uid}"):
            try:
                found = self.client.search_for_instances(
                    series.study_uid, series.series_uid, search_filters=dict(query)
                )
            except requests.HTTPError as error:
                if _status(error) == 404:
                    return []
                raise
            return list(found)

    @contextmanager
    def _errors(self, what: str = "") -> Iterator[None]:
        """What can go wrong between us and the store, as one of our two errors. ``what`` names the part that is asked
        for where it is not the whole store."""
        try:
            yield
        except requests.HTTPError as error:
            raise self._refused(_status(error), what) from error
        except requests.exceptions.SSLError as error:
            raise StoreUnavailable(
                f"the certificate of the DICOMweb store {self.access.name} is not trusted here. Where it is your own, "
                "set REQUESTS_CA_BUNDLE=/path/to/your-authority.pem and start again."
            ) from error
        except (StoreUnavailable, StoreRefused, Cancelled):
            raise
        except requests.exceptions.InvalidJSONError as error:
            raise self._no_dicomweb(error, what) from error
        except (requests.RequestException, EOFError) as error:
            if what and (not isinstance(error, requests.ConnectionError) or self._answers()):
                raise SeriesUnavailable(
                    f"the DICOMweb store {self.access.name} did not send the files {what} to their end "
                    f"({type(error).__name__}). Try again in a moment."
                ) from error
            raise StoreUnavailable(
                f"the DICOMweb store {self.access.name} cannot be reached ({type(error).__name__}). "
                "Check that it runs and that the address is right; nothing is lost, try again then."
            ) from error
        except (OSError, MemoryError):  # of this machine
            raise
        except Exception as error:  # the libraries raise what they like for what stores send
            raise self._no_dicomweb(error, what) from error

    def _no_dicomweb(self, error: Exception, what: str) -> Exception:
        if what:
            return SeriesRefused(
                f"the DICOMweb store {self.access.name} sent something for the files {what} that is not DICOMweb "
                f"({type(error).__name__}). Send the series to the store again."
            )
        return StoreRefused(
            f"the DICOMweb store {self.access.name} sent an answer that is not DICOMweb ({type(error).__name__}). "
            "Give the address of its DICOMweb root, such as http://127.0.0.1:8042/dicom-web."
        )

    def _answers(self) -> bool:
        """Whether the store answers anything: then it is one series that it does not send."""
        try:
            self.client.search_for_studies(limit=1)
        except requests.HTTPError:
            return True
        except (requests.RequestException, EOFError):
            return False
        except Exception:  # an answer all the same
            return True
        return True

    def _refused(self, status: int, what: str) -> Exception:
        if status == 401 or (status == 403 and not what):
            return StoreRefused(
                f"the DICOMweb store {self.access.name} refuses the login ({status}). Set "
                "MONAI_LABEL_DICOMWEB_USERNAME and _PASSWORD, or SSMSAM_DICOMWEB_TOKEN, and start again."
            )
        if status in (408, 429) or status >= 500:
            kind = SeriesUnavailable if what and status != 429 else StoreUnavailable
            asked = f" when it was asked for the files {what}" if what else ""
            return kind(f"the DICOMweb store {self.access.name} failed ({status}){asked}. Try again in a moment.")
        if what and status == 403:
            return SeriesRefused(
                f"the DICOMweb store {self.access.name} does not let this login have the files {what} (403). Let it, "
                "or limit which studies are used: MONAI_LABEL_DICOMWEB_SEARCH_FILTER."
            )
        if what:
            return SeriesRefused(
                f"the DICOMweb store {self.access.name} does not send the files {what}, which it lists ({status}): "
                "they are gone or offline. Send the series to the store again."
            )
        return StoreRefused(
            f"the DICOMweb store {self.access.name} refuses the request ({status}). Is this the address of its "
            "DICOMweb root, such as http://127.0.0.1:8042/dicom-web?"
        )


class _Client(DICOMwebClient):
    """Reads the multipart answers that servers write, not only those that the standard has."""

    def _decode_multipart_message(self, response: requests.Response, stream: bool) -> Iterator[bytes]:
        with response:
            boundary = boundary_of(response.headers.get("Content-Type", ""))
            if not boundary:  # one file, called multipart
                yield response.content
                return
            # a length, or chunks, are checked while it is read; without them a lost connection looks like the end
            sized = "Content-Length" in response.headers or "chunked" in response.headers.get("Transfer-Encoding", "")
            pieces = response.iter_content(PIECE) if stream else [response.content]
            yield from parts(boundary, pieces, whole=sized)


class _BriefRetry(Retry):
    """Waits as long as a store asks for, but not for hours: a person waits behind it."""

    def get_retry_after(self, response: BaseHTTPResponse) -> float | None:
        try:
            asked = super().get_retry_after(response)
        except InvalidHeader:  # neither a number nor a date
            return None
        return None if asked is None else min(asked, LONGEST_PAUSE_S)


class StoreSession(requests.Session):
    """Logs in, waits for a limited time, and tries again what only reads."""

    def __init__(self, access: StoreAccess) -> None:
        super().__init__()
        self._timeout = (access.connect_s, access.read_s)
        if access.token:
            self.auth = _Bearer(access.token)
        elif access.user:
            self.auth = (access.user, access.password)
        retry = _BriefRetry(
            total=access.retries,
            connect=None if access.patient else 0,
            read=(access.patient and access.retries) or False,  # False keeps a time-out a time-out
            backoff_factor=0.3, status_forcelist=(429, 500, 502, 503, 504),
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


def _is_short(header: pydicom.Dataset) -> bool:
    """Whether the pixels of an image, where they are not compressed, end before their header says."""
    pixels, sizes = header.get("PixelData"), ("Rows", "Columns", "BitsAllocated")
    syntax = getattr(header, "file_meta", pydicom.Dataset()).get("TransferSyntaxUID")
    if pixels is None or (syntax is not None and (syntax.is_private or syntax.is_encapsulated)):
        return False
    try:
        frames, samples = int(header.get("NumberOfFrames") or 1), int(header.get("SamplesPerPixel") or 1)
        return len(pixels) * 8 < math.prod(int(header[name].value) for name in sizes) * frames * samples
    except (KeyError, TypeError, ValueError):  # odd, and not for us to judge
        return False


def _different(headers: Iterable[Mapping[str, Any]]) -> int:
    """How many images these are; some stores list one twice."""
    return len({value_of(header, "00080018") for header in headers})


def _reasons(answer: pydicom.Dataset) -> set[int | None]:
    """Why a store did not keep some objects, as it says."""
    return {item.get("FailureReason") for item in answer.get("FailedSOPSequence") or ()}


def _not_kept(error: requests.HTTPError) -> set[int | None]:
    """The same of an answer with a status of failure; nothing where it says nothing."""
    if error.response is None:
        return set()
    try:
        return _reasons(pydicom.Dataset.from_json(error.response.json()))
    except Exception:  # some page for people
        return set()


def _status(error: requests.HTTPError) -> int:
    return 500 if error.response is None else error.response.status_code


def by_image(
    records: Iterable[SegmentationRecord], stored: Callable[[str], Sequence[str]] = lambda image_uid: ()
) -> dict[str, list[SegmentationRecord]]:
    """Series UID of an image -> the segmentations of it that count, the newest first.

    What is written here is all that is known of a series then, so the newest of these stands for all. Others may
    write a file for each organ: all of theirs count. ``stored`` gives the SEGs of an image that are known to have been
    stored in this order, the oldest first: their own times may come from a clock that was set back.
    """
    grouped: dict[str, list[SegmentationRecord]] = {}
    for record in records:
        grouped.setdefault(record.image_uid, []).append(record)
    found: dict[str, list[SegmentationRecord]] = {}
    for image_uid, members in grouped.items():
        known = found[image_uid] = []
        for record in _newest_first(members, stored(image_uid)):
            if not (record.is_own and any(one.is_own for one in known)):
                known.append(record)
    return found


def _newest_first(records: Sequence[SegmentationRecord], stored: Sequence[str]) -> list[SegmentationRecord]:
    """By time, where what was stored later is never older than what was stored before it."""
    written = {record.instance_uid: record.written for record in records}
    latest = ""
    for uid in stored:
        if uid in written:
            latest = written[uid] = max(latest, written[uid])
    place = {uid: n for n, uid in enumerate(stored)}
    return sorted(
        records, reverse=True,
        key=lambda one: (written[one.instance_uid], place.get(one.instance_uid, -1), one.instance_uid),
    )  # fmt: skip


def _series_record(answer: Mapping[str, Any]) -> SeriesRecord:
    count = value_of(answer, "00201209")
    return SeriesRecord(
        study_uid=value_of(answer, "0020000D"),
        series_uid=value_of(answer, "0020000E"),
        modality=value_of(answer, "00080060"),
        instances=int(count) if count.isdecimal() else 0,
        patient_id=value_of(answer, "00100020"),
        study_date=value_of(answer, "00080020"),
        study_time=value_of(answer, "00080030"),
    )


def segmentation_record(path: Path) -> SegmentationRecord:
    """Of a SEG that was written here."""
    header = read_dataset(path, tags=RECORD_TAGS, pixels=False).to_json_dict(suppress_invalid_tags=True)
    return _segmentation_record(header, referenced_series(header)[0])


def series_record(file: Path) -> SeriesRecord:
    """Of a series of which one file is here. Raises UnreadableVolume."""
    header = read_dataset(file, tags=("StudyInstanceUID", "SeriesInstanceUID", *FIELDS), pixels=False)
    return _series_record(header.to_json_dict(suppress_invalid_tags=True))


def _segmentation_record(header: Mapping[str, Any], image_uid: str) -> SegmentationRecord:
    study, series, instance = (value_of(header, tag) for tag in ("0020000D", "0020000E", "00080018"))
    if not (study and series and instance):
        raise ValueError("a SEG without UIDs")
    when = " ".join(value_of(header, tag) for tag in ("00080023", "00080033", "00080021", "00080031"))
    return SegmentationRecord(study, series, instance, image_uid, when, value_of(header, "00080070") == WRITER)
