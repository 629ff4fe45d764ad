"""Multipart answers of DICOMweb servers, part by part, as RFC 2046 has them and as servers write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from email.message import Message

HEADERS_END = re.compile(rb"\r?\n[ \t]*\r?\n")
MOST_PREAMBLE = 1 << 20
"""Bytes before the first part, at most. A guess: what comes before it is a remark."""


def boundary_of(content_type: str) -> bytes:
    """The boundary of a multipart answer, b"" where its type names none. Raises ValueError for other types."""
    message = Message()
    message["Content-Type"] = content_type
    if message.get_content_maintype() != "multipart":
        raise ValueError(f"an answer of several files was expected, not {message.get_content_type()}")
    return str(message.get_param("boundary", "")).encode("latin-1", "replace")


def parts(boundary: bytes, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The content of each part, without its headers, from an answer that arrives in pieces.

    Takes a preamble and an epilogue, lines that end with a bare LF, parts without headers, and an answer whose last
    boundary is missing. Raises ValueError for anything else.
    """
    first = re.compile(rb"(?:\A|\n)--" + re.escape(boundary) + rb"(?=[ \t]*(\r?\n)|--)")
    data, searched, delimiter = bytearray(), 0, b""
    for piece in pieces:
        data += piece
        if not delimiter:
            start = first.search(data)
            if start is None:
                if len(data) > MOST_PREAMBLE:
                    break
                continue
            # where the first line ends with a bare LF, the others do
            delimiter = (start[1] or b"\r\n") + b"--" + boundary
            del data[: start.end()]
        while (end := data.find(delimiter, searched)) >= 0:
            if data.startswith(b"--"):
                return
            yield _content(data[:end])
            del data[: end + len(delimiter)]
            searched = 0
        searched = max(0, len(data) - len(delimiter) + 1)
    if not delimiter:
        raise ValueError("the answer has no part")
    if data.strip() and not data.startswith(b"--"):
        yield _content(data)


def _content(part: bytearray) -> bytes:
    """What follows the headers; the line of the boundary is still in front of them."""
    end = HEADERS_END.search(part)
    if end is None:
        raise ValueError("a part has no end of its headers")
    return bytes(part[end.end() :])
