"""``ssmsam purge``: what is cached of patients' images, and its removal."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click

from ssmsam.cli.command import FAILED, FINE, Program, json_option, path_option
from ssmsam.paths import default_cache_folders
from ssmsam.report import record_run
from ssmsam.service.patient_cache import cached, purge


@click.command(cls=Program)
@click.option("--yes", is_flag=True, help="Remove it, not only say what there is.")
@path_option("--store", metavar="DIR", help="The server's --conf store, if it has one.")
@path_option("--heads", "checkpoints", metavar="DIR", help="Likewise --conf heads.")
@path_option("--dicom-folder", metavar="DIR", help="Likewise --conf dicom_folder.")
@json_option
def command(
    *, yes: bool, store: Path | None, checkpoints: Path | None, dicom_folder: Path | None, record: Path | None
) -> int:
    """Remove what is cached of patients' images: embeddings, support caches, downloaded series, sessions.

    \b
    ssmsam purge          say what would be removed
    ssmsam purge --yes    remove it

    Annotations, labels, task checkpoints and studies stay. What is needed again is made again.
    """
    usual = default_cache_folders()
    folders = replace(
        usual,
        store=store or usual.store,
        checkpoints=(checkpoints,) if checkpoints else usual.checkpoints,
        dicom=dicom_folder or usual.dicom,
    )
    places = cached(folders)
    there = [place.as_json() for place in places]
    for found in there:
        print(f"{found['bytes'] / 1e6:10.1f} MB  {found['files']:7d} files  {found['name']}: {found['what']}")
    if not yes:
        print("Nothing was removed: give --yes to remove all of this. Annotations stay.")
    gone = purge(places) if yes else []
    left = sum(place.as_json()["bytes"] for place in places) if yes else 0
    if yes:
        print(f"Removed {sum(one['bytes'] for one in gone) / 1e6:.1f} MB.")
    record_run(record, {"found": there, "removed": gone, "left_bytes": left}, protocol="purge")
    if left:
        print(f"{left / 1e6:.1f} MB could not be removed: is this the user who runs the server?", file=sys.stderr)
    return FAILED if left else FINE
