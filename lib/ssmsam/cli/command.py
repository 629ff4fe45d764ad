"""What all commands have in common: how they are found, how options are read, how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from ssmsam import __version__
from ssmsam.progress import Cancelled

COMMANDS = {
    "demo": "See it work: a server on sample volumes, simulated clicks, Dice and times.",
    "doctor": "Say what works on this machine, what does not, and what to do.",
    "serve": "Start the server for 3D Slicer, OHIF and REST.",
    "pacs": "Start a local DICOM archive (Orthanc) with the sample studies.",
    "embed": "Fill the embedding store ahead, so that first clicks are fast.",
    "segment": "Segment a volume by labelled slices, or by a task that was learned; or a whole cohort.",
    "score": "Say of every study of a cohort how well a task does on it.",
    "adapt": "Learn labels from slices and keep them in a small file.",
    "export": "Write a label map as DICOM SEG or RT Structure Set, or studies as a data set for nnU-Net.",
    "benchmark": "Measure clicks and few-shot segmentation (research).",
    "train": "Train the models (research).",
    "purge": "Remove what is cached of patients' images.",
    "samples": "Write the sample volumes into a folder.",
}
"""Name -> what the list of commands says of it. Each is ``command`` of a module of that name."""
RESEARCH = ("benchmark", "train")
"""Those that ``ssmsam_research`` has: it stands beside this package in a clone and is not installed with it."""
FINE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 130
"""How a command ends: 1 when something was done and did not work out, 2 when it cannot be done as it was asked for."""


class Several(click.Option):
    """An option that takes one or more values, as in ``--names liver=1 spleen=2``, and may be repeated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        settings["multiple"] = True
        super().__init__(*arguments, **settings)


class Reads(click.ParamType):
    """Values that ``read`` makes of their text. The user sees the ValueError that it raises."""

    def __init__(self, read: Callable[[str], Any], name: str) -> None:
        self.read = read
        self.name = name

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        try:
            return self.read(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), parameter, context)


class Program(click.Command):
    """A command that ends with one sentence when something is wrong. ``stopped`` is what Ctrl-C leaves behind."""

    def __init__(self, *arguments: Any, stopped: str = "start again to go on", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.stopped = stopped

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        several = {name for option in self.params if isinstance(option, Several) for name in option.opts}
        return super().parse_args(context, _each_with_its_name(arguments, several))

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context) or FINE
        except (KeyboardInterrupt, Cancelled):
            click.echo(f"\nstopped; {self.stopped}", err=True)
            return STOPPED
        except (ValueError, OSError) as error:
            click.echo(str(error), err=True)
            return BAD_INPUT


class _Commands(click.Group):
    """Loads a command when it is asked for: listing them is quick."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in RESEARCH:
            return passed_on(name)
        return import_module(f"ssmsam.cli.{name}").command if name in COMMANDS else None

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ssmsam")
def ssmsam() -> None:
    """Annotate a few slices of a volume and get the rest.

    `ssmsam COMMAND --help` says more. Every command takes `--json FILE` and writes there what it did.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; the exit status."""
    try:
        status = ssmsam.main(arguments if arguments is None else list(arguments), "ssmsam", standalone_mode=False)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "ssmsam"
        what = error.format_message().rstrip(".")
        click.echo(f"{where}: {what}. See {where} --help.", err=True)
        return error.exit_code
    except click.Abort:
        return STOPPED
    except ModuleNotFoundError as error:
        click.echo(f'ssmsam needs the package {error.name}: pip install "ssmsam[server]", then run it again', err=True)
        return BAD_INPUT
    return status if isinstance(status, int) else FINE


def launcher(name: str) -> Callable[[Sequence[str] | None], int]:
    """``main(arguments)`` of one command."""

    def run(arguments: Sequence[str] | None = None) -> int:
        return main([name, *(sys.argv[1:] if arguments is None else arguments)])

    return run


def path_option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """An option whose value is a path."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)


json_option = path_option("--json", "record", metavar="FILE", help="Write what was done there.")


def _each_with_its_name(arguments: Sequence[str], several: set[str]) -> list[str]:
    """``--names a b`` -> ``--names a --names b`` for these options; what follows ``--`` stays as it is."""
    found: list[str] = []
    current = ""
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[place:]]
        if argument.startswith("-"):
            current = argument if argument in several else ""
            found.append(argument)
        elif current and found[-1] != current:
            found += [current, argument]
        else:
            found.append(argument)
    return found


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


class ProgressBar(AbstractContextManager["ProgressBar"]):
    """A :data:`~ssmsam.progress.Progress` that draws one bar for each phase, one after the other.

    A context manager. Nothing is drawn where the output is not a terminal.
    """

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._at = ("", 0)

    def __call__(self, phase: str, done: int, total: int) -> None:
        last_phase, last_done = self._at
        if self._bar is None or phase != last_phase or done < last_done:
            self._close()
            self._bar = tqdm(total=total, desc=phase, disable=None)
            last_done = 0
        self._bar.update(done - last_done)
        self._at = phase, done

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
