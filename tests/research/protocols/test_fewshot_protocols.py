from dataclasses import replace

import numpy as np
import pytest

from ssmsam.volume.volume import Volume
from ssmsam.volume.writing import write_volume
from ssmsam_research.labelled_sets import LabelledSet, open_set
from ssmsam_research.methods.registry import METHODS
from ssmsam_research.model_choice import PromptedModel
from ssmsam_research.protocols.complete import IN_RANGE, OTHER, CompleteProtocol
from ssmsam_research.protocols.crosspatient import (
    KNOWN_EXTENT,
    CrossPatientProtocol,
    SupportPool,
    known_extent,
    support_set,
)

UP, DOWN = np.diag([1.0, 1.0, 4.0, 1.0]), np.diag([1.0, 1.0, -4.0, 1.0])
SET = LabelledSet("set", (), {1: "block"})


def block(shape=(16, 24, 24), slices=range(3, 12)):
    labels = np.zeros(shape, dtype=np.int32)
    labels[list(slices), 6:18, 6:18] = 1
    return labels


def image_of(labels, affine=UP):
    noise = np.random.default_rng(int(labels.sum())).normal(0, 5, labels.shape)
    return Volume((labels * 60 + noise).astype(np.float32), affine, "MR")


class Answer:
    """A method that answers a given mask."""

    def __init__(self, mask):
        self.mask = mask

    def segment(self, task, progress=None):
        return self.mask


def test_complete_scores_the_other_slices_of_the_whole_volume():
    labels = block()
    protocol = CompleteProtocol(slices=(3,), placements=("ends given", "ends unknown"))
    given, unknown = protocol.episodes(image_of(labels), labels, SET)
    assert given.notes["annotated"] == [3, 7, 11] and given.task.extent == range(3, 12)
    assert unknown.notes["annotated"] == [4, 7, 10] and unknown.task.extent is None
    assert np.flatnonzero(~unknown.scored[OTHER]).tolist() == [4, 7, 10]
    assert np.flatnonzero(unknown.scored[IN_RANGE]).tolist() == [3, 5, 6, 8, 9, 11]

    flooded = np.repeat(labels[7:8] > 0, 16, axis=0)  # right in the extent, wrong on the 7 slices beyond
    scores = unknown.measure(Answer(flooded))["dice"]
    assert scores[IN_RANGE] == 100
    assert scores[OTHER] == pytest.approx(100 * 2 * 6 / (13 + 6), abs=1e-3)
    assert given.measure(Answer(flooded))["dice"][OTHER] == 100  # the extent is known, so it is used
    assert unknown.measure(Answer(np.zeros_like(flooded)))["dice"][OTHER] == 0


def test_an_organ_with_no_slice_left_is_counted_and_told():
    labels = block(slices=[5, 6])
    (episode,) = CompleteProtocol(slices=(3,), placements=("ends unknown",)).episodes(image_of(labels), labels, SET)
    empty = episode.measure(Answer(np.zeros(labels.shape, dtype=bool)))
    assert empty["nothing_left"] and empty["dice"][OTHER] == 100
    assert episode.measure(Answer(np.ones(labels.shape, dtype=bool)))["dice"][OTHER] == 0


def test_every_part_of_the_extent_gets_the_middle_of_the_same_part_of_the_support():
    shown = block(slices=range(2, 14)) > 0
    task = known_extent(image_of(block()), range(3, 12), [(image_of(block()), shown)], 3)
    assert [(part.slices, part.support_slices) for part in task.parts] == [
        (range(3, 6), (4,)),
        (range(6, 9), (8,)),
        (range(9, 12), (12,)),
    ]
    assert sorted(task.supports[0].masks) == [4, 8, 12]
    assert [[one.index for one in support] for _, support in task.matched()] == [[4], [8], [12]]


def test_a_support_stored_from_head_to_feet_is_matched_the_other_way_round():
    shown = block(slices=range(2, 14)) > 0
    task = known_extent(image_of(block()), range(3, 12), [(image_of(block(), DOWN), shown)], 3)
    assert [part.support_slices for part in task.parts] == [(12,), (8,), (4,)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    for number, name in enumerate("abcdef"):
        labels = block(slices=range(2 + number, 11 + number % 3))
        if name == "f":
            labels[5, :3, :3] = 2
        for kind, volume in (("images", image_of(labels)), ("labels", Volume(labels.astype(np.uint8), UP))):
            (folder / kind).mkdir(exist_ok=True)
            write_volume(volume, folder / kind / f"{name}.nii.gz")
    return folder


def test_supports_are_chosen_by_rule_and_never_the_query(folder):
    everyone, queries = open_set(folder, label_names={1: "block"}), open_set(folder, only=["b"])
    left = support_set(everyone, queries, validation=["a"])
    assert [case.name for case in left.cases] == ["c", "d", "e", "f"]
    pool = SupportPool.open(left)
    names = [[case.name for case in group] for group in pool.groups("block", queries.cases[0], supports=2, shots=2)]
    assert sorted(name for group in names for name in group) == ["c", "d", "e", "f"]
    assert names == [[c.name for c in g] for g in pool.groups("block", queries.cases[0], supports=2, shots=2)]
    assert pool.groups("block", queries.cases[0], supports=3, shots=5) == []
    assert len(pool.groups("block", queries.cases[0], supports=9, shots=2)) == 2

    all_queries = SupportPool.open(support_set(everyone, everyone, validation=[]))
    for query in everyone.cases:
        chosen = all_queries.groups("block", query, supports=5, shots=1)
        assert query not in [case for group in chosen for case in group]


def arrays_behind(value, seen=None):
    """Every array that can be reached from an object, through attributes, containers and the bases of views."""
    seen = {} if seen is None else seen
    if id(value) in seen:
        return
    seen[id(value)] = value
    if isinstance(value, np.ndarray):
        yield value
        yield from arrays_behind(value.base, seen)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from arrays_behind(inner, seen)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from arrays_behind(inner, seen)
    elif hasattr(value, "__dict__"):
        yield from arrays_behind(vars(value), seen)


def episodes_of(folder, labels=None):
    """The episodes of both protocols on case "a", with other labels of it when given."""
    everyone = open_set(folder, label_names={1: "block"})
    case = everyone.cases[0]
    volume, truth = case.read()
    labels = truth if labels is None else labels
    pool = SupportPool.open(support_set(everyone, open_set(folder, only=["a"]), validation=[]))
    crossing = CrossPatientProtocol(supports=1, slices=(2,))
    yield from CompleteProtocol(slices=(3,)).episodes(volume, labels, everyone)
    yield from crossing.episodes(case, volume, labels, everyone, pool)


def test_no_array_that_a_method_can_reach_leads_to_the_truth(folder):
    for episode in episodes_of(folder):
        reachable = list(arrays_behind(episode.task))
        assert len(reachable) > 2
        assert not any(np.shares_memory(array, episode.truth) for array in reachable)
        masks = [array for array in reachable if array.dtype == bool]
        assert all(mask.ndim == 2 for mask in masks)


DEFAULT = [name for name, spec in METHODS.items() if spec.by_default]
"""Others are the same with other steps, or told of the query by clicks."""
SLOW = ("unet", "fewshot", "ssm", "ssm_prompted")
"""On all settings in the slow tests; else those without gradient steps on the first setting of each protocol."""


@pytest.fixture(scope="module")
def model(random_small):
    return PromptedModel.load(random_small)


@pytest.mark.parametrize(
    ("name", "everywhere"),
    [(name, name not in SLOW) for name in DEFAULT if name not in SLOW[:3]]
    + [pytest.param(name, True, marks=pytest.mark.slow) for name in SLOW],
)
def test_garbage_in_place_of_the_querys_labels_changes_no_prediction(folder, model, name, everywhere):
    """Only what the protocol gives away stays: annotated slices, and the extent where it is known."""
    _, truth = open_set(folder).cases[0].read()
    spec, episodes = METHODS[name], list(episodes_of(folder))
    if spec.settings.get("steps"):
        spec = replace(spec, settings={**spec.settings, "steps": 1})
    assert KNOWN_EXTENT in {episode.setting for episode in episodes}
    firsts = {episode.setting.split(",")[0]: place for place, episode in reversed([*enumerate(episodes)])}
    compared = predictions = 0
    for place, episode in enumerate(episodes):
        if (spec.within and not episode.task.annotated) or not (everywhere or place in firsts.values()):
            continue
        garbage = np.random.default_rng(place).integers(0, 2, truth.shape)
        for index in episode.notes.get("annotated", ()):
            garbage[index] = truth[index]
        first, last = np.flatnonzero(truth.any(axis=(1, 2)))[[0, -1]]
        garbage[:first] = garbage[last + 1 :] = 0  # the extent is what says which slices are annotated
        other = list(episodes_of(folder, garbage))[place]
        assert other.setting == episode.setting and not np.array_equal(other.truth, episode.truth)
        masks = [one.task.finished(spec.build(model).segment(one.task)) for one in (episode, other)]
        assert np.array_equal(*masks), episode.setting
        compared, predictions = compared + 1, predictions + masks[0].any()
    assert compared >= 2 and predictions
