"""``ssmsam pacs``: an archive of our own to try things out."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
import requests

from ssmsam.cli.command import FAILED, FINE, Program, json_option, path_option
from ssmsam.cli.live_server import LOOPBACK, answers, end, is_used, last_lines
from ssmsam.cli.samples import sample_folder, write_sample_studies
from ssmsam.report import record_run

PROGRAMS = ("Orthanc", "orthanc")
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins", "/usr/lib/orthanc")
DICOMWEB, GDCM = "libOrthancDicomWeb.so*", "libOrthancGdcm.so*"
INSTALL = "apt-get install orthanc orthanc-dicomweb orthanc-gdcm"

START_S = 30.0


class OrthancFailed(RuntimeError):
    """Orthanc is not installed or does not start. The message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """A running Orthanc. ``url`` is its DICOMweb root; ``pid`` its process, 0 where another one started it."""

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
        known = list(files)
        with requests.Session() as session:
            session.auth = (self.user, self.password) if self.user else None
            for file in known:
                session.post(f"{self.root}/instances", data=file.read_bytes(), timeout=60).raise_for_status()
        return len(known)


@contextmanager
def running_orthanc(folder: Path, *, port: int, user: str = "", password: str = "") -> Iterator[Orthanc]:
    """Run Orthanc on ``port`` of this machine only until the block ends. It keeps its files in ``folder``.

    With ``user`` it asks for that login. Raises OrthancFailed.
    """
    if not is_installed():
        raise OrthancFailed(f"Orthanc with its DICOMweb plugin is not installed: {INSTALL}")
    if is_used(port):
        raise OrthancFailed(f"something listens on port {port} already: stop it, or choose another port")
    folder.mkdir(parents=True, exist_ok=True)
    settings, log = folder / "orthanc.json", folder / "orthanc.log"
    settings.write_text(json.dumps(_settings(folder, port, user, password), indent=1))
    settings.chmod(0o600)
    program = next(filter(None, map(shutil.which, PROGRAMS)))
    with log.open("wb") as output:
        process = subprocess.Popen([program, str(settings)], stdout=output, stderr=subprocess.STDOUT)
    orthanc = Orthanc(port=port, user=user, password=password, pid=process.pid)
    try:
        # an answer that asks for a login is one
        if not answers(process, f"{orthanc.url}/studies?limit=1", START_S, statuses=(200, 401)):
            raise OrthancFailed(f"Orthanc did not start within {START_S:.0f} s:\n{last_lines(log, 15)}")
        yield orthanc
    finally:
        end(process)


def is_installed() -> bool:
    """Whether :func:`running_orthanc` finds what it needs."""
    return any(map(shutil.which, PROGRAMS)) and _plugin(DICOMWEB) is not None


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


@click.command(cls=Program)
@click.option("--port", type=int, default=8042, show_default=True, help="Where it listens, on this machine only.")
@path_option("--folder", default=Path("output", "pacs"), show_default=True, metavar="DIR", help="Where its files are.")
@click.option("--user", default="", help="Ask for a login with this name.")
@click.option("--password", default="", help="And this password.")
@click.option("--empty", is_flag=True, help="Without the sample studies.")
@json_option
@click.argument("run", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
def command(
    *, port: int, folder: Path, user: str, password: str, empty: bool, record: Path | None, run: Sequence[str]
) -> int:
    """Start a local Orthanc with DICOMweb, filled with the sample studies.

    It ends with Ctrl-C, or with COMMAND, which is run beside it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends Orthanc too
    try:
        with running_orthanc(folder, port=port, user=user, password=password) as orthanc:
            sent = 0 if empty else fill(orthanc)
            print(f"DICOMweb store: {orthanc.url} ({sent} sample images), files in {folder}", flush=True)
            record_run(record, {"url": orthanc.url, "images": sent}, protocol="pacs")
            if run:
                return subprocess.call(run)
            threading.Event().wait()
    except OrthancFailed as error:
        print(f"pacs: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        pass
    return FINE


def fill(orthanc: Orthanc) -> int:
    """Store the sample studies; returns the number of images."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
        series = write_sample_studies(sample_folder(), Path(scratch))
        return sum(orthanc.upload(sorted(folder.glob("*.dcm"))) for folder in series)
