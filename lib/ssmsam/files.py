"""Files that appear whole or not at all, private where they show patients; and damaged ones put aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

WRITING = ".writing-"
"""How the names of files and folders begin that are being written."""
DAMAGED = ".damaged-"
"""What the names of files and folders hold that were put aside."""


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file in one step: readers see the old one or the new one. Only its owner may read it (mode 0600)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = NamedTemporaryFile(dir=path.parent, prefix=WRITING, delete=False)  # noqa: SIM115
    partial = Path(file.name)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # closed by now: Windows renames no open file
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def private_folder(path: Path) -> Path:
    """A folder that only its owner may look into (mode 0700), made where it is missing: for what shows patients."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def put_aside(path: Path) -> str:
    """Give a damaged file or folder another name beside it, so that it is kept; the new name. Raises OSError."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    return path.rename(path.with_name(f"{path.name}{DAMAGED}{stamp}")).name


@contextmanager
def whole_file(path: Path, suffix: str = "") -> Iterator[Path]:
    """A place to write that becomes ``path`` in one step at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=WRITING, dir=path.parent) as folder:
        partial = Path(folder) / f"whole{suffix}"
        yield partial
        os.replace(partial, path)
