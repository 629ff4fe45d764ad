"""What the command-line programs of few-shot segmentation have in common: options, their meaning, how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from ssmsam.embeddings.embedder import Embedder
from ssmsam.embeddings.options import add_encoder_option
from ssmsam.embeddings.store import EmbeddingStore
from ssmsam.fewshot.adapted_task import AdaptedTask
from ssmsam.fewshot.config import DEFAULTS, AdaptationConfig, FewShotConfig
from ssmsam.fewshot.labelled_files import LabelledFile, label_numbers, parse_names, read_labelled, support_from
from ssmsam.fewshot.pipeline import adapt
from ssmsam.fewshot.support import Support
from ssmsam.fewshot.task_checkpoint import FEWSHOT, method_of, read_card
from ssmsam.models.encoder_registry import choose_encoder, load_encoder
from ssmsam.models.fewshot_decoder import TargetDecoder
from ssmsam.progress import Cancelled, Progress
from ssmsam.volume.geometry import PLANES

_T = TypeVar("_T")


def add_support_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """``--support``, ``--names`` and how long to adapt."""
    parser.add_argument(
        "--support",
        nargs="+",
        action="extend",
        type=_parsed(LabelledFile.parse),
        required=required,
        default=None if required else [],
        metavar="IMAGE:LABEL[:SLICES]",
        help="an image, a label map on its grid, and the slices that are truth, as in 10,20-40:5 (counted from 0; "
        "default: every slice that holds a label). An empty slice counts only when it is listed.",
    )
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME=NUMBER", help="the labels to learn, default: all numbers"
    )
    parser.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help=f"gradient steps of adaptation, default: none for {FEWSHOT}, {AdaptationConfig.steps} for others",
    )
    parser.add_argument(
        "--budget-s",
        type=float,
        default=DEFAULTS.adaptation.budget_s,
        metavar="S",
        help="most seconds for the steps, fewer are then made, default %(default)s",
    )
    parser.add_argument("--seed", type=int, default=DEFAULTS.adaptation.seed)


Decoders = Mapping[str, Callable[..., TargetDecoder]]
"""Method -> what loads its decoder."""


def add_model_options(parser: argparse.ArgumentParser, *, store: Path, methods: Decoders) -> None:
    """Method and plane, encoder and weights, device and threads, and the embedding store, ``store`` by default."""
    parser.add_argument("--method", choices=tuple(methods), help=f"default: {FEWSHOT}, or that of the head")
    parser.add_argument("--plane", choices=tuple(PLANES), help="work on slices of this plane, default: as stored")
    add_encoder_option(parser)
    parser.add_argument("--weights", type=Path, metavar="DIR", help="folder to look for weights in first")
    parser.add_argument("--allow-unverified", action="store_true", help="accept weights of your own")
    parser.add_argument("--store", type=Path, default=store, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, metavar="N", help="default: what OMP_NUM_THREADS says, else all cores")


@dataclass(frozen=True, eq=False)
class FewShotModel:
    """The encoder, with its store, and the decoder of a method that belongs to it."""

    method: str
    embedder: Embedder
    decoder: TargetDecoder

    @classmethod
    def load(cls, options: argparse.Namespace, methods: Decoders, *, head: Path | None = None) -> FewShotModel:
        """The method of the options, or that of the ``head`` to be used.

        Raises what the registries raise: MissingWeights, CorruptWeights, ValueError; and for a head UnusableCheckpoint,
        FileNotFoundError, and ValueError when it is one of another method.
        """
        method = _method(options.method, head)
        if options.threads:
            torch.set_num_threads(options.threads)
        folder, device, own = options.weights, options.device, options.allow_unverified
        name = choose_encoder(options.encoder, folder=folder)
        encoder = load_encoder(name, folder=folder, device=device, allow_unverified=own)
        decoder = methods[method](name, folder=folder, device=device, allow_unverified=own)
        return cls(method, Embedder(encoder=encoder, store=EmbeddingStore(options.store)), decoder)

    @property
    def weights_sha256(self) -> str:
        return self.embedder.encoder.weights_sha256


def config_of(options: argparse.Namespace, model: FewShotModel) -> FewShotConfig:
    """The settings that the options ask for. A decoder that knows no organ yet says little before it has adapted."""
    usual = 0 if model.method == FEWSHOT and model.decoder.pretrained else AdaptationConfig.steps
    steps = usual if options.steps is None else options.steps
    adaptation = replace(DEFAULTS.adaptation, steps=steps, budget_s=options.budget_s, seed=options.seed)
    return replace(DEFAULTS, adaptation=adaptation)


def adapt_to(
    options: argparse.Namespace, model: FewShotModel, progress: Progress, *, complete: bool = True
) -> tuple[AdaptedTask, Support]:
    """Read the support and adapt to it. The card of the head also says method, plane, and the numbers of its labels."""
    images = [read_labelled(file, plane=options.plane) for file in options.support]
    numbers = label_numbers(images, parse_names(options.names))
    support = support_from(images, numbers, model.embedder, plane=options.plane, progress=progress)
    config = config_of(options, model)
    head = adapt(support, model.embedder, model.decoder, pseudo_labels=complete, config=config, progress=progress)
    said = {"method": model.method, "numbers": numbers, "plane": options.plane}
    return replace(head, card={**head.card, **said}), support


def _method(chosen: str | None, head: Path | None) -> str:
    found = method_of(read_card(head)) if head else chosen or FEWSHOT
    if chosen and chosen != found:
        raise ValueError(f"{head and head.name} is a head of {found}, not of {chosen}: leave --method out")
    return found


def exit_status(run: Callable[[argparse.Namespace], None], options: argparse.Namespace, *, stopped: str) -> int:
    """Run a program: 0, or 1 after one line about what went wrong, or 130 after what ``stopped`` says of Ctrl-C."""
    try:
        run(options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Cancelled):
        print(f"\nstopped; {stopped}", file=sys.stderr)
        return 130
    return 0


def _parsed(read: Callable[[str], _T]) -> Callable[[str], _T]:
    """A reader whose ValueError argparse shows to the user."""

    def checked(text: str) -> _T:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked
