"""The error for input that cannot become a volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UnreadableVolume(ValueError):
    """A file or folder that cannot be read as one 3-D image. The message says why and what to do."""


_MOST_INFLATION = 1100
"""Bytes that one stored byte can become: deflate's limit is 1032, and headers take some."""


def expect_held(claimed: float, path: Path, *, compressed: bool = True) -> None:
    """Refuse a file whose header claims more bytes of voxels than a file of its size can hold: memory for them must not
    be asked for. Raises UnreadableVolume."""
    held = path.stat().st_size
    if claimed > held * (_MOST_INFLATION if compressed else 1):
        raise UnreadableVolume(
            f"{path}: the header claims at least {claimed:.0f} bytes of voxels, the file has {held}. "
            "It is damaged or cut short: export it again."
        )


def reason_of(error: Exception) -> str:
    """What an error of a library says, in one line: ITK says it in the last of many, others in the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1 if "SimpleITK" in lines[0] else 0].replace("[nrrd] ", "")[:200]


@contextmanager
def named(path: Path | str, name: str) -> Iterator[None]:
    """What cannot be read inside is reported by a name that people know, not by its path."""
    try:
        yield
    except UnreadableVolume as error:
        raise UnreadableVolume(str(error).replace(str(path), name)) from error


@contextmanager
def one_error(source: Path | str) -> Iterator[None]:
    """Whatever a reader raises inside becomes :class:`UnreadableVolume` that names the ``source``.

    The libraries below raise what they like for damaged input (ValueError, KeyError, OverflowError, MemoryError and
    their own kinds); who asks for a volume has to expect one error only.
    """
    try:
        yield
    except UnreadableVolume as error:
        if str(source) in str(error):
            raise
        raise UnreadableVolume(f"{source}: {error}") from error
    except Exception as error:
        raise UnreadableVolume(
            f"{source}: cannot be read ({type(error).__name__}: {reason_of(error)}). "
            "The file is damaged or breaks its format's rules: export it again."
        ) from error
