"""Acquisition functions: which slices to annotate next. Each looks at a :class:`VolumeState` alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ssmsam.active.expected_gain import Gains
from ssmsam.active.volume_state import ANY, Choice, Forecast, Reason, VolumeState, in_words, numbers_of

Rule = Callable[[VolumeState, int, Sequence[str], np.random.Generator], list[Choice]]
"""``rule(state, k, labels, rng)`` chooses slices to annotate next.

Args:
    state: What is known of the volume.
    k: At most so many slices.
    labels: For these; without any, for whichever label the user draws.
    rng: Of the rules that draw at random.

Returns:
    The most wanted slice first; none when nothing is left.
"""


def random(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
    """Any slice that is not annotated."""
    left = state.left(labels)
    drawn = rng.permutation(left)[:k].tolist() if left else []
    return [_for_all(state, index, labels, Reason(f"slice {index} was drawn at random")) for index in drawn]


def foreground_random(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
    """Any slice that seems to show the label, each label in its turn; any slice at all where nothing is known of it."""
    queues = {}
    for label in labels:
        drawn = rng.permutation([i for i in expected_slices(state, label) if i not in state.known(label)]).tolist()
        sentence = "slice {} was drawn at random from those that seem to show {}"
        queues[label] = [Choice(i, {label: Reason(sentence.format(i, label))}) for i in drawn]
        queues[label] = queues[label] or random(state, k, [label], rng)
    return _in_turn(queues, k) if labels else random(state, k, labels, rng)


def representative(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
    """k-centre greedy (Sener and Savarese, 2018): the slice least like those annotated or chosen so far, beginning with
    the most typical one. Slices that are not embedded are left out; evenly spaced ones are chosen where too few are.

    Example:
        >>> state = VolumeState(count=9, slice_mm=5.0, annotated={"liver": {4: True}})
        >>> [one.index for one in representative(state, 3, ["liver"], np.random.default_rng(0))]
        [1, 3, 7]
    """
    left = [index for index in state.left(labels) if index in state.descriptors]
    if len(left) <= k:
        return spaced(state, k, labels)
    vectors = np.stack([state.descriptors[index] for index in left])
    centres = [state.descriptors[index] for index in _annotated(state, labels) if index in state.descriptors]
    chosen: list[Choice] = []
    if not centres:
        typical = int((vectors @ vectors.mean(axis=0)).argmax())
        sentence = f"slice {left[typical]} is the most typical one of this volume"
        chosen.append(_for_all(state, left[typical], labels, Reason(sentence)))
        centres = [vectors[typical]]
    nearest = 1 - (vectors @ np.stack(centres).T).max(axis=1)
    while len(chosen) < k:
        nearest[[left.index(one.index) for one in chosen]] = -1
        best = int(nearest.argmax())
        away = float(nearest[best])
        sentence = f"slice {left[best]} looks least like those annotated or chosen so far"
        reason = Reason(sentence, {"look_distance": round(away, 4)})
        chosen.append(_for_all(state, left[best], labels, reason, gain=away))
        nearest = np.minimum(nearest, 1 - vectors @ vectors[best])
    return chosen


def spaced(state: VolumeState, k: int, labels: Sequence[str]) -> list[Choice]:
    """The middle slices of k equal parts of the volume, or what is left nearest to them."""
    left = state.left(labels)
    chosen: list[Choice] = []
    for part in range(min(k, len(left))):
        middle = (part + 0.5) * state.count / k - 0.5
        index = min(left, key=lambda one: (abs(one - middle), one))
        left.remove(index)
        sentence = f"slice {index} is one of several spread evenly: the volume is not embedded yet"
        chosen.append(_for_all(state, index, labels, Reason(sentence)))
    return chosen


def uncertainty(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
    """The slices whose masks are least sure of themselves, each label in its turn; representative ones for labels
    without a forecast."""
    queues = {
        label: _least_sure(state, label) if label in state.forecasts else representative(state, k, [label], rng)
        for label in labels
    }
    return _in_turn(queues, k) if labels else representative(state, k, labels, rng)


def next_slices(state: VolumeState, k: int, labels: Sequence[str], rng: np.random.Generator) -> list[Choice]:
    """The slices of the largest expected error reduction, on them and around them, each label in its turn.

    Where most is expected to be wrong about an end of the label, a person is asked to find it: the likeliest slice is
    named, and the last one that shows the label is drawn. A slice that helps several labels is asked for all of them.
    Labels that no model knows yet get representative slices, and so does everything at the beginning.
    """
    gains = {label: Gains(state, label) for label in labels if label in state.forecasts}
    if not gains:
        return representative(state, k, labels, rng)
    fresh = {label: representative(state, k, [label], rng) for label in labels if label not in gains}
    chosen: dict[int, dict[str, Reason]] = {}
    worth: dict[int, float] = {}
    while len(chosen) < k:
        open_ = {label: one for label, one in gains.items() if one.best() is not None}
        able = sorted(open_, key=lambda label: -open_[label].highest) + [label for label in fresh if fresh[label]]
        if not able:
            break
        turn = _turn(chosen, able)
        if turn in fresh:
            first = fresh[turn].pop(0)
            chosen.setdefault(first.index, {}).update(first.reasons)
            worth.setdefault(first.index, 0.0)
            continue
        index, numbers = open_[turn].take_best()
        taken = {turn: numbers}
        taken |= {n: one.take(index) for n, one in open_.items() if n != turn and one.is_worthwhile(index)}
        for label, numbers in taken.items():
            chosen.setdefault(index, {})[label] = Reason(in_words(index, label, numbers), numbers)
            worth[index] = worth.get(index, 0.0) + float(numbers["gain"] or 0)
    return [Choice(index, reasons, worth[index]) for index, reasons in chosen.items()]


RULES: Mapping[str, Rule] = {
    "next_slices": next_slices,
    "uncertainty": uncertainty,
    "representative": representative,
    "foreground_random": foreground_random,
    "random": random,
}


def expected_slices(state: VolumeState, label: str) -> list[int]:
    """The slices that seem to show a label: between annotated ones that do, and where a model draws it."""
    seen = state.showing(label)
    found = set(range(seen[0], seen[-1] + 1)) if seen else set()
    if label in state.forecasts:
        forecast = state.forecasts[label]
        found |= set(forecast.slices[forecast.area > 0].tolist())
    return sorted(found - {index for index, seen in state.annotated.get(label, {}).items() if not seen})


def slice_uncertainty(forecast: Forecast) -> np.ndarray:
    """(n,) in [0, 1]: whether the label is there at all, or where something is drawn, how wrong it is expected."""
    unclear = 1 - np.abs(2 * forecast.presence - 1)
    return np.maximum(unclear, np.where(forecast.area > 0, forecast.loss, 0.0))


def _least_sure(state: VolumeState, label: str) -> list[Choice]:
    """The slices that are not annotated, the least sure first."""
    forecast, known = state.forecasts[label], state.known(label)
    scores = slice_uncertainty(forecast)
    found = []
    for row in np.argsort(-scores, kind="stable").tolist():
        index = int(forecast.slices[row])
        if index not in known:
            numbers = numbers_of(forecast, row, state, label)
            found.append(Choice(index, {label: Reason(in_words(index, label, numbers), numbers)}, float(scores[row])))
    return found


def _in_turn(queues: Mapping[str, Sequence[Choice]], k: int) -> list[Choice]:
    """At most ``k`` slices from the fronts of the labels' queues, each label in its turn."""
    waiting = {label: list(queue) for label, queue in queues.items()}
    chosen: dict[int, Choice] = {}
    while len(chosen) < k and any(waiting.values()):
        one = waiting[_turn({i: c.reasons for i, c in chosen.items()}, [n for n in waiting if waiting[n]])].pop(0)
        before = chosen.get(one.index, one)
        chosen[one.index] = Choice(one.index, {**before.reasons, **one.reasons}, max(before.gain, one.gain))
    return list(chosen.values())


def _turn(chosen: Mapping[int, Mapping[str, Reason]], labels: Sequence[str]) -> str:
    """The first of the labels for which the fewest slices were chosen."""
    return min(labels, key=lambda label: sum(label in reasons for reasons in chosen.values()))


def _annotated(state: VolumeState, labels: Sequence[str]) -> list[int]:
    return sorted(frozenset[int]().union(*(state.known(label) for label in labels or [ANY])))


def _for_all(state: VolumeState, index: int, labels: Sequence[str], reason: Reason, *, gain: float = 0.0) -> Choice:
    """A slice for every label that it is not annotated for yet."""
    wanted = [label for label in labels if index not in state.known(label)] or [ANY]
    return Choice(index, dict.fromkeys(wanted, reason), gain)
