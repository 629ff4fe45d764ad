"""What the site's own build does not see: links of documents that are read where they lie, and what documents name."""

from __future__ import annotations

import contextlib
import io
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import numpy as np
import pytest

from ssmsam.cli.command import COMMANDS, RESEARCH, ssmsam
from ssmsam.server.configuration import Configuration

ROOT = Path(__file__).parents[1]
READ_IN_PLACE = [
    *ROOT.glob("*.md"),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "sample-datasets")),
    *(path for path in ROOT.glob("docs/**/*.md") if "_build" not in path.parts),
]


@pytest.mark.parametrize("path", READ_IN_PLACE, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


# What the documents name has to be there: commands and their options, targets of make, routes, settings, files.

SHOWN = {
    path: path.read_text()
    for path in [*READ_IN_PLACE, *ROOT.glob("lib/ssmsam/models/weights/*.md")]
    if path.name != "CHANGELOG.md"  # which tells of what is gone, too
}
OF_OTHERS = {"--version", "--index-url", "--nthreads"}
"""Options of pip and of Dask, and the one of all commands."""


def blocks(text: str) -> list[str]:
    """Fenced blocks and those that are indented, with lines that go on joined."""
    fenced = re.findall(r"^```(?!python|bibtex|\{)\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"(?:^|\n)\n((?: {4}\S.*\n)+)", rest)
    return [re.sub(r"\s*\\\n\s*", " ", block) for block in (*fenced, *indented)]


def spans(text: str) -> list[str]:
    """What stands in backticks in the running text."""
    rest = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"``?([^`]+)``?", rest)]


def commands(text: str, program: str) -> list[list[str]]:
    """The arguments of each call of ``program``, up to a comment, a pipe, or what is passed on after ``--``."""
    lines = [*(line for block in blocks(text) for line in block.splitlines()), *spans(text)]
    found = []
    for line in lines:
        call = re.search(rf"(?:^|[=&(] ?|\s){program}\s*([^\s#|&;]+(?:\s+[^\s#|&;]+)*)", line.partition(" #")[0])
        if call and not line.lstrip().startswith(("podman", "docker", "#")):
            found.append(call[1].partition(" -- ")[0].split())
    return found


@cache
def options_of(name: str, step: str) -> frozenset[str]:
    """The options of ``ssmsam NAME``, of the parser itself."""
    if name in RESEARCH:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
            import_module(f"ssmsam_research.cli.{name}").parse([step, "--help"] if step else ["--help"])
        return frozenset(re.findall(r"--[a-z][a-z-]*", out.getvalue()))
    command = ssmsam.get_command(click.Context(ssmsam), name)
    assert command is not None
    return frozenset({"--help", *(option for parameter in command.params for option in parameter.opts)})


def steps(name: str) -> list[str]:
    """The protocols of ``benchmark``, the steps of ``train``, or just the command."""
    if name not in RESEARCH:
        return [""]
    source = (ROOT / "lib" / "ssmsam_research" / "cli" / f"{name}.py").read_text()
    return re.findall(r'add_parser\(\s*"([a-z-]+)"', source)


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_commands_and_options_exist() -> None:
    wrong = []
    for path, text in SHOWN.items():
        calls = commands(text, r"(?:ssmsam |(?:python )?apps/(?=\w+\.py))")
        for name, *words in calls:
            name = name.removesuffix(".py").replace("pretrain", "train")
            if not re.fullmatch("[a-z]+", name):  # a placeholder, or an option of all
                continue
            step = words[0] if name in RESEARCH and words and words[0] in steps(name) else ""
            given = {word.partition("=")[0].strip("[]") for word in words if word.startswith("--")}
            if name not in COMMANDS or given - options_of(name, step):
                wrong.append((names(path), name, *words))
    assert not wrong


def test_options_that_are_named_alone_exist() -> None:
    known = {option for name in COMMANDS for step in steps(name) for option in options_of(name, step)}
    said = {span.partition(" ")[0].partition("=")[0] for text in SHOWN.values() for span in spans(text)}
    assert not {word for word in said if word.startswith("--") and word != "--"} - known - OF_OTHERS


def test_targets_of_make_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *\??=", makefile, flags=re.MULTILINE))
    for path, text in SHOWN.items():
        for target, *words in commands(text, "make "):
            assert target in targets or not target.islower(), (names(path), target)
            assert {word.partition("=")[0] for word in words if "=" in word} <= variables, (names(path), words)


def test_settings_are_those_of_the_server() -> None:
    settings = (ROOT / "docs" / "reference" / "settings.md").read_text()
    table = settings.partition("## Environment")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE)) == set(Configuration.model_fields)
    said = {key for text in SHOWN.values() for key in re.findall(r"--conf (\w+)", text)}
    assert said - {"KEY"} <= set(Configuration.model_fields)


def test_environment_variables_are_read_somewhere() -> None:
    from monailabel import config

    read = "".join(path.read_text() for path in ROOT.glob("lib/**/*.py")) + Path(config.__file__).read_text()
    said = {name for text in SHOWN.values() for name in re.findall(r"\b(?:SSMSAM|MONAI_LABEL)_[A-Z_]+[A-Z]\b", text)}
    assert len(said) > 10 and not {name for name in said if name not in read}


def test_files_of_the_repository_exist() -> None:
    rooms = "lib|tests|docs|benchmarks|apps|examples|ssmsam_app|sample-datasets|fewshot|server|cli"
    pattern = re.compile(rf"({rooms})/[\w./*-]+|test_\w+\.py")
    said = {span for text in SHOWN.values() for span in spans(text) if pattern.fullmatch(span)}
    places = (ROOT, ROOT / "lib" / "ssmsam", ROOT / "lib", ROOT / "tests")
    known = {one.name for one in ROOT.glob("tests/**/test_*.py")}
    assert len(said) > 50
    assert not [one for one in said if one not in known and not any([*place.glob(one)] for place in places)]


def test_addresses_of_others_are_whole() -> None:
    """Whether they answer is asked by ``make docs-links``."""
    links = {link for text in SHOWN.values() for link in re.findall(r"\]\(([^)\s]+://[^)\s]*)\)", text)}
    assert len(links) > 3
    for link in links:
        parts = urlsplit(link)
        assert parts.scheme == "https" and "." in parts.netloc and not link.endswith((".", ",")), link


def test_modules_that_are_named_exist() -> None:
    pattern = re.compile(r"ssmsam(_research)?(\.\w+)+")
    said = {span for text in SHOWN.values() for span in spans(text) if pattern.fullmatch(span)}
    assert said and not [name for name in said if find_spec(name) is None]


PYTHON = [
    (path, code)
    for path in (ROOT / "README.md", ROOT / "docs" / "start" / "python.md")
    for code in re.findall(r"^```python\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "code"), PYTHON, ids=lambda one: names(one) if isinstance(one, Path) else "")
def test_examples_in_python_run(path: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample-datasets").symlink_to(ROOT / "sample-datasets")
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    exec(compile(code, str(path), "exec"), known)
    found = known.get("prediction") or known["volume"]
    assert np.any(found.label_map.array)
