"""From loosely typed request parameters to prompts: what clients put into JSON, checked, and named when it is wrong."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssmsam.interactive.request import ANONYMOUS, Box, InvalidPrompt, PromptRequest, Scribble
from ssmsam.json_text import InvalidJson, read_json_text
from ssmsam.volume.geometry import STORED_SLICES, Plane
from ssmsam.volume.volume import Grid

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0", ""}


PROMPT_KEYS = frozenset((
    "foreground", "background", "roi", "slice", "label", "current_point", "z_range", "image", "model", "scribbles",
    "lasso",
))  # fmt: skip
"""Keys of a request that hold something else than the clicks of a label of that name."""


MOST_POINTS = 20_000
"""Points of all scribbles or lassos of a request: a guess, hours of drawing."""


def read_prompts(
    params: Mapping[str, Any], *, grid: Grid, plane: Plane = STORED_SLICES, dimension: int
) -> PromptRequest:
    """Read the parameters of an inference request.

    Prompts: ``foreground`` and ``background`` (or the key that ``label`` names) as lists of voxel indices
    [i, j, k] = (column, row, slice of the stored image) or [x, y] with ``slice``; ``roi`` as six or four
    numbers (see :func:`read_roi`); ``scribbles`` and ``lasso`` as lists of lines (see :func:`read_strokes`). Lists may
    be null, empty or JSON strings.
    Options: ``slice``, ``current_point``, ``label``, ``client_id``, ``reset_state``, ``propagate``,
    ``z_range`` (slices of the plane of work), ``max_mm`` (0 for no limit).

    Raises :class:`InvalidPrompt` for prompts outside the volume, malformed or contradictory ones.
    """
    k, unusable = _stored_slice(params.get("slice"), grid)
    positive = read_points(params.get("foreground"), "foreground", k=k)
    point = read_list(params.get("current_point"), "current_point")
    return PromptRequest.of(
        grid=grid,
        plane=plane,
        dimension=dimension,
        positive=np.concatenate([positive, _label_points(params, k)]),
        negative=read_points(params.get("background"), "background", k=k),
        newest=read_points([point] if point else [], "current_point", k=k),
        box=read_roi(params.get("roi")),
        scribbles=read_strokes(params.get("scribbles"), "scribble", k=k, grid=grid),
        lassos=[stroke.points for stroke in read_strokes(params.get("lasso"), "lasso", k=k, grid=grid)],
        slice=k,
        unusable_slice=unusable,
        z_range=read_range(params.get("z_range"), "z_range"),
        max_mm=read_number(params.get("max_mm") or 0, "max_mm"),
        label=str(params.get("label") or ""),
        client_id=str(params.get("client_id") or ANONYMOUS),
        reset_state=read_flag(params.get("reset_state"), "reset_state"),
        propagate=read_flag(params.get("propagate", True), "propagate"),
    )


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


def read_strokes(value: Any, name: str, *, k: int | None, grid: Grid) -> list[Scribble]:
    """Lines, each an object with ``points`` and perhaps ``negative`` and ``space``.

    The points are voxels as :func:`read_points` takes them, or with ``space`` "lps" or "ras" millimetres (x, y, z),
    which count on the nearest slice.
    """
    found = []
    for number, stroke in enumerate(read_list(value, name), start=1):
        said = f"{name} {number}"
        if not isinstance(stroke, Mapping) or "points" not in stroke:
            raise InvalidPrompt(
                f'{said} must be an object such as {{"points": [[i, j, k], ...]}}, got {str(stroke)[:80]}'
            )
        if unknown := sorted(map(str, set(stroke) - {"points", "negative", "space"})):
            raise InvalidPrompt(f"{said} has the key {unknown[0][:40]!r}; known: points, negative, space")
        space = stroke.get("space") or "voxel"
        if space not in ("voxel", "lps", "ras"):
            raise InvalidPrompt(f"{said}: space is voxel, lps or ras, got {str(space)[:40]!r}")
        points = read_points(stroke["points"], said, k=k if space == "voxel" else None)
        if space == "ras":
            points = points * (-1, -1, 1)
        if space != "voxel":
            points = grid.to_ijk(points).round(6)  # a voxel's centre is one again
        found.append(Scribble(points, not read_flag(stroke.get("negative"), f"{said}: negative")))
    if sum(len(one.points) for one in found) > MOST_POINTS:
        raise InvalidPrompt(f"the lines of {name} have more than {MOST_POINTS} points: send every second or third")
    return found


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


def read_roi(value: Any) -> Box | None:
    """A box as its lowest and highest corner, (3,) each as [i, j, k]; k is NaN when the box does not say it.

    Six numbers are pairs [i0, i1, j0, j1, k0, k1], each in either order (a viewer that walks from low to high
    patient coordinates gets descending indices). Four numbers are two corners [x1, y1, x2, y2].
    """
    numbers = [read_number(number, "roi") for number in read_list(value, "roi")]
    if not numbers:
        return None
    if len(numbers) == 6:
        pairs = np.array(numbers).reshape(3, 2)
    elif len(numbers) == 4:
        pairs = np.array([numbers[0::2], numbers[1::2], [np.nan, np.nan]])
    else:
        raise InvalidPrompt(f"roi must be [i0, i1, j0, j1, k0, k1] or [x1, y1, x2, y2], got {len(numbers)} numbers")
    return pairs.min(axis=1), pairs.max(axis=1)


def _stored_slice(value: Any, grid: Grid) -> tuple[int | None, str]:
    """``slice`` as a number of a stored slice, or None and what was sent instead."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return (0, "") if grid.shape[0] == 1 else (None, "")
    number = read_number(value, "slice")
    if number.is_integer() and 0 <= number < grid.shape[0]:
        return int(number), ""
    return (0, "") if grid.shape[0] == 1 else (None, f"{number:g}")


def _label_points(params: Mapping[str, Any], k: int | None) -> np.ndarray:
    """The points under the key that ``label`` names: how multi-label clients send positive clicks."""
    label = params.get("label")
    value = params.get(label) if isinstance(label, str) and label not in PROMPT_KEYS else None
    is_text = isinstance(value, str) and value.strip().startswith("[")
    is_points = isinstance(value, (list, tuple)) and all(isinstance(point, (list, tuple)) for point in value)
    return read_points(value if is_text or is_points else None, str(label), k=k)
