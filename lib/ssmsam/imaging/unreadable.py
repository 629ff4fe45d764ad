"""The error for input that cannot become a volume."""

from __future__ import annotations


class UnreadableVolume(ValueError):
    """A file or folder that cannot be read as one 3-D image. The message says why and what to do."""
