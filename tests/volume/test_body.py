"""Where the body is on a slice."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmsam.volume.body import body_centre, body_centres

HEIGHT, WIDTH = 96, 128


def a_slice(x: float, y: float, *, width: float = 60, height: float = 40) -> np.ndarray:
    """An ellipse of tissue in air."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = ((columns - x) / (width / 2)) ** 2 + ((rows - y) / (height / 2)) ** 2 <= 1
    return np.where(inside, 0.5, 0.0)


@given(x=st.floats(40, 88), y=st.floats(30, 66))
@settings(max_examples=25, deadline=None)
def test_the_centre_follows_the_body(x: float, y: float) -> None:
    assert np.allclose(body_centre(a_slice(x, y)), (x, y), atol=1.5)


def test_a_thin_table_and_noise_do_not_count() -> None:
    image = a_slice(64, 40)
    image[80:83, 10:118] = 0.9
    image[np.random.default_rng(0).random(image.shape) > 0.97] = 1.0
    assert np.allclose(body_centre(image), (64, 40), atol=1.5)


def test_two_legs_are_one_body() -> None:
    legs = np.maximum(a_slice(40, 48, width=30, height=30), a_slice(88, 48, width=26, height=26))
    assert np.allclose(body_centre(legs), (63.5, 48), atol=1.5)


def test_without_tissue_it_is_the_image_s_own_centre() -> None:
    assert body_centre(np.zeros((HEIGHT, WIDTH))) == ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
    assert body_centre(np.ones((HEIGHT, WIDTH))) == ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)


def test_one_odd_slice_moves_nothing_and_slices_in_between_are_interpolated() -> None:
    slices = [a_slice(64, 40 + 0.2 * n) for n in range(41)]
    slices[20] = a_slice(90, 60, width=40, height=20)
    found = body_centres(slices.__getitem__, len(slices), slice_mm=5.0)
    assert np.allclose(found[:, 0], 64, atol=1.5)
    assert np.allclose(found[:, 1], 40 + 0.2 * np.arange(41), atol=2.5)


def test_a_volume_of_one_slice() -> None:
    assert np.allclose(body_centres(lambda index: a_slice(50, 44), 1, slice_mm=8.0), [(50, 44)], atol=1.5)
