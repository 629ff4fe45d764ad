"""Fitting what decides whether a mask past an annotated end stays: see :mod:`ssmsam.fewshot.continuation`.

For training patients only: what is fitted here must not have seen the patients that it is reported on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from ssmsam.active.forecast import prompted
from ssmsam.encoders.embedder import Embedder
from ssmsam.evaluation.cases import Case, LabelledSet
from ssmsam.evaluation.placement import with_ends, without_ends
from ssmsam.fewshot.continuation import Claim, Claims, ContinuationConfig, ends_of
from ssmsam.fewshot.decoder import TargetDecoder
from ssmsam.fewshot.proposals import propose
from ssmsam.fewshot.segmentation import SegmentationConfig, kept
from ssmsam.fewshot.support import LabelledSlice
from ssmsam.prompting.drawing import draw_mask

SLICES = (3, 5)
"""Annotated slices of a target."""
REACH_MM, LEAST_REACH = 60.0, 4
"""How far past an end masks are looked at, and at least how many slices."""
_LEAST_EXTENT = 6
"""Slices that show a target of which some may be annotated and others not: a guess."""
PENALTY = 1.0
"""Of squared coefficients, in standard deviations of what they weigh. A guess."""


@dataclass(frozen=True)
class Example:
    """A mask past an end, whether it is ``right``, and the ``group`` that weighs as much as any other."""

    claim: Claim
    right: bool
    group: tuple[str, str, str]


def examples(case: Case, labelled_set: LabelledSet, embedder: Embedder, decoder: TargetDecoder) -> Iterator[Example]:
    """The masks past both kinds of ends, of every label of a case."""
    config = replace(SegmentationConfig(), continuation=None)
    volume, labels = case.read()
    query = embedder.open(volume)
    for label, truth in labelled_set.targets(labels):
        if truth.any(axis=(1, 2)).sum() < _LEAST_EXTENT:
            continue
        for placement, k in ((one, k) for one in (with_ends, without_ends) for k in SLICES):
            annotated = sorted(set(placement(truth, k)))
            if len(annotated) < min(SLICES):
                continue
            support = {label: [LabelledSlice(query, index, truth[index]) for index in annotated]}
            head = prompted(support, embedder, decoder)
            reach = max(LEAST_REACH, int(REACH_MM / query.slice_mm))
            seen = range(max(0, annotated[0] - reach), min(query.count, annotated[-1] + reach + 1))
            proposed = propose(decoder, head.banks, query, seen, config=config)[label]
            threshold = head.threshold(label, query.key.digest)
            masks = kept(proposed, head.banks[label], query, config, threshold=threshold).logits > 0
            drawn = torch.cat([draw_mask(truth[index], query.frame, masks.shape[-1]) for index in seen])
            there = drawn.numpy()[:, 0] > 0.5
            shown = np.isin(proposed.slices, annotated)
            claims = Claims(masks, proposed, shown, query.slice_mm)
            for end in ends_of(shown, np.zeros_like(shown), masks):
                for row in end.rows:
                    if not masks[row].any():
                        break
                    right = bool((masks[row] & there[row]).sum() > 0.5 * masks[row].sum())
                    yield Example(claims.of(end, row), right, (labelled_set.name, label, placement.__name__))


def fitted(found: Sequence[Example]) -> ContinuationConfig:
    """The logistic model of examples, each group with one weight. Raises ValueError without both kinds of examples."""
    right = np.array([one.right for one in found], dtype=float)
    if not 0 < right.sum() < len(right):
        raise ValueError("examples of masks that are right and of masks that are wrong are needed")
    names = [one.name for one in fields(Claim)]
    values = np.array([[getattr(one.claim, name) for name in names] for one in found])
    counts = Counter(one.group for one in found)
    weights = np.array([1 / counts[one.group] for one in found])
    weights /= weights.mean()
    mean, spread = values.mean(axis=0), values.std(axis=0) + 1e-9
    scaled = np.column_stack([np.ones(len(values)), (values - mean) / spread])

    def loss(coefficients: np.ndarray) -> tuple[float, np.ndarray]:
        odds = scaled @ coefficients
        wrong = weights * (np.logaddexp(0, odds) - right * odds)
        slope = scaled.T @ (weights * (1 / (1 + np.exp(-odds)) - right))
        penalised = np.concatenate([[0.0], coefficients[1:]])
        return float(wrong.sum() + PENALTY / 2 * (penalised**2).sum()), slope + PENALTY * penalised

    best = minimize(loss, np.zeros(scaled.shape[1]), jac=True).x
    slopes = best[1:] / spread
    coefficients: dict[str, Any] = {name: float(one) for name, one in zip(names, slopes, strict=True)}
    return ContinuationConfig(intercept=float(best[0] - slopes @ mean), **coefficients)
