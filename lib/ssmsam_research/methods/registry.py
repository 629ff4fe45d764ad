"""The few-shot methods that can be measured, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ssmsam_research.methods.carried import CarriedShape
from ssmsam_research.methods.few_shot import FewShotSegmentation, OnlineSegmentation
from ssmsam_research.methods.frozen_features import LinearClassifier, PrototypeMatching
from ssmsam_research.methods.interpolation import NearestSlice, SeedPropagation, ShapeInterpolation
from ssmsam_research.methods.points import ClickedMethod, PointPrompts
from ssmsam_research.methods.random_walker import RandomWalker
from ssmsam_research.methods.unet import UNetFromScratch
from ssmsam_research.model_choice import PromptedModel
from ssmsam_research.protocols.fewshot_task import FewShotMethod


@dataclass(frozen=True)
class MethodSpec:
    """How a method is made. ``settings`` are the values that change its results."""

    make: Callable[..., FewShotMethod | ClickedMethod]
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: bool = False
    decoder: bool = False
    target: bool = False
    ssm: bool = False
    within: bool = False
    """Needs annotated slices of the query itself, so it cannot cross patients."""
    by_default: bool = True
    """Measured where no method is named."""

    def build(self, model: PromptedModel | None) -> FewShotMethod | ClickedMethod:
        """Raises ValueError when the method needs a model and there is none."""
        parts: dict[str, Any] = {}
        if self.encoder or self.decoder:
            if model is None:
                raise ValueError("this method needs an encoder")
            parts["embedder"] = model.embedder
        if self.decoder and model is not None:
            parts["decoder"] = model.decoder
        if self.target and model is not None:
            parts["decoder"] = model.target
        if self.ssm and model is not None:
            parts["decoder"] = model.ssm
        return self.make(**self.settings, **parts)


METHODS: dict[str, MethodSpec] = {
    "interpolation": MethodSpec(ShapeInterpolation, {"beyond": 0.0}, within=True),
    "interpolation_beyond": MethodSpec(ShapeInterpolation, {"beyond": 0.5}, within=True),
    "nearest": MethodSpec(NearestSlice, {"beyond": 0.5}, within=True),
    "random_walker": MethodSpec(RandomWalker, {"beta": 130.0, "margin_mm": 15.0, "voxels": 60_000}, within=True),
    "propagation": MethodSpec(SeedPropagation, encoder=True, decoder=True, within=True),
    "prototypes": MethodSpec(PrototypeMatching, {"window": 4, "purity": 0.95}, encoder=True),
    "fewshot_prompted": MethodSpec(FewShotSegmentation, {"steps": 0}, encoder=True, target=True),
    "fewshot_matched": MethodSpec(FewShotSegmentation, {"steps": 0, "matched": True}, encoder=True, target=True),
    "fewshot": MethodSpec(FewShotSegmentation, {"steps": 30}, encoder=True, target=True),
    "ssm_prompted": MethodSpec(FewShotSegmentation, {"steps": 0}, encoder=True, ssm=True),
    "ssm": MethodSpec(FewShotSegmentation, {"steps": 30}, encoder=True, ssm=True),
    "ssm_full": MethodSpec(OnlineSegmentation, {"steps": 30}, encoder=True, ssm=True, by_default=False),
    "unet": MethodSpec(UNetFromScratch, {"steps": 60}, encoder=True),
    "linear": MethodSpec(LinearClassifier, {"penalty": 1e-3, "steps": 60}, encoder=True),
    "carried": MethodSpec(CarriedShape, {"beyond": 0.5}, by_default=False),
}

METHODS |= {
    f"{name}_{steps}": replace(METHODS[name], settings={**METHODS[name].settings, "steps": steps}, by_default=False)
    for name, sweep in {"fewshot": (10, 100), "unet": (20, 200)}.items()
    for steps in sweep
}  # for Dice against seconds of adaptation

METHODS |= {
    f"{name}_judged": replace(METHODS[name], settings={**METHODS[name].settings, "folds": 2}, by_default=False)
    for name in ("fewshot", "ssm")
}  # what the server does: adaptation is kept where it helps on slices held out

METHODS |= {
    f"points_{clicks}": MethodSpec(PointPrompts, {"clicks": clicks}, encoder=True, decoder=True, by_default=False)
    for clicks in (1, 3, 5)
}  # SAM's own prompts, for comparison: they alone are told of the query, by simulated clicks

_ABLATIONS: dict[str, dict[str, Any]] = {
    "ssm_without_sampling": {"without": ("self_sampling",)},
    "ssm_without_attention": {"without": ("mask_attention",)},
    "ssm_without_matching": {"without": ("matched",)},
    "ssm_without_modules": {"without": ("self_sampling", "mask_attention")},
    "ssm_nearest_mask": {"prior": "nearest"},
}

METHODS |= {
    name + suffix: MethodSpec(
        FewShotSegmentation, {"steps": steps, **settings}, encoder=True, ssm=True, by_default=False
    )
    for suffix, steps in (("", 30), ("_prompted", 0))
    for name, settings in _ABLATIONS.items()
}  # for the table of ablations


def methods_for(protocol: str) -> list[str]:
    """The names of the methods that a protocol can measure."""
    return [name for name, spec in METHODS.items() if protocol == "complete" or not spec.within]


def checked_methods(names: list[str] | None, protocol: str) -> tuple[str, ...]:
    """The wanted methods, by default the protocol's own. Raises ValueError for one that it cannot measure."""
    known = methods_for(protocol)
    for name in names or ():
        if name not in known:
            raise ValueError(f"{protocol} cannot measure the method {name!r}; it can measure {', '.join(known)}")
    return tuple(dict.fromkeys(names or (name for name in known if METHODS[name].by_default)))
