"""The tasks of this app and the names under which viewers list them. Everything else is in ``ssmsam.server``."""

from functools import partial
from typing import ClassVar

from monailabel.interfaces.app import MONAILabelApp

from ssmsam.annotation.log import Verdict
from ssmsam.server.tasks import fewshot, messages, prompts, scoring, strategies, training, uncertainty
from ssmsam.server.web import WebApp


class SsmsamApp(WebApp, MONAILabelApp):  # MONAI Label looks for a class with this direct base
    MODELS: ClassVar = {
        "sam_2d": partial(prompts.PromptTask, dimension=2),
        "sam_3d": partial(prompts.PromptTask, dimension=3),
        "accept_slice": partial(messages.SliceMessage, verdict=Verdict.ACCEPTED),
        "empty_slice": partial(messages.SliceMessage, verdict=Verdict.EMPTY),
        "withdraw_slice": partial(messages.SliceMessage, verdict=None),
        "undo": messages.Undo,
        "finish_volume": messages.FinishVolume,
    }
    ADAPTIVE: ClassVar = {
        "fewshot": {"fewshot": fewshot.FewShotTask, "uncertainty_map": uncertainty.UncertaintyMap},
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
