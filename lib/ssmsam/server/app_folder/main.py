"""The tasks of this app and the names under which viewers list them. Everything else is in ``ssmsam.server``."""

from functools import partial
from typing import ClassVar

from monailabel.interfaces.app import MONAILabelApp

from ssmsam.annotation.log import Verdict
from ssmsam.server import app
from ssmsam.server.tasks import fewshot, messages, prompted, scoring, strategies, training, uncertainty
from ssmsam.server.tasks import training as meta_training


class SsmsamApp(app.ServerApp, MONAILabelApp):  # MONAI Label looks for a class with this direct base
    MODELS: ClassVar = {
        "sam_2d": partial(prompted.PromptedTask, dimension=2),
        "sam_3d": partial(prompted.PromptedTask, dimension=3),
        "accept_slice": partial(messages.SliceVerdict, verdict=Verdict.ACCEPTED),
        "empty_slice": partial(messages.SliceVerdict, verdict=Verdict.EMPTY),
        "withdraw_slice": messages.WithdrawSlice,
        "undo": messages.Undo,
        "finish_volume": messages.FinishVolume,
    }
    ADAPTIVE: ClassVar = {
        "fewshot": {"fewshot": fewshot.FewShotTask, "uncertainty_map": uncertainty.UncertaintyMap},
        "ssm_sam": {"ssm_sam": fewshot.FewShotTask},
    }
    TRAINERS: ClassVar = {
        "fewshot": {"fewshot_decoder": training.FewShotTraining},
        "ssm_sam": {"ssm_sam_meta": meta_training.MetaTraining},
    }
    STRATEGIES: ClassVar = {
        **{name: partial(strategies.SliceStrategy, rule=name) for name in strategies.RULES},
        "first": lambda outlooks: strategies.First(outlooks.room.images),
    }
    SCORING: ClassVar = {
        "dice": lambda _: scoring.DiceScore(),
        "uncertainty": scoring.UncertaintyScore,
    }
