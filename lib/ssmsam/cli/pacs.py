"""``ssmsam pacs``: an archive of our own to try things out."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import click

from ssmsam.cli.command import FAILED, FINE, Program, json_option, path_option
from ssmsam.cli.orthanc import Orthanc, OrthancFailed, running_orthanc
from ssmsam.cli.sample_data import sample_folder, write_sample_studies
from ssmsam.report import run_manifest, write_result


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
            if record:
                manifest = run_manifest(protocol="pacs", data={}, weights={})
                write_result(record, {"url": orthanc.url, "images": sent, "manifest": manifest})
            return subprocess.call(run) if run else wait()
    except OrthancFailed as error:
        print(f"pacs: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return FINE


def fill(orthanc: Orthanc) -> int:
    """Store the sample studies; returns the number of images."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
        series = write_sample_studies(sample_folder(), Path(scratch))
        return sum(orthanc.upload(sorted(folder.glob("*.dcm"))) for folder in series)


def wait() -> int:
    threading.Event().wait()
    return FINE
