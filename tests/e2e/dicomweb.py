"""A DICOMweb server that knows one series: enough of QIDO and WADO for MONAI Label's datastore."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom

ROOT = "/dicom-web"
FIELDS = ("Modality", "PatientID", "StudyDate", "StudyTime", "StudyInstanceUID", "SeriesInstanceUID")


class DicomWeb:
    """Serves the files of ``folder`` until closed. ``asked`` holds every path with its query."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())
        self.first = pydicom.dcmread(self.files[0])
        self.series = str(self.first.SeriesInstanceUID)
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"web": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}{ROOT}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def query(self, wanted: dict[str, list[str]]) -> list[dict[str, Any]]:
        """The series as a QIDO answer, if it is what is looked for."""
        known = {field: str(self.first.get(field, "")) for field in FIELDS}
        if any(field in known and known[field] not in values for field, values in wanted.items()):
            return []
        found = pydicom.Dataset()
        for field in FIELDS:
            setattr(found, field, known[field])
        return [json.loads(found.to_json())]

    def instances(self, boundary: str) -> bytes:
        """All files as one multipart message."""
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        parts = [head + file.read_bytes() + b"\r\n" for file in self.files]
        return b"".join([*parts, f"--{boundary}--\r\n".encode()])


class _Handler(BaseHTTPRequestHandler):
    web: DicomWeb

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        address = urlsplit(self.path)
        if address.path.endswith((f"/series/{self.web.series}", f"/series/{self.web.series}/")):
            kind, body = 'multipart/related; type="application/dicom"; boundary=piece', self.web.instances("piece")
        else:
            kind = "application/dicom+json"
            body = json.dumps(self.web.query(parse_qs(address.query))).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return
