"""Which weights exist, where they come from, and how to know that a file is them.

``python -m ssmsam.encoders.manifest`` lists them; ``python -m ssmsam.encoders.manifest --record small`` writes the
size and sha256 of the weights in this package into the manifest, to be run after every training of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGED = Path(__file__).parent / "weights"
"""Folder of the weights that come with this package."""

_FILE = Path(__file__).with_name("manifest.json")


@dataclass(frozen=True)
class WeightsEntry:
    """One weights file. ``sha256`` and ``bytes`` are None while unknown, ``url`` for weights that come in a package.

    That package is this one, or another one of the Python registry: ``package`` is its requirement, ``package_file``
    the file's place among what it installs.
    """

    name: str
    file: str
    architecture: str
    licence: str
    homepage: str | None
    url: str | None
    sha256: str | None
    bytes: int | None
    package: str | None = None
    package_file: str | None = None

    @property
    def packaged(self) -> bool:
        """Whether the file comes with this package."""
        return self.url is None and self.package is None


@cache
def manifest() -> dict[str, WeightsEntry]:
    """All known weights by encoder name."""
    return {name: WeightsEntry(name=name, **fields) for name, fields in json.loads(_FILE.read_text()).items()}


def entry(name: str) -> WeightsEntry:
    """The weights of one encoder. Raises ValueError that lists the valid names."""
    try:
        return manifest()[name]
    except KeyError:
        raise ValueError(f"unknown encoder {name!r}; valid names: {', '.join(manifest())}") from None


def sha256_of(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha.update(piece)
    return sha.hexdigest()


def record(name: str, *, manifest_file: Path = _FILE, packaged: Path = PACKAGED) -> WeightsEntry:
    """Write size and sha256 of the packaged weights ``name`` into the manifest, and return the new entry."""
    known = entry(name)
    if not known.packaged:
        raise ValueError(f"{name} does not come with this package: its sha256 is the publisher's and is not recorded")
    path = packaged / known.file
    everything = json.loads(manifest_file.read_text())
    everything[name] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    partial = manifest_file.with_suffix(".partial")
    partial.write_text(json.dumps(everything, indent=2) + "\n")
    partial.replace(manifest_file)
    manifest.cache_clear()
    return WeightsEntry(name=name, **everything[name])


def main(arguments: list[str] | None = None) -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m ssmsam.encoders.manifest", description="The known weights.")
    parser.add_argument("--record", metavar="NAME", help="take size and sha256 of packaged weights into the manifest")
    options = parser.parse_args(arguments)
    for known in [record(options.record)] if options.record else manifest().values():
        print(f"{known.name}: {known.file}, {known.bytes} bytes, sha256 {known.sha256}, licence {known.licence}")


if __name__ == "__main__":
    main()
