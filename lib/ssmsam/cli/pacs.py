"""Start a local Orthanc with DICOMweb, filled with the sample studies. Ends with Ctrl-C, or with COMMAND."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from ssmsam.cli.orthanc import Orthanc, OrthancFailed, running_orthanc
from ssmsam.cli.sample_studies import write_sample_studies
from ssmsam.report import run_manifest, write_result

ROOT = Path(__file__).resolve().parent.parent


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends Orthanc too
    try:
        with running_orthanc(
            options.folder, port=options.port, user=options.user, password=options.password
        ) as orthanc:
            sent = 0 if options.empty else fill(orthanc)
            print(f"DICOMweb store: {orthanc.url} ({sent} sample images), files in {options.folder}", flush=True)
            if options.json:
                manifest = run_manifest(protocol="pacs", data={}, weights={})
                write_result(options.json, {"url": orthanc.url, "images": sent, "manifest": manifest})
            return subprocess.call(options.command) if options.command else wait()
    except OrthancFailed as error:
        print(f"pacs: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8042, help="where Orthanc listens, on this machine only")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "output" / "pacs", metavar="DIR", help="where Orthanc keeps its files"
    )
    parser.add_argument("--user", default="", help="ask for a login with this name")
    parser.add_argument("--password", default="", help="and this password")
    parser.add_argument("--empty", action="store_true", help="without the sample studies")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the address there too")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run this (after --) as long as Orthanc runs")
    return parser.parse_args(arguments)


def fill(orthanc: Orthanc) -> int:
    """Store the sample studies; returns the number of images."""
    with tempfile.TemporaryDirectory(prefix="ssmsam-") as scratch:
        series = write_sample_studies(ROOT / "sample-datasets", Path(scratch))
        return sum(orthanc.upload(sorted(folder.glob("*.dcm"))) for folder in series)


def wait() -> int:
    threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
