"""Remove what is cached of patients' images on this machine: embeddings, support caches, downloaded series, sessions.

    python apps/purge.py          say what would be removed
    python apps/purge.py --yes    remove it

Annotations, labels, task checkpoints and studies stay. What is needed again is made again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from ssmsam.server.configuration import default_cache_folders
from ssmsam.server.patient_cache import CacheFolders, cached, purge


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    places = cached(folders_of(options))
    for place in places:
        found = place.as_json()
        print(f"{found['bytes'] / 1e6:10.1f} MB  {found['files']:7d} files  {place.name}: {place.what}")
    if not options.yes:
        print("Nothing was removed: give --yes to remove all of this. Annotations stay.")
        return 0
    removed = purge(places)
    print(f"Removed {sum(one['bytes'] for one in removed) / 1e6:.1f} MB.")
    left = sum(place.bytes for place in places)
    if left:
        print(f"{left / 1e6:.1f} MB could not be removed: is this the user who runs the server?", file=sys.stderr)
    return 1 if left else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = default_cache_folders()
    parser.add_argument("--yes", action="store_true", help="remove it, not only say what there is")
    for name, what, folder in (
        ("--store", "store", usual.store),
        ("--heads", "heads", usual.heads[0]),
        ("--dicom-folder", "dicom_folder", usual.dicom),
    ):
        parser.add_argument(name, type=Path, metavar="DIR", help=f"the server's --conf {what}, default: {folder}")
    return parser.parse_args(arguments)


def folders_of(options: argparse.Namespace) -> CacheFolders:
    usual = default_cache_folders()
    return replace(
        usual,
        store=options.store or usual.store,
        heads=(options.heads,) if options.heads else usual.heads,
        dicom=options.dicom_folder or usual.dicom,
    )


if __name__ == "__main__":
    sys.exit(main())
