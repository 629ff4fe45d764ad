"""What names a patient does not belong into the server's logs, nor into what it tells everybody of itself."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_UID = re.compile(r"(?<![\w.])[0-2]\.\d+(?:\.\d+)+(?![\w])")
"""What may be a DICOM UID; version numbers and addresses look like it too."""
_LONG_PART = 4
_MANY_PARTS = 5
_SECRET = secrets.token_bytes(16)
_WORD = re.compile(r"\w+")
_SHORTEST, _SHORTEST_NUMBER = 2, 5
"""Characters of a name, at least, and of one that is only a number: shorter ones stand in every line. A guess."""
_names: dict[str, frozenset[int]] = {}
"""The names of images that no log is to hold, by their beginning: how many characters such names have."""
_hidden: set[str] = set()


def keep_names_out_of_logs(names: Iterable[str]) -> None:
    """From here on no line of this process names these images, which are files and may be called after a patient."""
    for name in set(names) - _hidden:
        first = _WORD.search(name)
        if first and len(name) >= (_SHORTEST_NUMBER if name.isdecimal() else _SHORTEST):
            known = name[first.start() :]
            _names[first[0]] = _names.get(first[0], frozenset()) | {len(known)}
            _hidden.update((name, known))


def without_names(text: str) -> str:
    """The same with each of these names replaced, as :func:`without_uids` does it."""
    found, end = [], 0
    for word in _WORD.finditer(text):
        start = word.start()
        for length in sorted(_names.get(word[0], ()), reverse=True) if start >= end else ():
            if text[start : start + length] in _hidden and not _WORD.match(text, start + length):
                found += [text[end:start], f"image-{_told_as(text[start : start + length])}"]
                end = start + length
                break
    return "".join([*found, text[end:]])


def without_uids(text: str) -> str:
    """The same with each DICOM UID replaced by a name for it that is good for this process only: what belongs together
    can still be seen, and nobody can look it up."""
    return _UID.sub(_pseudonym, text)


def without_uids_in(value: Any) -> Any:
    """The same of all texts in plain JSON, keys too."""
    if isinstance(value, str):
        return without_uids(value)
    if isinstance(value, Mapping):
        return {without_uids_in(key): without_uids_in(one) for key, one in value.items()}
    return [without_uids_in(one) for one in value] if isinstance(value, list | tuple) else value


def _pseudonym(found: re.Match[str]) -> str:
    uid = found.group()
    parts = uid.split(".")
    if len(parts) < _MANY_PARTS and max(map(len, parts)) < _LONG_PART:  # 0.8.5 or 127.0.0.1
        return uid
    return f"uid-{_told_as(uid)}"


def _told_as(name: str) -> str:
    return hmac.new(_SECRET, name.encode(errors="replace"), hashlib.sha256).hexdigest()[:10]


def keep_patients_out_of_logs() -> None:
    """Silence or shorten those log lines of MONAI Label and its web server that name patients, and take UIDs out of
    every line of this process, and what :func:`keep_names_out_of_logs` is told."""
    # it writes what is known of every image it offers
    logging.getLogger("monailabel.endpoints.activelearning").setLevel(logging.WARNING)
    access = logging.getLogger("uvicorn.access")
    if not any(isinstance(known, _WithoutQueries) for known in access.filters):
        access.addFilter(_WithoutQueries())
    make = logging.getLogRecordFactory()
    if not isinstance(make, _WithoutUids):
        logging.setLogRecordFactory(_WithoutUids(make))


class _WithoutUids:
    """Makes log records without UIDs: a factory sees every record, whichever handlers there are."""

    def __init__(self, make: Callable[..., logging.LogRecord]) -> None:
        self._make = make

    def __call__(self, *arguments: Any, **options: Any) -> logging.LogRecord:
        record = self._make(*arguments, **options)
        record.msg = _told(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(_told(one) for one in record.args)
        elif isinstance(record.args, Mapping):
            record.args = {key: _told(one) for key, one in record.args.items()}
        if record.exc_info and record.exc_info[0] is not None:
            lines = traceback.format_exception(*record.exc_info)
            record.exc_text = without_uids(without_names("".join(lines))).rstrip("\n")
        return record


def _told(value: Any) -> Any:
    """What a line says of a value, as it is where that holds no UID and no image's name."""
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    shown = without_uids(without_names(text))
    return value if shown == text else shown


class _WithoutQueries(logging.Filter):
    """Queries name images, and viewers look for patients by name: they are left out of the access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                value.partition("?")[0] if isinstance(value, str) and value.startswith("/") else value
                for value in record.args
            )
        return True
