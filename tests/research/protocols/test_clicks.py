import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam_research.labelled_sets import LabelledSet
from ssmsam_research.metrics import dice
from ssmsam_research.protocols.clicks import (
    ClickProtocol,
    chosen_slices,
    click_through,
    run_case,
    summarise_records,
)


def _ball(shape=(12, 40, 48), centre=(6, 20, 24), radius=9):
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return (2.0 * (z - centre[0])) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2


class Thresholder:
    """A plain prompted segmenter: the pixels that look like the ones clicked, or that lie in the box."""

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.calls: list[tuple[int, int]] = []

    def slice_mask(self, index, clicks, box):
        return self.volume_mask(index, clicks, box)[index]

    def volume_mask(self, index, clicks, box):
        self.calls.append((index, len(clicks)))
        if box is not None:
            x0, y0, x1, y1 = box
            mask = np.zeros(self.image.shape, dtype=bool)
            mask[:, y0 : y1 + 1, x0 : x1 + 1] = True
            return mask
        inside = {self.image[index, c.y, c.x] for c in clicks if c.positive}
        return np.isin(self.image, list(inside))


def test_slices_are_taken_from_the_extent_and_always_hold_the_target():
    truth = np.zeros((30, 4, 4), dtype=bool)
    truth[5:26, 1, 1] = True
    truth[14:17] = False  # a gap in the middle of the extent
    slices = chosen_slices(truth, (0.0, 0.1, 0.5, 0.9, 1.0))
    assert slices[0] == 5
    assert slices[1] == 7
    assert slices[2] in (13, 17)
    assert slices[-2:] == [23, 25]
    assert all(truth[index].any() for index in slices)


def test_a_thin_target_gives_each_of_its_slices_once():
    truth = np.zeros((9, 4, 4), dtype=bool)
    truth[4:6, 1, 1] = True
    assert chosen_slices(truth, (0.1, 0.3, 0.5, 0.7, 0.9)) == [4, 5]


def test_clicking_through_stops_when_perfect_and_fills_up_the_scores():
    truth = _ball()[6]
    seen = []

    def two_clicks_needed(clicks):
        seen.append(len(clicks))
        return truth if len(clicks) >= 2 else np.zeros_like(truth)

    scores, clicks = click_through(truth, two_clicks_needed, limit=5)
    assert scores == [0.0, 100.0, 100.0, 100.0, 100.0]
    assert seen == [1, 2]
    assert len(clicks) == 2


def test_clicking_through_ends_at_the_limit():
    truth = _ball()[6]
    scores, clicks = click_through(truth, lambda clicks: np.zeros_like(truth), limit=4)
    assert scores == [0.0] * 4
    assert len(clicks) == 4


def _two_organ_case():
    labels = np.zeros((12, 40, 48), dtype=int)
    labels[_ball(centre=(6, 12, 12), radius=8)] = 1
    labels[_ball(centre=(5, 28, 36), radius=6)] = 2
    image = labels.astype(float)
    image[labels == 2] += np.indices(labels.shape)[2][labels == 2] >= 36  # two halves of different brightness
    return Volume(image, np.diag([1.0, 1.0, 2.0, 1.0])), labels


def test_a_case_is_measured_on_slices_and_in_the_volume():
    volume, labels = _two_organ_case()
    protocol = ClickProtocol()
    names = LabelledSet("toy", (), {1: "round organ"})
    records = run_case(volume, labels, names, lambda: Thresholder(volume.array), protocol)
    assert {record["label"] for record in records} == {"round organ", "label 2"}
    of_volume = {record["label"]: record for record in records if record["task"] == "volume"}
    assert of_volume["round organ"]["dice"]["1 click"] == 100.0
    # one click finds one half of the second organ, the second click the other
    assert 50 < of_volume["label 2"]["dice"]["1 click"] < 90
    assert of_volume["label 2"]["dice"]["3 clicks"] == 100.0
    assert of_volume["label 2"]["slice"] == 5
    box = np.zeros(labels.shape, dtype=bool)
    box[:, 22:35, 30:43] = True  # the box of the widest slice on every slice
    assert of_volume["label 2"]["dice"]["box"] == pytest.approx(dice(box, labels == 2))


def test_the_summary_averages_slices_then_cases_then_labels():
    def record(case, label, score, needed):
        return {"task": "slice", "case": case, "label": label, "dice": {"1 click": score}, "clicks_to_good": needed}

    records = [record("a", "liver", 80.0, 1)] * 3 + [record("b", "liver", 40.0, None), record("a", "spleen", 20.0, 4)]
    summary = summarise_records(records, ClickProtocol(slice_clicks=(1, 10)))
    one = summary["slice"]["1 click"]
    assert one["per_label"]["liver"]["mean"] == 60.0
    assert one["per_label"]["liver"]["n"] == 2
    assert one["mean_dice"] == 40.0
    assert summary["clicks_to_good"]["mean"] == pytest.approx((1 + 1 + 1 + 10 + 4) / 5)
    assert summary["clicks_to_good"]["not_reached_percent"] == 20.0
