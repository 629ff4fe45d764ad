"""Say what works on this machine, what does not, and what to do. Ends with 1 when something will not work."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from ssmsam.cli.checks import FAIL, Place, examine
from ssmsam.models.weights import CorruptWeights, MissingWeights, find_weights
from ssmsam.models.weights import manifest as known_weights
from ssmsam.report import run_manifest, write_result
from ssmsam.server.configuration import default_store

ROOT = Path(__file__).resolve().parent.parent
COLOURS = {"OK": "\033[32m", "WARN": "\033[33m", "FAIL": "\033[31m"}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.download:
        return download(options.download, options.weights)
    findings = []
    for finding in examine(place_of(options)):
        findings.append(finding)
        print(f"{coloured(finding.level)}  {finding.subject}: {finding.text}")
        if finding.step:
            print(f"      -> {finding.step}")
    failed = sum(finding.level == FAIL for finding in findings)
    print(f"\n{failed} of {len(findings)} findings will not work." if failed else "\nEverything needed works.")
    if options.json:
        manifest = run_manifest(protocol="doctor", data={}, weights={})
        write_result(options.json, {"findings": [asdict(finding) for finding in findings], "manifest": manifest})
    return 1 if failed else 0


def place_of(options: argparse.Namespace) -> Place:
    return Place(
        root=ROOT,
        weights=options.weights,
        store=default_store(),
        server_port=options.port,
        studies=options.studies,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    downloadable = [name for name, known in known_weights().items() if known.url]
    parser.add_argument("--download", choices=downloadable, help="fetch these weights and check them")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder to look for weights in first")
    parser.add_argument("--port", type=int, default=8000, help="the port meant for the server")
    parser.add_argument("--studies", default="", metavar="URL or DIR", help="a DICOMweb store or a folder to look into")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings there too")
    return parser.parse_args(arguments)


def download(name: str, folder: Path | None) -> int:
    try:
        path = find_weights(name, folder=folder, download=True)
    except (CorruptWeights, MissingWeights) as error:
        print(f"{coloured('FAIL')}  {error}", file=sys.stderr)
        return 1
    print(f"{coloured('OK')}  {name} is at {path}, checksum right")
    return 0


def coloured(level: str) -> str:
    text = f"{level:4}"
    return f"{COLOURS[level]}{text}\033[0m" if sys.stdout.isatty() else text


if __name__ == "__main__":
    sys.exit(main())
