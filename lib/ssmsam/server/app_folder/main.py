"""The tasks of this app and the names under which viewers list them. Everything else is in ``ssmsam.server``."""

from functools import partial
from typing import ClassVar

from monailabel.interfaces.app import MONAILabelApp

from ssmsam.annotation.log import Verdict
from ssmsam.server.tasks import clicks, fewshot, scoring, strategies, training
from ssmsam.server.web import WebApp


class SsmsamApp(WebApp, MONAILabelApp):  # MONAI Label looks for a class with this direct base
    MODELS: ClassVar = {
        "sam_2d": partial(clicks.PromptTask, dimension=2),
        "sam_3d": partial(clicks.PromptTask, dimension=3),
        "accept_slice": partial(clicks.SliceMessage, verdict=Verdict.ACCEPTED),
        "empty_slice": partial(clicks.SliceMessage, verdict=Verdict.EMPTY),
        "withdraw_slice": partial(clicks.SliceMessage, verdict=None),
        "undo": clicks.Undo,
        "finish_volume": clicks.FinishVolume,
    }
    ADAPTIVE: ClassVar = {
        "fewshot": {"fewshot": fewshot.FewShotTask, "uncertainty_map": fewshot.UncertaintyMap},
        "ssm_sam": {"ssm_sam": fewshot.FewShotTask},
    }
    TRAINERS: ClassVar = {
        "fewshot": {"fewshot_decoder": training.FewShotTraining},
        "ssm_sam": {"ssm_sam_meta": training.MetaTraining},
    }
    STRATEGIES: ClassVar = {
        **{name: partial(strategies.SliceStrategy, rule=name) for name in strategies.RULES},
        "first": lambda forecasts: strategies.First(forecasts.service.images),
    }
    SCORING: ClassVar = {
        "dice": lambda _: scoring.DiceScore(),
        "uncertainty": scoring.UncertaintyScore,
    }
