"""A DICOMweb store over a socket that can be told to fail: what no real archive does on demand."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.filebase import DicomBytesIO
from requests_toolbelt.multipart.decoder import MultipartDecoder

ROOT = "/dicom-web"
SERIES_TAGS = ("Modality", "PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "SeriesInstanceUID")


class Archive:
    """Holds DICOM files in memory. ``status`` answers everything with that status, ``withheld`` images do not come.

    ``login`` is the Authorization header that it wants. ``page`` limits how many series one answer lists. ``nothing``
    is the status where nothing matches; without ``relational`` only the series of one study are listed; without
    ``wildcard`` transfer-syntax=* is 406; ``count_off`` falsifies how many images a series is said to have; of the
    ``broken`` series (UID -> status) nothing comes; ``multipart`` is "preamble" or "lf" for odd ways to write answers.
    Without ``counts`` it does not say how many images a series has. Of files only the first ``cut_at`` bytes come, as
    if they were all. ``lost`` uploads are stored, and the answer does not come. With ``once`` what is there already is
    not taken again: ``once`` is the status of the answer. ``odd`` is listed beside the series as it is. What is sent to
    one that ``swallows`` is answered with a page for people, and gone. The status 0 of a broken series: it hangs up.
    ``retry_after`` is a header of every answer. ``silent_about`` are attributes that its lists leave out. One that
    ``stumbles`` gives this status to each question once, and answers it when it is asked again.
    """

    def __init__(self, port: int = 0) -> None:
        self.files: list[bytes] = []
        self.status, self.withheld, self.login, self.page, self.silent_s = 200, 0, "", 1000, 0.0
        self.nothing, self.relational, self.wildcard, self.count_off, self.multipart = 200, True, True, 0, ""
        self.broken: dict[str, int] = {}
        self.counts, self.cut_at, self.lost, self.once = True, 0, 0, 0
        self.odd: list[Any] = []
        self.swallows, self.retry_after = False, ""
        self.silent_about: tuple[str, ...] = ()
        self.stumbles = 0
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"archive": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}{ROOT}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, folder: Path) -> str:
        """Store the files of a folder; returns the series' UID."""
        self.files += [file.read_bytes() for file in sorted(folder.iterdir())]
        return str(self.headers()[-1].SeriesInstanceUID)

    def headers(self) -> list[pydicom.Dataset]:
        return [pydicom.dcmread(DicomBytesIO(file), stop_before_pixels=True) for file in self.files]

    def series(self, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        by_uid: dict[str, list[pydicom.Dataset]] = {}
        for header in self.headers():
            by_uid.setdefault(str(header.SeriesInstanceUID), []).append(header)
        found = []
        for members in by_uid.values():
            if any(str(members[0].get(key, "")) not in query[key] for key in SERIES_TAGS if key in query):
                continue
            answer = pydicom.Dataset()
            for key in set(SERIES_TAGS) - {*self.silent_about}:
                setattr(answer, key, str(members[0].get(key, "")))
            if self.counts:
                answer.NumberOfSeriesRelatedInstances = len(members) + self.count_off
            found.append(json.loads(answer.to_json()))
        first = int(query.get("offset", ["0"])[0])
        return [*self.odd, *found][first : first + self.page]


class _Handler(BaseHTTPRequestHandler):
    archive: Archive

    def do_GET(self) -> None:
        if self._refused():
            return
        address = urlsplit(self.path)
        parts = address.path.removeprefix(ROOT).strip("/").split("/")
        query = parse_qs(address.query)
        if parts == ["series"]:
            if self.archive.relational:
                self._list(self.archive.series(query))
            else:
                self._answer(b"relational queries are not supported", "text/plain", 400)
            return
        if parts == ["studies"]:
            uids = sorted({str(header.StudyInstanceUID) for header in self.archive.headers()})
            self._list(
                [{"0020000D": {"vr": "UI", "Value": [uid]}} for uid in uids[int(query.get("offset", ["0"])[0]) :]]
            )
            return
        if len(parts) == 3:
            self._list([one for one in self.archive.series(query) if one["0020000D"]["Value"] == [parts[1]]])
            return
        wanted = parts[3]
        if self.archive.broken.get(wanted) == 0:
            self.close_connection = True
            return
        if wanted in self.archive.broken:
            self._answer(b"cannot be read", "text/plain", self.archive.broken[wanted])
            return
        if not self.archive.wildcard and "transfer-syntax=*" in self.headers.get("Accept", "").replace('"', ""):
            self._answer(b"no wildcard", "text/plain", 406)
            return
        chosen = [
            file
            for file, header in zip(self.archive.files, self.archive.headers(), strict=True)
            if str(header.SeriesInstanceUID) == wanted
        ]
        if parts[-1] in ("metadata", "instances"):
            headers = [pydicom.dcmread(DicomBytesIO(file), stop_before_pixels=True) for file in chosen]
            self._json([json.loads(header.to_json()) for header in headers])
            return
        line = b"\n" if self.archive.multipart == "lf" else b"\r\n"
        head = line.join([b"--piece", b"Content-Type: application/dicom", b"", b""])
        sent = chosen[: len(chosen) - self.archive.withheld]
        body = b"".join([*(head + file + line for file in sent), b"--piece--" + line])
        body = b"a remark in front" + line + body if self.archive.multipart == "preamble" else body
        self._answer(body, 'multipart/related; type="application/dicom"; boundary=piece')

    def do_POST(self) -> None:
        body = self._body()
        if self._refused():
            return
        if self.archive.swallows:
            self._answer(b"<html>please log in</html>", "text/html")
            return
        parts = MultipartDecoder(body, self.headers["Content-Type"]).parts
        stored = pydicom.Dataset()
        known = {str(header.SOPInstanceUID) for header in self.archive.headers()}
        uid = str(pydicom.dcmread(DicomBytesIO(parts[0].content)).SOPInstanceUID)
        if self.archive.once and uid in known:
            item = pydicom.Dataset()
            item.ReferencedSOPInstanceUID, item.FailureReason = uid, 0x0111
            stored.FailedSOPSequence = [item]
            self._json(json.loads(stored.to_json()), self.archive.once)
            return
        self.archive.files += [part.content for part in parts]
        if self.archive.lost:
            self.archive.lost -= 1
            self.close_connection = True
            return
        stored.ReferencedSOPSequence = []
        for part in parts:
            item = pydicom.Dataset()
            item.ReferencedSOPInstanceUID = pydicom.dcmread(DicomBytesIO(part.content)).SOPInstanceUID
            stored.ReferencedSOPSequence.append(item)
        self._json(json.loads(stored.to_json()))

    def _refused(self) -> bool:
        self.archive.asked.append(self.path)
        time.sleep(self.archive.silent_s)
        status = self.archive.status
        if self.archive.stumbles and self.archive.asked.count(self.path) == 1:
            status = self.archive.stumbles
        if self.archive.login and self.headers.get("Authorization") != self.archive.login:
            status = 401
        if status != 200:
            self._answer(b"", "text/plain", status)
        return status != 200

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers["Content-Length"]))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _list(self, found: list[Any]) -> None:
        if found or self.archive.nothing == 200:
            self._json(found)
        else:
            self._answer(b"", "text/plain", self.archive.nothing)

    def _json(self, value: Any, status: int = 200) -> None:
        self._answer(json.dumps(value).encode(), "application/dicom+json", status)

    def _answer(self, body: bytes, kind: str, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.archive.retry_after:
            self.send_header("Retry-After", self.archive.retry_after)
        if self.archive.cut_at and kind.startswith("multipart"):
            body = body[
                : self.archive.cut_at
            ]  # HTTP/1.0 without a length: the end of the connection is that of the answer
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return
