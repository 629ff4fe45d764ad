"""One DICOM file: whether it is one, and its dataset, whatever its age and packing."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pydicom
from pydicom.dataset import FileDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from ssmsam.volume.errors import UnreadableVolume, one_error

PREAMBLE, MARK = 128, b"DICM"
META_LENGTH = b"\x02\0\0\0UL\x04\0"
"""How the length of the file's meta information begins, right after the mark."""

MOST_INFLATED = 1 << 29
"""Bytes that a deflated file may become. *Guess*: a hundred segments on 300 slices of 512 x 512 pixels are a quarter
less, and the files of a series are far smaller."""


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: the mark after 128 bytes, or, as old devices write, the first element."""
    if not path.is_file():  # reading a pipe or a device may never end
        return False
    head = _head(path)
    return _has_mark(head) or _is_first_element(head)


def read_dataset(path: Path, *, tags: Sequence[str] | None = None, pixels: bool = True) -> FileDataset:
    """The dataset of a file, with or without the preamble; only ``tags`` where they are named.

    Raises UnreadableVolume for what is no DICOM file, or one that inflates to more than it may.
    """
    with one_error(path):
        head = _head(path)
        if not (_has_mark(head) or _is_first_element(head)):
            raise UnreadableVolume(f"{path}: not a readable DICOM file. Export it again.")
        if DeflatedExplicitVRLittleEndian.encode() in head:
            _expect_bounded(path)
        chosen = None if tags is None else list(tags)
        return pydicom.dcmread(path, force=True, stop_before_pixels=not pixels, specific_tags=chosen)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(1024)


def _has_mark(head: bytes) -> bool:
    return head[PREAMBLE:][: len(MARK)] == MARK


def _is_first_element(head: bytes) -> bool:
    """Whether ``head`` begins with an element of group 0002 or 0008, as datasets do, in any byte order."""
    if len(head) < PREAMBLE + len(MARK):
        return False
    for order in "<>":
        group, element, implicit_length = struct.unpack_from(f"{order}HHL", head)
        is_explicit = head[4:6].isalpha() and head[4:6].isupper()
        if group in (0x0002, 0x0008) and element < 0x0100 and (is_explicit or implicit_length < len(head)):
            return True
    return False


def _expect_bounded(path: Path) -> None:
    """Refuse a deflated file that inflates to gigabytes: pydicom would keep all of it."""
    with open(path, "rb") as file:
        file.seek(PREAMBLE + len(MARK))
        if file.read(len(META_LENGTH)) != META_LENGTH:
            raise UnreadableVolume(f"{path}: a deflated file without FileMetaInformationGroupLength. Export it again.")
        (length,) = struct.unpack("<L", file.read(4))
        file.seek(length, 1)
        inflate, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while packed := file.read(1 << 16):
            while packed:
                size += len(inflate.decompress(packed, 1 << 20))
                packed = inflate.unconsumed_tail
                if size > MOST_INFLATED:
                    raise UnreadableVolume(
                        f"{path}: it inflates to more than {MOST_INFLATED >> 20} MiB. Export it without compression."
                    )
