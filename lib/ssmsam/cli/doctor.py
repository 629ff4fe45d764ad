"""``ssmsam doctor``: the checks of :mod:`ssmsam.cli.checks`, told."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from ssmsam.cli.checks import FAIL, Place, examine
from ssmsam.cli.command import FAILED, FINE, Program, json_option
from ssmsam.cli.options import weights_option
from ssmsam.models.weights import CorruptWeights, MissingWeights, find_weights
from ssmsam.models.weights import manifest as known_weights
from ssmsam.paths import default_store
from ssmsam.report import run_manifest, write_result

COLORS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}
DOWNLOADABLE = [name for name, known in known_weights().items() if known.url]


@click.command(cls=Program)
@click.option("--download", type=click.Choice(DOWNLOADABLE), help="Fetch these weights and check them.")
@weights_option
@click.option("--port", type=int, default=8000, show_default=True, help="The port meant for the server.")
@click.option("--studies", default="", metavar="URL or DIR", help="A DICOMweb store or a folder to look into.")
@json_option
def command(*, download: str | None, weights: Path | None, port: int, studies: str, record: Path | None) -> int:
    """Say what works on this machine, what does not, and what to do. Ends with 1 when something will not work."""
    if download:
        return fetch(download, weights)
    findings = []
    for finding in examine(Place(weights=weights, store=default_store(), server_port=port, studies=studies)):
        findings.append(finding)
        click.echo(f"{click.style(f'{finding.level:4}', COLORS[finding.level])}  {finding.subject}: {finding.text}")
        if finding.step:
            click.echo(f"      -> {finding.step}")
    failed = sum(finding.level == FAIL for finding in findings)
    click.echo(f"\n{failed} of {len(findings)} findings will not work." if failed else "\nEverything needed works.")
    if record:
        manifest = run_manifest(protocol="doctor", data={}, weights={})
        write_result(record, {"findings": [asdict(finding) for finding in findings], "manifest": manifest})
    return FAILED if failed else FINE


def fetch(name: str, folder: Path | None) -> int:
    try:
        path = find_weights(name, folder=folder, download=True)
    except (CorruptWeights, MissingWeights) as error:
        print(f"FAIL  {error}", file=sys.stderr)
        return FAILED
    click.echo(f"{click.style('OK', 'green')}    {name} is at {path}, checksum right")
    return FINE
