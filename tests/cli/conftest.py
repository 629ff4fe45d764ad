from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

APPS = Path(__file__).resolve().parents[2] / "apps"


@pytest.fixture
def load_app():
    """Load a program of apps/ by name, to call its ``main(arguments)``."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"ssmsam_apps_{name}", APPS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
