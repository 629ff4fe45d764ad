"""The baseline that carries an annotated shape into another patient."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from ssmsam.volume.volume import Volume
from ssmsam_research.methods.carried import CarriedShape
from ssmsam_research.metrics import dice
from ssmsam_research.protocols.fewshot_task import Support, Task

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def patient(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """A textured body (slices, rows, columns) and an organ in it, both moved along the body."""
    rng = np.random.default_rng(4)
    z, y, x = np.mgrid[:40, :36, :40]
    inside = ((y - 18) / 15) ** 2 + ((x - 20) / 17) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.standard_normal(inside.shape), 2.5)
    organ = ((z - 18) / 8) ** 2 + ((y - 16) / 6) ** 2 + ((x - 26) / 6) ** 2 < 1
    image = np.where(inside, 100 + 30 * texture / texture.std(), 0.0)
    image[organ] = 220
    return np.roll(image, shift, axis=0).astype(np.float32), np.roll(organ, shift, axis=0)


@pytest.fixture(scope="module")
def support() -> Support:
    image, organ = patient(0)
    return Support.from_labels(Volume(image, AFFINE, modality="MR"), organ, [11, 15, 18, 21, 25])


@pytest.mark.parametrize("turned", [(), (0,), (1, 2)])
def test_a_shape_is_carried_into_a_patient_however_it_is_stored(support: Support, turned: tuple[int, ...]) -> None:
    image, organ = patient(5)
    affine = AFFINE.copy()
    for axis in turned:
        column = 2 - axis
        affine[:3, 3] += affine[:3, column] * (image.shape[axis] - 1)
        affine[:3, column] *= -1
    query = Volume(np.flip(image, turned).copy(), affine, modality="MR")
    found = CarriedShape().segment(Task((support,), query))
    assert dice(found, np.flip(organ, turned)) > 80


def test_several_patients_are_averaged_and_the_query_itself_needs_no_registration(
    support: Support, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("registered")

    monkeypatch.setattr("ssmsam_research.methods.carried.register", fail)
    _, organ = patient(0)
    own = CarriedShape(beyond=0.0).segment(Task((support, support), support.volume))
    assert dice(own[11:26], organ[11:26]) > 90
    with pytest.raises(AssertionError, match="registered"):
        CarriedShape().segment(Task((support,), Volume(*patient(7)[:1], AFFINE, modality="MR")))
