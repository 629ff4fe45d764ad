"""The option of command-line programs that names an encoder."""

from __future__ import annotations

import argparse

from ssmsam.models.registry import AUTO, ENCODER_VARIABLE, ENCODERS, default_encoder


def add_encoder_option(parser: argparse.ArgumentParser) -> None:
    """``--encoder``: a name for :func:`ssmsam.models.registry.choose_encoder`."""
    parser.add_argument(
        "--encoder",
        choices=(*ENCODERS, AUTO),
        default=default_encoder(),
        help=f"{AUTO}: medsam_lite where its weights are installed, else small, which takes a twentieth of the time. "
        f"Default: {ENCODER_VARIABLE} where it is set, else %(default)s",
    )
