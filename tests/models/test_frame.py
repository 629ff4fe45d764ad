from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ssmsam.models.frame import OUTSIDE, Frame, Window

frames = st.builds(
    Frame,
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    size=st.sampled_from([32, 64, 96]),
    pixel_mm=st.tuples(st.floats(0.3, 8), st.floats(0.3, 8)),
)
points = arrays.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(2)), elements=st.floats(-100, 600))


@given(frames, points)
def test_points_come_back(frame: Frame, xy: np.ndarray) -> None:
    np.testing.assert_allclose(frame.points_to_slice(frame.points_to_input(xy)), xy, atol=1e-6)
    np.testing.assert_allclose(frame.points_to_input(frame.points_to_slice(xy)), xy, atol=1e-6)


@given(frames)
def test_the_slice_fills_the_input_along_its_longer_side(frame: Frame) -> None:
    rows, columns = frame.resized
    assert max(rows, columns) == frame.size
    assert min(rows, columns) >= 1


@given(frames)
def test_pixels_are_square_in_the_input(frame: Frame) -> None:
    rows, columns = frame.resized
    assume(min(rows, columns) > 1)
    for side, pixels, mm in ((frame.height, rows, frame.pixel_mm[0]), (frame.width, columns, frame.pixel_mm[1])):
        assert side * mm == pytest.approx(pixels * frame.input_mm, abs=frame.input_mm)


@given(frames)
def test_pixel_areas_stay_aligned(frame: Frame) -> None:
    """The outer edges of the slice, half a pixel beyond its corner centres, lie on the edges of what it fills."""
    edges = np.array([[-0.5, -0.5], [frame.width - 0.5, frame.height - 0.5]])
    rows, columns = frame.resized
    np.testing.assert_allclose(frame.points_to_input(edges), [[-0.5, -0.5], [columns - 0.5, rows - 0.5]], atol=1e-9)


def centroid(image: torch.Tensor) -> np.ndarray:
    """(x, y) of the mass of (H, W)."""
    mass = image.double()
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in mass.shape), indexing="ij")
    return np.array([float((mass * x).sum() / mass.sum()), float((mass * y).sum() / mass.sum())])


@pytest.mark.parametrize("pixel_mm", [(1.0, 1.0), (3.0, 1.0), (0.8, 2.0)])
@pytest.mark.parametrize(("height", "width"), [(40, 60), (64, 64), (130, 90), (301, 257)])
def test_a_bright_spot_lands_where_its_point_lands(height: int, width: int, pixel_mm: tuple[float, float]) -> None:
    frame = Frame(height, width, 64, pixel_mm)
    spot = np.array([[width // 3, height // 4]])
    image = torch.zeros(1, 1, height, width)
    image[0, 0, spot[0, 1], spot[0, 0]] = 1
    drawn = frame.to_input(image)
    assert drawn.shape == (1, 1, 64, 64)
    # Antialiasing weighs whole pixels, so the centre of mass may move by a fraction of one, never by half.
    np.testing.assert_allclose(centroid(drawn[0, 0]), frame.points_to_input(spot)[0], atol=0.3)


def test_no_shift_on_average() -> None:
    """Over all columns the offsets cancel: a half-pixel shift would stay."""
    frame = Frame(8, 100, 64)
    offsets = []
    for x in range(10, 90):
        image = torch.zeros(1, 1, 8, 100)
        image[..., x] = 1
        offsets.append(centroid(frame.to_input(image)[0, 0])[0] - frame.points_to_input(np.array([[x, 0]]))[0, 0])
    assert abs(np.mean(offsets)) < 0.02


@pytest.mark.parametrize("resolution", [16, 64, 256])
def test_logits_go_back_to_the_place_of_the_slice(resolution: int) -> None:
    frame = Frame(50, 30, 64, (1.0, 2.0))
    x, y = 11, 33
    at = frame.points_to_input(np.array([[x, y]]))[0]
    rows, columns = np.mgrid[:resolution, :resolution] + 0.5
    step = 64 / resolution
    hill = np.exp(-(((columns * step - 0.5 - at[0]) / 6) ** 2) - ((rows * step - 0.5 - at[1]) / 6) ** 2)
    back = frame.logits_to_slice(torch.from_numpy(hill)[None, None])
    assert back.shape == (1, 1, 50, 30)
    np.testing.assert_allclose(centroid(back[0, 0]), (x, y), atol=0.4)


@given(frames)
def test_outside_the_slice_the_input_is_zero(frame: Frame) -> None:
    drawn = frame.to_input(torch.ones(1, 2, frame.height, frame.width))
    rows, columns = frame.resized
    assert torch.allclose(drawn[..., :rows, :columns], torch.ones(()), atol=1e-5)
    assert drawn.sum() == pytest.approx(2 * rows * columns, rel=1e-4)


def test_a_slice_of_the_input_size_is_not_touched() -> None:
    image = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    assert torch.equal(Frame(64, 64, 64).to_input(image), image.float())


@pytest.mark.parametrize("shape", [(1, 3, 10, 11), (3, 10, 10)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected images"):
        Frame(10, 10, 64).to_input(torch.zeros(shape))


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
def test_a_mirrored_slice_in_a_mirroring_frame_is_the_same_input(mirrored: tuple[bool, bool]) -> None:
    image = torch.rand(1, 1, 30, 50)
    plain, turning = Frame(30, 50, 64), Frame(30, 50, 64, mirrored=mirrored)
    stored = turning.mirror(image)
    torch.testing.assert_close(turning.to_input(stored), plain.to_input(image))
    torch.testing.assert_close(
        turning.logits_to_slice(plain.to_input(image)), turning.mirror(plain.logits_to_slice(plain.to_input(image)))
    )
    xy = np.array([[3.0, 7.0], [41.0, 20.0]])
    moved = np.where(mirrored[::-1], np.array([49.0, 29.0]) - xy, xy)
    np.testing.assert_allclose(turning.points_to_input(moved), plain.points_to_input(xy))
    np.testing.assert_allclose(turning.points_to_slice(turning.points_to_input(xy)), xy)
    x0, y0, x1, y1 = turning.box_to_input((3.0, 7.0, 41.0, 20.0)).ravel()
    assert x0 < x1
    assert y0 < y1


WINDOW = Window(y=5, x=12, height=20, width=24)


@pytest.mark.parametrize("mirrored", [(False, False), (True, False), (False, True), (True, True)])
def test_a_window_shows_what_the_slice_cut_to_it_would(mirrored: tuple[bool, bool]) -> None:
    image = torch.rand(1, 1, 30, 50)
    inside = image[..., 5:25, 12:36]
    window = Frame(30, 50, 64, (1.0, 2.0), mirrored, WINDOW)
    cut = Frame(20, 24, 64, (1.0, 2.0), mirrored)
    torch.testing.assert_close(window.to_input(image), cut.to_input(inside))
    assert (window.input_mm, window.scale) == (cut.input_mm, cut.scale)
    xy = np.array([[14.0, 7.0], [30.0, 20.0]])
    np.testing.assert_allclose(window.points_to_input(xy), cut.points_to_input(xy - (12, 5)))
    np.testing.assert_allclose(window.points_to_slice(window.points_to_input(xy)), xy)
    logits = torch.rand(1, 2, 32, 32)
    back = window.logits_to_slice(logits)
    torch.testing.assert_close(back[(..., *WINDOW.pixels)], cut.logits_to_slice(logits))
    back[(..., *WINDOW.pixels)] = OUTSIDE
    assert (back == OUTSIDE).all()


def test_a_window_holds_the_points_on_its_pixels() -> None:
    assert WINDOW.holds(np.array([[12, 5], [35, 24], [20, 10]]))
    assert WINDOW.holds(np.zeros((0, 2)))
    for point in ((11, 5), (12, 4), (36, 24), (35, 25)):
        assert not WINDOW.holds(np.array([[20, 10], point]))
