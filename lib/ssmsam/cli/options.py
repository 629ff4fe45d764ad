"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from ssmsam.api import FewShotSegmenter
from ssmsam.cli.command import Several, path_option
from ssmsam.models.registry import AUTO, ENCODER_VARIABLE, ENCODERS, default_encoder
from ssmsam.paths import default_store, default_support

METHODS = ("fewshot", "ssm_sam")
PLANES = ("axial", "coronal", "sagittal")

encoder_option = click.option(
    "--encoder",
    type=click.Choice((*ENCODERS, AUTO)),
    default=default_encoder,
    help=f"{AUTO}: medsam_lite where its weights are installed, else small, which takes a twentieth of the time. "
    f"Default: {ENCODER_VARIABLE} where it is set, else {AUTO}.",
)
weights_option = path_option("--weights", metavar="DIR", help="Folder to look for weights in first.")
store_gb_option = click.option(
    "--store-gb", type=float, default=20.0, show_default=True, metavar="GB", help="Size limit of the store."
)
names_option = click.option(
    "--names", cls=Several, metavar="NAME=NUMBER...", help="What the numbers of a label map mean, as in liver=1."
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Encoder and weights, device and threads, and the embedding store."""
    for option in (
        click.option("--threads", type=int, metavar="N", help="Default: what OMP_NUM_THREADS says, else all cores."),
        click.option("--device", metavar="NAME", help="As torch names it. Default: a GPU, else cpu."),
        click.option("--store", metavar="DIR", default=default_store, help="Where embeddings are kept."),
        click.option("--allow-unverified", is_flag=True, help="Accept weights of your own."),
        weights_option,
        encoder_option,
    ):
        command = option(command)
    return command


def loaded(*, threads: int | None, store: str | Path, method: str, **model: Any) -> FewShotSegmenter:
    """The model of the options, with this machine's cache of labelled slices."""
    use_threads(threads)
    return FewShotSegmenter.from_pretrained(method=method, store=store, support_cache=default_support(), **model)


def use_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def on_cuda(device: str | None) -> str:
    """The device that a model is on whose options leave it open."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")
