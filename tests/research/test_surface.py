import numpy as np
import pytest

from ssmsam_research.metrics import surface_distances

SPACING = (3.0, 1.0, 2.0)


def plate(row, shape=(6, 20, 10)):
    """One row thick, through all slices and columns."""
    mask = np.zeros(shape, dtype=bool)
    mask[:, row] = True
    return mask


def test_parallel_plates_are_as_far_apart_as_their_rows_in_millimetres():
    assert surface_distances(plate(4), plate(9), SPACING) == pytest.approx({"assd_mm": 5.0, "hd95_mm": 5.0})
    along_slices = [mask.transpose(1, 0, 2) for mask in (plate(4), plate(9))]
    assert surface_distances(*along_slices, SPACING)["assd_mm"] == pytest.approx(15.0)


def test_equal_masks_have_no_distance():
    assert surface_distances(plate(4), plate(4), SPACING) == {"assd_mm": 0.0, "hd95_mm": 0.0}


def test_empty_masks_follow_the_rule():
    nothing = np.zeros((6, 20, 10), dtype=bool)
    assert surface_distances(nothing, nothing, SPACING)["assd_mm"] == 0
    diagonal = np.sqrt(18.0**2 + 20.0**2 + 20.0**2)
    for pair in ((plate(3), nothing), (nothing, plate(3))):
        assert surface_distances(*pair, SPACING) == pytest.approx({"assd_mm": diagonal, "hd95_mm": diagonal})


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        surface_distances(plate(3), np.zeros((1, 2, 3)), SPACING)
