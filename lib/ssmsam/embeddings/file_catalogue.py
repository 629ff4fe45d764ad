"""What is known of a file or DICOM folder without reading its pixels again."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ssmsam.files import whole_file
from ssmsam.volume.intensity import CtWindow, IntensityRecipe, MrPercentiles
from ssmsam.volume.volume import Grid, Volume

logger = logging.getLogger(__name__)

RECIPES: dict[str, type[IntensityRecipe]] = {recipe.name: recipe for recipe in (CtWindow, MrPercentiles)}


READER = 3
"""Counts the changes of how files are read: what an older reader found of a source, its grid for one, counts no more.
2: the place of a NIfTI file in the patient is the one that ITK reads.
3: DICOM padding is no tissue, MONOCHROME1 inverts nothing."""


@dataclass(frozen=True, eq=False)
class Known:
    """Of a source that was read before: what an embedding's key and a viewer's answer need."""

    pixel_digest: str
    grid: Grid
    recipe: IntensityRecipe
    """The default recipe of the volume."""


class Catalogue:
    """One small JSON file per state of a source under ``root``. A changed source is a new one.

    Several processes may use it at once. Losing it costs one reading of each source.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, source: Path | str) -> Known | None:
        """What is known of the source as it is now; None when nothing is. Raises FileNotFoundError if it is gone."""
        file = self.root / f"{fingerprint(source)}.json"
        try:
            fields = json.loads(file.read_text())
            grid = Grid(tuple(fields["shape"]), np.array(fields["affine"]))
            recipe = RECIPES[fields["recipe"]](**fields["settings"])
            return Known(fields["pixel_digest"], grid, recipe)
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # unknown, half-written, or of another version
            return None

    def add(self, source: Path | str, *, volume: Volume, recipe: IntensityRecipe, fingerprint: str) -> None:
        """Remember what a source held. ``fingerprint`` must be from before it was read, in case it just changed."""
        file = self.root / f"{fingerprint}.json"
        fields = {
            "source": str(source),
            "pixel_digest": volume.digest,
            "shape": list(volume.shape),
            "affine": volume.affine.tolist(),
            "modality": volume.modality,
            "recipe": recipe.name,
            "settings": asdict(recipe),
        }
        try:
            with whole_file(file) as partial:
                partial.write_text(json.dumps(fields, indent=1))
        except OSError as error:  # only costs time
            logger.warning("cannot remember what %s holds in %s: %s", source, self.root, error)


def fingerprint(source: Path | str) -> str:
    """sha256 over :data:`READER` and the path, size and time of change of a file, or of every file of a folder.

    Raises FileNotFoundError when there is no such file or folder.
    """
    source = Path(source).resolve()
    files = sorted(path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
    sha = hashlib.sha256(f"reader {READER}".encode())
    for path in files:
        status = path.stat()
        sha.update(repr((str(path), status.st_size, status.st_mtime_ns)).encode())
    return sha.hexdigest()
