"""Commands of ``ssmsam_research``, which stands beside this package in a clone and is not installed with it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

import click

from ssmsam.cli.command import COMMANDS, Program


def require_research(what: str) -> None:
    """Raises ValueError, with what to do, where ``ssmsam_research`` cannot be found."""
    if find_spec("ssmsam_research") is None:
        raise ValueError(
            f"ssmsam {what} needs ssmsam_research, which is not part of the package: clone the repository and run "
            "`pip install -e .` in it"
        )


def passed_on(name: str) -> Program:
    """The command whose parser is ``main(arguments)`` of a module of ``ssmsam_research.cli``."""

    def run(arguments: Sequence[str]) -> int:
        require_research(name)
        return import_module(f"ssmsam_research.cli.{name}").main(list(arguments))

    return Program(
        name,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        callback=run,
        help=COMMANDS[name],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    )
