"""Reading loosely typed request parameters: what clients put into JSON, checked, and named when it is wrong."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from ssmsam.json_text import InvalidJson, read_json_text

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0", ""}


class InvalidPrompt(ValueError):
    """The prompts of a request cannot be used as they are. The message tells the user what to do."""


def read_number(value: Any, name: str) -> float:
    """A finite number, or a string that holds one."""
    if isinstance(value, str):
        value = read_json(value, name)
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise InvalidPrompt(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidPrompt(f"{name} must be a finite number, got {value!r}")
    return number


def read_flag(value: Any, name: str) -> bool:
    """A boolean, the way option tables send it: true, 1, "true", "on", ..."""
    text = str(value).strip().lower()
    if value is None or text in _FALSE:
        return False
    if text in _TRUE:
        return True
    raise InvalidPrompt(f"{name} must be true or false, got {value!r}")


def read_json(text: str, name: str) -> Any:
    """What a JSON string holds; None for a blank one."""
    try:
        return read_json_text(text, name=name)
    except InvalidJson as error:
        raise InvalidPrompt(str(error)) from None


def read_list(value: Any, name: str) -> list[Any]:
    """A list, a tuple, an array, or a JSON string of one; None and blank strings are empty lists."""
    if isinstance(value, str):
        value = read_json(value, name)
    if value is None:
        return []
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise InvalidPrompt(f"{name} must be a list, got {value!r}")
    return list(value)


def read_points(value: Any, name: str, *, k: int | None) -> np.ndarray:
    """Points as (N, 3) voxel indices [i, j, k] = (column, row, slice).

    Points of two numbers [x, y] lie on slice ``k`` of the stored image; without a ``k`` they are refused.
    """
    points = [_read_point(point, f"{name} point {n + 1}", k) for n, point in enumerate(read_list(value, name))]
    return np.array(points, dtype=np.float64).reshape(-1, 3)


def _read_point(value: Any, name: str, k: int | None) -> list[float]:
    if not isinstance(value, (list, tuple, np.ndarray)) or len(value) not in (2, 3):
        raise InvalidPrompt(f"{name} must be [i, j, k] (column, row, slice of the stored image), got {value!r}")
    point = [read_number(number, name) for number in value]
    if len(point) == 2 and k is None:
        raise InvalidPrompt(f"{name} {point} does not say its slice: send [i, j, k], or the slice's number as 'slice'")
    return point if len(point) == 3 else [*point, float(k or 0)]


def read_range(value: Any, name: str) -> tuple[int, int] | None:
    """Two slice numbers in either order, both ends included: [10, 50], "[10, 50]", "10-50" or "10,50"."""
    typed = re.fullmatch(r"\s*(\d+)\s*[-,: ]\s*(\d+)\s*", value) if isinstance(value, str) else None
    value = value if typed is None else typed.groups()
    numbers = [read_number(number, name) for number in read_list(value, name)]
    if not numbers:
        return None
    if len(numbers) != 2:
        raise InvalidPrompt(f"{name} must be two slice numbers [first, last], got {value!r}")
    return round(min(numbers)), round(max(numbers))


def read_roi(value: Any, name: str = "roi") -> tuple[np.ndarray, np.ndarray] | None:
    """A box as its lowest and highest corner, (3,) each as [i, j, k]; k is NaN when the box does not say it.

    Six numbers are pairs [i0, i1, j0, j1, k0, k1], each in either order (a viewer that walks from low to high
    patient coordinates gets descending indices). Four numbers are two corners [x1, y1, x2, y2].
    """
    numbers = [read_number(number, name) for number in read_list(value, name)]
    if not numbers:
        return None
    if len(numbers) == 6:
        pairs = np.array(numbers).reshape(3, 2)
    elif len(numbers) == 4:
        pairs = np.array([numbers[0::2], numbers[1::2], [np.nan, np.nan]])
    else:
        raise InvalidPrompt(f"{name} must be [i0, i1, j0, j1, k0, k1] or [x1, y1, x2, y2], got {len(numbers)} numbers")
    return pairs.min(axis=1), pairs.max(axis=1)
