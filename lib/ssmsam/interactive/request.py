"""What a client asked for: clicks and boxes of one object, sorted into slices and checked against the volume."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssmsam.interactive.strokes import lasso_mask, middle
from ssmsam.models.prompt_decoder import SlicePrompt, Stroke
from ssmsam.volume.geometry import STORED_SLICES, Plane
from ssmsam.volume.volume import Grid

ANONYMOUS = "anonymous"
"""The client id of clients that send none."""

Box = tuple[np.ndarray, np.ndarray]
"""The lowest and the highest corner of a box, (3,) each as [i, j, k]; k is NaN where the box does not say it."""


class InvalidPrompt(ValueError):
    """The prompts of a request cannot be used as they are. The message tells the user what to do."""


@dataclass(frozen=True, eq=False)
class PromptRequest:
    """The prompts of one object, all of them, as viewers send them on every click.

    Slice numbers count along the plane of work. With ``dimension`` 2 only the prompts of the current slice are
    kept; with 3 all of them.
    """

    dimension: int
    slices: Mapping[int, SlicePrompt]
    """Slice number -> its prompts. Never holds a slice without any."""
    current: int | None = None
    """The slice to segment (2), or the slice of the newest prompt (3). None when nothing says it."""
    label: str = ""
    client_id: str = ANONYMOUS
    reset_state: bool = False
    limits: tuple[int, int] | None = None
    """First and last slice that propagation may reach, from ``z_range`` and the box's depth."""
    propagate: bool = True
    max_mm: float | None = None
    """How far propagation may go from a prompted slice."""

    @property
    def empty(self) -> bool:
        """Whether there is no prompt at all."""
        return not self.slices

    @property
    def negative_only(self) -> bool:
        """Whether prompts only say where the object is not."""
        return bool(self.slices) and all(prompt.empty for prompt in self.slices.values())

    @classmethod
    def of(
        cls,
        *,
        grid: Grid,
        plane: Plane = STORED_SLICES,
        dimension: int,
        positive: npt.ArrayLike = (),
        negative: npt.ArrayLike = (),
        newest: npt.ArrayLike = (),
        box: Box | None = None,
        scribbles: Sequence[Scribble] = (),
        lassos: Sequence[npt.ArrayLike] = (),
        slice: int | None = None,
        unusable_slice: str = "",
        z_range: tuple[int, int] | None = None,
        max_mm: float = 0.0,
        label: str = "",
        client_id: str = ANONYMOUS,
        reset_state: bool = False,
        propagate: bool = True,
    ) -> PromptRequest:
        """Sort prompts into the slices of the plane of work.

        Args:
            grid: the volume's.
            plane: the plane of work.
            dimension: 2 for one slice, 3 for the volume.
            positive, negative: points (N, 3), voxel indices [i, j, k] = (column, row, slice of the stored image).
            newest: the newest point (3,), where the client says which one it is.
            box: its lowest and highest corner.
            scribbles: lines, each on one slice.
            lassos: closed lines (N, 3) round the object, [i, j, k], each on a slice of its own.
            slice: the stored slice that the client is on.
            unusable_slice: what the client said instead of such a number.
            z_range: first and last slice of the plane of work that propagation may reach.
            max_mm: how far from a prompted slice propagation may go, in millimetres; 0 for no limit.

        Raises:
            InvalidPrompt: for prompts outside the volume, or contradictory ones.
        """
        if dimension not in (2, 3):
            raise ValueError(f"dimension is 2 or 3, got {dimension!r}")
        lines, outlines = _scribbled(scribbles, grid, plane), _outlined(lassos, grid, plane)
        inside = np.concatenate([_points(positive), _middles(lines, plane, positive=True)])
        outside = np.concatenate([_points(negative), _middles(lines, plane, positive=False)])
        last = _points(newest)
        for name, points in (("foreground", inside), ("background", outside), ("current_point", last)):
            _check_inside(points, name, grid)
        inside, outside = _distinct(inside), _distinct(outside)
        _check_agree(inside, outside)
        rectangle, depth = _box(box, grid, plane)
        count = plane.count(grid)
        z_range = _within(z_range, count)
        signs = plane.split(inside), plane.split(outside)
        current = _current_slice(
            # `slice` numbers stored slices; in another plane of work the points alone say where the user is
            slice if plane.axis == 0 else None,
            newest=int(plane.split(last)[0][0]) if len(last) else None,
            clicked=[*(int(indices[-1]) for indices, _ in signs if len(indices)), *list(outlines)[-1:]],
            boxed=rectangle is not None,
            depth=depth,
            unusable=f"slice {unusable_slice} is not one of this volume's slices 0 to {count - 1}"
            * bool(unusable_slice),
            count=count,
            dimension=dimension,
        )
        drawn = {int(index) for indices, _ in signs for index in indices} | outlines.keys()
        boxed = _boxed_slices(drawn, current, depth, dimension) if rectangle else set()
        prompts = {}
        for index in sorted(drawn | boxed):
            on, off = (xy[indices == index] for indices, xy in signs)
            outline = outlines.get(index, ())
            round_it = rectangle if index in boxed else _round(outline) if outline else None
            prompts[index] = SlicePrompt(
                positive=on, negative=off, box=round_it, strokes=tuple(lines.get(index, ())), outline=outline
            )
        return cls(
            dimension=dimension,
            slices={index: prompt for index, prompt in prompts.items() if dimension == 3 or index == current},
            current=current,
            label=label,
            client_id=client_id,
            reset_state=reset_state,
            limits=_intersect(z_range, depth),
            propagate=propagate,
            max_mm=max_mm if max_mm > 0 else None,
        )


@dataclass(frozen=True, eq=False)
class Scribble:
    """A line through the object, or where it is not: ``points`` (N, 3) as [i, j, k]."""

    points: np.ndarray
    positive: bool = True


Outline = tuple[tuple[float, float], ...]
"""A closed line of (x, y) on a slice."""


def _scribbled(scribbles: Sequence[Scribble], grid: Grid, plane: Plane) -> dict[int, list[Stroke]]:
    """Scribbles by slice of the plane of work. Raises InvalidPrompt for those outside, or on several slices."""
    lines: dict[int, list[Stroke]] = {}
    for number, scribble in enumerate(scribbles, start=1):
        index, xy = _on_one_slice(scribble.points, f"scribble {number}", grid, plane)
        lines.setdefault(index, []).append(Stroke(xy, scribble.positive))
    return lines


def _outlined(lassos: Sequence[npt.ArrayLike], grid: Grid, plane: Plane) -> dict[int, Outline]:
    """Lassos by slice of the plane of work. Raises InvalidPrompt, also for those that enclose nothing."""
    outlines: dict[int, Outline] = {}
    for number, lasso in enumerate(lassos, start=1):
        index, xy = _on_one_slice(_drawn_over_the_edge(lasso, grid, plane), f"lasso {number}", grid, plane)
        if index in outlines:
            raise InvalidPrompt(f"there are two lassos on slice {index}: draw one line round the whole object")
        box = _round(xy)
        flat = len(xy) < 3 or box[2] - box[0] < 1 or box[3] - box[1] < 1
        if flat or not lasso_mask(xy, plane.slice_shape(grid)).any():
            raise InvalidPrompt(f"lasso {number} holds no pixel: draw it round the object, with 3 points or more")
        outlines[index] = xy
    return outlines


def _middles(scribbles: Mapping[int, list[Stroke]], plane: Plane, *, positive: bool) -> np.ndarray:
    """The middle of each scribble of one sign, (N, 3) as [i, j, k], at a pixel."""
    found = [
        plane.join(np.array([index]), np.rint(middle(np.array(stroke.xy))))
        for index, strokes in scribbles.items()
        for stroke in strokes
        if stroke.positive is positive
    ]
    return np.concatenate([_points(()), *found])


def _on_one_slice(points: np.ndarray, name: str, grid: Grid, plane: Plane) -> tuple[int, Outline]:
    if not len(points):
        raise InvalidPrompt(f"{name} has no points")
    _check_inside(points, name, grid)
    indices, xy = plane.split(points)
    if len(numbers := sorted(set(indices.tolist()))) > 1:
        raise InvalidPrompt(f"{name} lies on the slices {numbers[0]} to {numbers[-1]}: draw a line on one slice")
    return int(indices[0]), tuple((float(x), float(y)) for x, y in xy)


def _drawn_over_the_edge(lasso: npt.ArrayLike, grid: Grid, plane: Plane) -> np.ndarray:
    """A lasso that ends at the edge of its slice."""
    points, last = _points(lasso), np.array(grid.shape[::-1]) - 1
    index, _ = plane.split(points)
    _, xy = plane.split(np.clip(points, 0, last))
    return plane.join(index, xy)


def _round(outline: Outline) -> tuple[float, float, float, float]:
    xs, ys = zip(*outline, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _current_slice(
    slice: int | None,
    *,
    newest: int | None,
    clicked: Sequence[int],
    boxed: bool,
    depth: tuple[int, int] | None,
    unusable: str,
    count: int,
    dimension: int,
) -> int | None:
    """The slice that the user works on: ``slice``, else the newest point's, else the middle of the box. ``unusable``
    says what is wrong with a ``slice`` that is no number of one. Raises InvalidPrompt."""
    if depth is not None and not clicked:
        first, last = depth
        # a viewer that has only a box sends its slice position in millimetres instead of a number
        return slice if slice is not None and first <= slice <= last else (first + last) // 2
    known = [index for index in (slice, newest, *clicked) if index is not None]
    if known or (boxed and count == 1):
        return known[0] if known else 0
    if boxed:
        raise InvalidPrompt(
            f"{f'{unusable}, and the ' if unusable else 'the '}box does not say which slice it is on: "
            "send 'slice', or a roi of six numbers [i0, i1, j0, j1, k0, k1]"
        )
    if unusable and dimension == 2:
        raise InvalidPrompt(f"{unusable}: send the number of the slice, or place a point on it")
    return None


def _boxed_slices(
    clicked: Collection[int], current: int | None, depth: tuple[int, int] | None, dimension: int
) -> set[int]:
    """The slices on which a box counts: in a volume the middle one of its depth and the clicked ones inside it, not
    every slice that it crosses, for elsewhere an organ is smaller than its box. Without depth it is the current one."""
    first, last = depth or (current, current)
    if first is None or last is None:
        return set()
    inside = {index for index in clicked if first <= index <= last}
    if depth and dimension == 3:
        return {(first + last) // 2, *inside}
    return {current} if current is not None and first <= current <= last else set()


def _points(points: npt.ArrayLike) -> np.ndarray:
    return np.asarray(points, dtype=np.float64).reshape(-1, 3)


def _check_inside(points: np.ndarray, name: str, grid: Grid) -> None:
    for point in points[~grid.contains(points)]:
        size = list(grid.shape[::-1])
        raise InvalidPrompt(
            f"{name} point {[round(float(x), 1) for x in point]} is outside the volume of {size} voxels "
            "[i, j, k] (column, row, slice, counted from 0): click inside the image, and send voxel indices, "
            "not millimetres"
        )


def _distinct(points: np.ndarray) -> np.ndarray:
    """Points without those that repeat a voxel, order kept."""
    first = {tuple(np.rint(point)): point for point in points[::-1]}
    return np.array(list(first.values())[::-1]).reshape(-1, 3)


def _check_agree(positive: np.ndarray, negative: np.ndarray) -> None:
    both = {tuple(np.rint(point)) for point in positive} & {tuple(np.rint(point)) for point in negative}
    for voxel in sorted(both):
        raise InvalidPrompt(
            f"voxel {[int(x) for x in voxel]} [i, j, k] is both a foreground and a background point: delete one of them"
        )


def _box(
    roi: Box | None, grid: Grid, plane: Plane
) -> tuple[tuple[float, float, float, float] | None, tuple[int, int] | None]:
    """A box's rectangle in the slices of the plane (x0, y0, x1, y1), and its first and last slice, inside the grid."""
    if roi is None:
        return None, None
    last = np.array(grid.shape[::-1], dtype=np.float64) - 1
    has_depth = plane.axis != 0 or np.isfinite(roi[0][2])
    low, high = np.where(np.isnan(roi[0]), 0, roi[0]), np.where(np.isnan(roi[1]), last, roi[1])
    if (np.rint(high) < 0).any() or (np.rint(low) > last).any():
        raise InvalidPrompt(
            f"the box from {low.tolist()} to {high.tolist()} [i, j, k] is outside the volume of "
            f"{list(grid.shape[::-1])} voxels: draw it inside the image"
        )
    index, xy = plane.split(np.clip([low, high], 0, last))
    if (xy[1] - xy[0] < 1).any():
        width, height = (xy[1] - xy[0] + 1).round(1).tolist()
        raise InvalidPrompt(f"the box is only {width} x {height} pixels: draw it round the whole organ")
    box = float(xy[0, 0]), float(xy[0, 1]), float(xy[1, 0]), float(xy[1, 1])
    return box, ((int(index[0]), int(index[1])) if has_depth else None)


def _within(span: tuple[int, int] | None, count: int) -> tuple[int, int] | None:
    if span is None:
        return None
    if span[1] < 0 or span[0] >= count:
        raise InvalidPrompt(f"z_range {list(span)} has no slice of this volume, which has slices 0 to {count - 1}")
    return max(span[0], 0), min(span[1], count - 1)


def _intersect(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    if one is None or other is None:
        return one or other
    first, last = max(one[0], other[0]), min(one[1], other[1])
    if first > last:
        raise InvalidPrompt(f"z_range {list(one)} and the box's slices {list(other)} have no slice in common")
    return first, last
