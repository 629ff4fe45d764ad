"""The configuration of few-shot segmentation: its settings, and each constant that decides something.

A constant's docstring says where it comes from: *fitted on* some data, *chosen on* them, or a *guess*.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ViewConfig:
    """How labelled slices are varied, all of them alike in one view. Ranges are symmetric around no change.

    The numbers are a *guess*: what patients of one data set differ by.
    """

    views: int = 3
    """Besides the slices as they are."""
    rotation_deg: float = 12.0
    scale: float = 0.15
    shift: float = 0.08
    """Of the input's side."""
    gamma: float = 0.3


@dataclass(frozen=True)
class SupportBankConfig:
    """How many labelled slices are a query's context: the nearest of its own volume and the most alike of others.

    A *guess*, which bounds the time of a query; the decoders were trained with as many.
    """

    own: int = 8
    others: int = 8


@dataclass(frozen=True)
class AdaptationConfig:
    """How the decoder is fitted. ``budget_s`` bounds the time of the steps; fewer steps are then made.

    Steps and rates are a *guess*; 30 steps beside 10 and 100 are measured in ``benchmarks/adaptation_*.json``.
    """

    steps: int = 30
    budget_s: float = 30.0
    batch: int = 4
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 6e-4
    warm_up: int = 6
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    prior_truth: float = 0.5
    """A query's own signed distance is mixed into its prior by up to this share: leaving a slice out doubles the gap
    that the prior must bridge, so that an honest prior would be worse than the one met later. A *guess*."""
    views: ViewConfig = field(default_factory=ViewConfig)
    bank: SupportBankConfig = field(default_factory=SupportBankConfig)
    seed: int = 0


@dataclass(frozen=True)
class RoiConfig:
    """How much small targets are enlarged, and what is large enough as it is."""

    margin: float = 1.4
    """The window's side is at least this times the target's longer side on the labelled slices: a *guess*."""
    step: float = 1.2
    """Sides come in these steps, so that another labelled slice seldom changes one: a *guess*."""
    most: float = 2.4
    """Enlarged by no more than this, as in training: a *guess*."""
    least: float = 1.25
    """What would be enlarged by less is not refined: a *guess*."""
    raster: int = 8
    """Windows are placed in steps of this part of their side, so that another labelled slice seldom moves one: a
    *guess*."""
    labelled: int = 5
    """Volumes in which fewer labelled slices show the target are not refined. *Fitted on* training patients
    (``chaos_t2_mr`` 01, 05, 10, ``sabs_ct`` 00, 03, 06, 09; ``small``, the target's ends given): refinement changed the
    Dice of other slices by -3.4 points (95 % interval -4.8 to -2.2) with three labelled slices, by -0.2 (-0.6 to 0.2)
    with four and by 1.0 (0.2 to 1.8) with five."""
    slices: int = 12
    """At most so many labelled slices of each volume are embedded again: a *guess*, which bounds the time."""


@dataclass(frozen=True)
class PseudoLabelConfig:
    """Which slices of labelled volumes get pseudo-labels: up to ``slices`` of each volume, ``spacing_mm`` or more
    apart, in the ``volumes`` with most labelled slices. With ``slices`` 0 none does. All a *guess*, which bounds the
    time."""

    slices: int = 24
    spacing_mm: float = 8.0
    volumes: int = 3


BATCH = 4
"""Slices that are answered at once: a *guess*, which decides about time alone."""


@dataclass(frozen=True)
class SegmentationConfig:
    """How proposals are made, and which steps follow. Each step can be switched off, to measure what it is worth."""

    batch: int = BATCH
    roi: RoiConfig | None = field(default_factory=RoiConfig)
    """None refines no target in an enlarged window."""
    atlases: bool = True
    """Register labelled volumes with others."""
    own_slices: int = 3
    """In a volume without annotated slices, so many of the best masks found support the others; 0 for none. *Chosen on*
    ``chaos_t2_mr`` 20-22 and ``sabs_ct`` 16-19, before the volume head was trained, and not since."""
    volume_head: bool = True
    """Without it everything that was proposed is kept."""
    follow: bool = True
    """A target that one annotated slice of the volume shows is also followed outwards, and found so where the volume
    head thinks more of that. *Chosen on* 33 targets of training patients and of network output on organs that no
    training had (hippocampus, ``chaos_t2_mr``, lesions, cord, ``totalseg_examples``; ``medsam_lite``): 1.9 points (0.3
    to 2.5 over the volumes). With more annotated slices, and with ``small``, nothing was gained."""
    every_slice: bool = False
    """The target is known to be on every slice that is looked at."""
    bank: SupportBankConfig = field(default_factory=SupportBankConfig)


@dataclass(frozen=True)
class FewShotConfig:
    """All settings of :func:`~ssmsam.fewshot.pipeline.adapt` and :func:`~ssmsam.fewshot.pipeline.segment`.

    ``folds`` cross-validate adaptation by gradient steps, where there is any (0: it is trusted).
    """

    adaptation: AdaptationConfig = field(default_factory=AdaptationConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    pseudo_labels: PseudoLabelConfig = field(default_factory=PseudoLabelConfig)
    folds: int = 2

    def as_json(self) -> dict[str, Any]:
        """For a task checkpoint's card, whose keys are older than these names."""
        settings = asdict(self)
        settings["completion"] = settings.pop("pseudo_labels")
        settings["segmentation"]["closer"] = settings["segmentation"].pop("roi")
        return settings


DEFAULTS = FewShotConfig(adaptation=AdaptationConfig(steps=0))
"""The closed form only. Gradient steps on top gained 0.4 points (0.1 to 0.6) on organs never seen and cost tens of
seconds: those are for who asks for them."""

_INNER = AdaptationConfig(steps=3, budget_s=float("inf"), warm_up=1)


@dataclass(frozen=True)
class MetaConfig:
    """``steps`` of the outer AdamW, each over ``tasks`` episodes; ``budget_s`` bounds their time. All a *guess*."""

    steps: int = 100
    budget_s: float = 600.0
    tasks: int = 3
    outer_rate: float = 2e-4
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    queries: int = 6
    """At most this many query slices of an episode."""
    inner: AdaptationConfig = _INNER
    seed: int = 0


# what is proposed and what of it is kept

NOWHERE = -30.0
"""Logits of cells of which nothing was proposed, or that were ruled out: so low that no interpolation lifts them."""
FOLLOWED = 4
"""Slices at a time where a target is followed outwards: *chosen on* the training patients and network output that
:attr:`SegmentationConfig.follow` names, among 1, 2 and 4; one at a time strayed."""
NOT_THERE = 0.03
"""Presence below which the decoder sees nothing of a target: a *guess*, which saves time and decides nothing else."""
OBJECTS = 4
"""So many objects are judged: a *guess*."""
EVEN = 0.5
"""What is more likely the target than not is kept: by the meaning of a probability."""
SMALL_PIECE = 0.2
"""Pieces on a labelled slice below this share of the largest are details of the drawing: a *guess*."""

# what the decoder and the volume head read

PRIOR_REACH = 20.0
"""Signed distances of the prior are cut off here, in cells; a slice known to be empty is this far outside everywhere. A
*guess* that the decoders and the volume head were trained with."""
ATLAS_STEPS = 4
"""An atlas keeps distances in so many parts of a cell: a *guess*, which decides about size alone."""
ATLAS_ERROR_CELLS = 4.5
"""Cells of inverse inconsistency at which a registration is trusted by 0.6: a *guess* of a unit, what it means the
decoders have learned."""
ATLAS_REACH = 8.0
"""Cells from the border of a propagated mask beyond which it says no more: a *guess*, trained with."""
NEAR_MM = 25.0
"""The unit of closeness along the volume in the volume head's descriptors: a *guess*, trained with."""
MOST_LOG = 4.0
"""Log odds and logarithms of ratios in the volume head's descriptors say no more than this: a *guess*, trained with."""
PROTOTYPES = (16, 8, 16)
"""Most prototypes that a task checkpoint keeps of the target's cells, of the ring around it, and of the rest: a
*guess*."""
PROTOTYPE_CELLS = 8
"""No prototype is a mean of fewer cells, where there are as many: a *guess*, so that no cell can be read off."""

# what is estimated

LEAST_GAIN = 0.01
"""By how much Dice has to rise on held-out slices for an adapted decoder to be kept: a *guess*."""
STOPS = (1.0, 2 / 3, 1 / 3)
"""Shares of the steps after which held-out slices are judged; of equally good ones the first is taken. A *guess*."""
LEAST_SLICES = 3
"""With fewer slices that show a label, nothing can be held out and still be learned from."""
CHECKED_SLICES = 16
"""Of more labelled slices so many are queries, evenly spread: a *guess*, which bounds the time."""
MOTION_STEPS = 32
"""At most so many registrations lead from one annotated slice to the next: a *guess*, which bounds the time."""
LEAST_SUPPORT = 2
"""Slices of an episode's support that must show the target, so that each can be a query while another shows it."""
HELD_OUT_OF = 4
"""Meta-learning holds out every so many-th slice of a label and volume, where there are as many: a *guess*."""
