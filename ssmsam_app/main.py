"""The tasks of this app and the names under which viewers list them. Everything else is in ``ssmsam.server``."""

from functools import partial
from typing import ClassVar

from monailabel.interfaces.app import MONAILabelApp

from ssmsam.server import app, prompted, strategies


class SsmsamApp(app.ServerApp, MONAILabelApp):  # MONAI Label looks for a class with this direct base
    MODELS: ClassVar = {
        "sam_2d": partial(prompted.PromptedTask, dimension=2),
        "sam_3d": partial(prompted.PromptedTask, dimension=3),
    }
    STRATEGIES: ClassVar = {
        "first": strategies.First,
        "random": strategies.Random,
    }
