"""Size and sha256 of packaged weights into the manifest, after every training of them."""

from __future__ import annotations

import json
from pathlib import Path

from ssmsam.files import whole_file
from ssmsam.models.weights import MANIFEST, PACKAGED, WeightsEntry, entry, manifest, sha256_of


def record(name: str, *, manifest_file: Path = MANIFEST, packaged: Path = PACKAGED) -> WeightsEntry:
    """Write size and sha256 of the packaged weights ``name`` into the manifest, and return the new entry."""
    known = entry(name)
    if not known.packaged:
        raise ValueError(f"{name} does not come with this package: its sha256 is the publisher's and is not recorded")
    path = packaged / known.file
    everything = json.loads(manifest_file.read_text())
    everything[name] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    with whole_file(manifest_file) as partial:
        partial.write_text(json.dumps(everything, indent=2) + "\n")
    manifest.cache_clear()
    return WeightsEntry(name=name, **everything[name])
