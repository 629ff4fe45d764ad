"""Groups as a batch: which slice asks for which target, and which of the others it is shown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ssmsam.fewshot.support_bank import interpolated, signed_distance
from ssmsam.models.prompt_small import closeness
from ssmsam_research.training.group import Group, GroupBatch, GroupConfig


def assembled(groups: Sequence[Group], rng: np.random.Generator, config: GroupConfig) -> GroupBatch:
    """Several groups as one batch, with a choice of queries and of supports for each."""
    described: list[int] = []
    masks: list[np.ndarray] = []
    rows: list[_Row] = []
    first = 0
    for group in groups:
        for target in group.masks:
            distances = [signed_distance(mask > 0.5) for mask in target]
            rows += _rows(group, target, distances, len(described), rng, config)
            described += [first + number for number in range(len(target))]
            masks += list(target)
        first += len(group.pixels)
    picked = [rows[n] for n in rng.permutation(len(rows))[: config.rows]]
    asked, supports, near, prior, trust = zip(*picked, strict=True)
    return GroupBatch(
        slices=torch.from_numpy(np.concatenate([group.pixels for group in groups])),
        described=torch.tensor(described),
        masks=torch.from_numpy(np.stack(masks))[:, None].float(),
        asked=torch.tensor(asked),
        supports=torch.tensor(np.array(supports)),
        near=torch.tensor(np.array(near), dtype=torch.float32),
        prior=torch.from_numpy(np.stack(prior))[:, None],
        trust=torch.tensor(np.array(trust), dtype=torch.float32),
        semantic=torch.from_numpy(np.concatenate([group.semantic for group in groups])),
        labelled=torch.from_numpy(np.concatenate([group.labelled for group in groups])),
    )


_Row = tuple[int, list[int], list[float], np.ndarray, tuple[float, float]]


def _rows(
    group: Group,
    target: np.ndarray,
    distances: list[np.ndarray],
    offset: int,
    rng: np.random.Generator,
    config: GroupConfig,
) -> list[_Row]:
    """Each slice as a query of one target; none where no support shows the target."""
    rows: list[_Row] = []
    count = len(target)
    shows = target.sum(axis=(1, 2)) >= config.min_area / 4
    for query in range(count):
        # a slice that was drawn twice is not shown to itself
        beside = (group.volume == group.volume[query]) & (group.position != group.position[query])
        own = np.flatnonzero(beside).tolist()
        other = [n for n in range(count) if group.volume[n] != group.volume[query]]
        if other and rng.random() > config.own_share:
            own = []
        supports = _some(other + own, rng) if other or own else []
        if not shows[supports].any():
            continue
        own = [n for n in supports if group.volume[n] == group.volume[query]]
        known = {} if rng.random() < config.no_prior_share else {float(group.position[n]): distances[n] for n in own}
        prior = interpolated(known, float(group.position[query]), (target.shape[1], target.shape[2]))
        near = [closeness(group.position[n] - group.position[query]) if n in own else 0.0 for n in supports]
        missing = count - 1 - len(supports)
        places = [offset + n for n in supports] + [-1] * missing
        rows.append((offset + query, places, near + [0.0] * missing, prior.distance, (prior.between, prior.closeness)))
    return rows


def _some(numbers: list[int], rng: np.random.Generator) -> list[int]:
    """All of them or, half of the time, a random part; never none."""
    keep = len(numbers) if rng.random() < 0.5 else int(rng.integers(1, len(numbers) + 1))
    return sorted(rng.permutation(numbers)[:keep].tolist())
