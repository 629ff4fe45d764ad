"""JSON that came from outside, checked before anything else looks at it."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

DEEPEST = 64
"""Brackets within brackets; what clients send nests 6 deep. A guess with room to spare."""
LARGEST = 2**53
"""The largest number: beyond it JSON's readers disagree about which number it is."""


_Number = TypeVar("_Number", int, float)


class InvalidJson(ValueError):
    """Text that is not JSON, or JSON that cannot be kept and passed on. The message says what to send."""


def read_json_text(text: str | bytes, *, name: str) -> Any:
    """What a JSON text holds; None for a blank one. ``name`` is what the sender calls it.

    Finite numbers of at most 2**53, whole characters, and :data:`DEEPEST` brackets: what every other reader and every
    file can take. Bytes may be in UTF-8, UTF-16 or UTF-32, and a byte order mark is passed over.
    Raises :class:`InvalidJson`, and nothing else.

    Example:
        >>> read_json_text('{"slice": 3}', name="params")
        {'slice': 3}
        >>> read_json_text('[NaN]', name="params")
        Traceback (most recent call last):
        ssmsam.json_text.InvalidJson: params holds NaN: send a finite number, or null
    """

    def constant(word: str) -> NoReturn:
        raise InvalidJson(f"{name} holds {word}: send a finite number, or null")

    def number(digits: str) -> float:
        return smaller(float(digits), digits)

    def whole(digits: str) -> int:
        return smaller(int(digits) if len(digits) < 20 else LARGEST + 1, digits)

    def smaller(value: _Number, digits: str) -> _Number:
        if not abs(value) <= LARGEST:
            raise InvalidJson(f"{name} holds the number {digits[:20]}, which is beyond 2**53: send a smaller one")
        return value

    try:
        text = text.decode(json.detect_encoding(text)) if isinstance(text, bytes) else text.removeprefix("\ufeff")
        if "\0" in text:  # a form field in UTF-16
            raise InvalidJson(_not_utf8(name))
        if not text.strip():
            return None
        value = json.loads(text, parse_constant=constant, parse_float=number, parse_int=whole)
    except InvalidJson:
        raise
    except UnicodeDecodeError:
        raise InvalidJson(_not_utf8(name)) from None
    except RecursionError:
        raise InvalidJson(_too_deep(name)) from None
    except ValueError as error:
        raise InvalidJson(f"{name} is not valid JSON ({error}): {text[:80]!r}") from None
    require_storable(value, name=name)
    return value


def require_storable(value: Any, *, name: str) -> None:
    """Refuse what nests too deep, and half characters (lone surrogates), which JSON escapes may hold and no file can.

    Raises :class:`InvalidJson`.
    """
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise InvalidJson(_too_deep(name))
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += [*one, *one.values()]
            elif isinstance(one, (list, tuple)):
                below += one
            elif isinstance(one, str) and not one.isascii() and any("\ud800" <= sign <= "\udfff" for sign in one):
                raise InvalidJson(f"{name} holds half a character (a lone surrogate): send whole text")
        level, depth = below, depth + 1


def _not_utf8(name: str) -> str:
    return f"{name} is not UTF-8: send JSON in UTF-8"


def _too_deep(name: str) -> str:
    return f"{name} nests more than {DEEPEST} brackets deep: send a flatter object"
