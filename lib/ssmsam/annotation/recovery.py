"""Annotations whose index is damaged, made whole again from the files of their revisions."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssmsam.annotation.annotations import Annotations, Revision
from ssmsam.annotation.files import CorruptAnnotations, write_json
from ssmsam.annotation.serialisation import grid_of, read_index, read_revision, write_index
from ssmsam.imaging.volume import Grid
from ssmsam.imaging.writing import put_aside

logger = logging.getLogger(__name__)

INDEX = "annotations.json"
LOST = "lost"


def revision_file(folder: Path, number: int) -> Path:
    """What a revision says, beside its masks: the same as in the index."""
    return folder / f"revision-{number:06d}.json"


def has_revisions(folder: Path) -> bool:
    """Whether there are annotations in an image's folder, with or without an index."""
    return next(folder.glob("revision-*.json"), None) is not None


def recover(folder: Path, why: CorruptAnnotations) -> dict[str, Any] | None:
    """A sound index for an image's folder, None where nothing of it can be read: the folder is put aside then.

    Every revision whose file is whole counts. Masks that are damaged are taken out of theirs, with a note. What is
    damaged is kept under another name. The caller holds the folder's lock.
    """
    sound = list(_sound_indices(folder))
    if not sound:
        kept = put_aside(folder)
        logger.error("%s Nothing of it can be read: it is kept as %s; its image counts as not annotated", why, kept)
        return None
    image, grid = sound[0]["image"], grid_of(sound[0])
    known: dict[int, list[dict[str, Any]]] = {}
    for index in sound:
        for record in index["revisions"] if index["image"] == image and grid_of(index).matches(grid) else ():
            known.setdefault(record["number"], []).append(dict(record))
    found = [_best(folder, grid, known[number]) for number in sorted(known)]
    revisions, records = [revision for revision, _ in found], [record for _, record in found]
    lost = [record["masks"] for record in records if record.pop(LOST, False)]
    index = write_index(image, grid, records, Annotations(grid, tuple(revisions)))
    for name in (INDEX, *lost):
        with suppress(FileNotFoundError):
            put_aside(folder / Path(name).name)
    write_json(folder / INDEX, index)
    logger.warning(
        "%s It was rebuilt from what was kept of %d revisions; the old file is kept beside it", why, len(revisions)
    )
    return index


def _best(folder: Path, grid: Grid, records: list[dict[str, Any]]) -> tuple[Revision, dict[str, Any]]:
    """A revision as the first of several records has it whose masks are whole; else as the first has it without."""
    for record in records:
        with suppress(CorruptAnnotations, OSError):
            return read_revision(folder, grid, record), record
    try:
        return read_revision(folder, grid, records[0]), records[0]
    except (CorruptAnnotations, OSError) as error:
        _without_masks(records[0], error)
        return read_revision(folder, grid, records[0]), records[0]


def _without_masks(record: dict[str, Any], error: Exception) -> None:
    keys = ", ".join(f"{entry['label']} on slice {entry['index']}" for entry in record["entries"])
    logger.error("%s Revision %s is used without its masks, of %s", error, record["number"], keys)
    lost = f"the masks of this revision were damaged on the server's disk and are lost: annotate again {keys}"
    record.update(entries=[], complete=[], notes=[*record["notes"], lost], **{LOST: True})


def _sound_indices(folder: Path) -> Iterator[Mapping[str, Any]]:
    """The index, if it can be read, and every revision's own file, which is an index of one revision."""
    for path in (folder / INDEX, *sorted(folder.glob("revision-*.json"))):
        with suppress(CorruptAnnotations, OSError):
            yield read_index(path)
