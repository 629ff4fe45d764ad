"""The error for input that cannot become a volume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UnreadableVolume(ValueError):
    """A file or folder that cannot be read as one 3-D image. The message says why and what to do."""


@contextmanager
def one_error(source: Path | str) -> Iterator[None]:
    """Whatever a reader raises inside becomes :class:`UnreadableVolume`.

    The libraries below raise what they like for damaged input (ValueError, KeyError, OverflowError, MemoryError and
    their own kinds); who asks for a volume has to expect one error only.
    """
    try:
        yield
    except UnreadableVolume:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise UnreadableVolume(
            f"{source}: cannot be read ({type(error).__name__}: {reason}). "
            "The file is damaged or breaks its format's rules: export it again."
        ) from error
