"""The documentation site: ``make docs``. Needs no network."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "docs"
sys.path.insert(0, str(ROOT / "lib"))

os.environ["COLUMNS"] = "100"

from ssmsam import __version__  # noqa: E402
from ssmsam.cli.command import COMMANDS, ssmsam  # noqa: E402

project = "ssmsam"
author = "The ssmsam developers"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated/*.txt"]
suppress_warnings = ["myst.header"]  # cards that are included begin at their own level

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
smartquotes = False  # options have two hyphens

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"ssmsam {release}"
html_show_sphinx = False
linkcheck_ignore = [r"https?://127\.0\.0\.1.*", r"https?://.*\.example.*"]


def research_help(name: str) -> str:
    """What ``ssmsam NAME --help`` prints; the parsers of these commands are not click's."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        import_module(f"ssmsam_research.cli.{name}").main(["--help"])
    return out.getvalue()


def generate(app: object) -> None:
    """Write what the pages include and nobody writes by hand."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    for name in ("benchmark", "train"):
        (folder / f"{name}.txt").write_text(research_help(name))
    for name in COMMANDS:  # they are found by name and have none of their own
        command = ssmsam.get_command(click.Context(ssmsam), name)
        assert command is not None
        command.name = name
    notebooks = HERE / "examples"
    notebooks.mkdir(exist_ok=True)
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        shutil.copy(path, notebooks)


def setup(app: object) -> None:
    app.connect("builder-inited", generate)  # type: ignore[attr-defined]
