"""An Orthanc of our own on this machine: a DICOMweb store for trying things out and for tests."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

PROGRAMS = ("Orthanc", "orthanc")
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
DICOMWEB, GDCM = "libOrthancDicomWeb.so*", "libOrthancGdcm.so*"
INSTALL = "apt-get install orthanc orthanc-dicomweb orthanc-gdcm"

LOOPBACK = "127.0.0.1"
START_S = 30.0


class OrthancFailed(RuntimeError):
    """Orthanc is not installed or does not start. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running Orthanc. ``url`` is its DICOMweb root."""

    port: int
    user: str = ""
    password: str = ""
    pid: int = 0

    @property
    def root(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/dicom-web"

    def upload(self, files: Iterable[Path]) -> int:
        """Store DICOM files; those that are there already stay. Returns how many were sent."""
        sent = 0
        with self._session() as session:
            for file in files:
                sent += 1
                session.post(f"{self.root}/instances", data=file.read_bytes(), timeout=60).raise_for_status()
        return sent

    def remove_series(self, series_uid: str) -> None:
        """Delete a series, as its owner would in the archive."""
        with self._session() as session:
            query: dict[str, Any] = {"Level": "Series", "Query": {"SeriesInstanceUID": series_uid}}
            found = session.post(f"{self.root}/tools/find", json=query, timeout=60).json()
            for name in found:
                session.delete(f"{self.root}/series/{name}", timeout=60).raise_for_status()

    def _session(self) -> requests.Session:
        session = requests.Session()
        session.auth = (self.user, self.password) if self.user else None
        return session


@contextmanager
def running_orthanc(folder: Path, *, port: int, user: str = "", password: str = "") -> Iterator[Orthanc]:
    """Run Orthanc on ``port`` of this machine only until the block ends. It keeps its files in ``folder``.

    With ``user`` it asks for that login. Raises OrthancFailed.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None or not _plugin(DICOMWEB):
        raise OrthancFailed(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    if is_used(port):
        raise OrthancFailed(f"something listens on port {port} already: stop it, or choose another port")
    folder.mkdir(parents=True, exist_ok=True)
    settings, log = folder / "orthanc.json", folder / "orthanc.log"
    settings.write_text(json.dumps(_settings(folder, port, user, password), indent=1))
    settings.chmod(0o600)
    with log.open("wb") as output:
        process = subprocess.Popen([program, str(settings)], stdout=output, stderr=subprocess.STDOUT)
    orthanc = Orthanc(port=port, user=user, password=password, pid=process.pid)
    try:
        _wait(orthanc, process, log)
        yield orthanc
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_installed() -> bool:
    """Whether :func:`running_orthanc` finds what it needs."""
    return any(map(shutil.which, PROGRAMS)) and _plugin(DICOMWEB) is not None


def is_used(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _settings(folder: Path, port: int, user: str, password: str) -> dict[str, object]:
    return {
        "Name": "ssmsam",
        "StorageDirectory": str(folder.resolve()),
        "IndexDirectory": str(folder.resolve()),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": bool(user),
        "RegisteredUsers": {user: password} if user else {},
        # GDCM reads compressed series, which Orthanc alone cannot decompress for viewers
        "Plugins": [plugin for pattern in (DICOMWEB, GDCM) if (plugin := _plugin(pattern))],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }


def _plugin(pattern: str) -> str | None:
    return next((str(file) for folder in PLUGIN_FOLDERS for file in sorted(Path(folder).glob(pattern))), None)


def _wait(orthanc: Orthanc, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until it answers; an answer that asks for a login is one."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            if requests.get(f"{orthanc.url}/studies?limit=1", timeout=5).status_code in (200, 401):
                return
        except requests.RequestException:
            pass  # not listening yet
        time.sleep(0.1)
    said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise OrthancFailed(f"Orthanc did not start within {START_S:.0f} s:\n{said}")
