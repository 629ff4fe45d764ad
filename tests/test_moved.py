"""Old names of modules."""

from __future__ import annotations

import importlib

import pytest

from ssmsam.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_module_is_found_under_its_old_name_with_a_warning(old: str, new: str) -> None:
    module = importlib.import_module(new)
    spec = module.__spec__
    assert spec is not None
    with pytest.warns(DeprecationWarning, match=f"is {new} now"):
        importlib.import_module(old)
    assert importlib.import_module(old) is module
    assert module.__name__ == new and module.__spec__ is not None and module.__spec__.name == new


def test_a_name_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"ssmsam\.imaging\.nothing"):
        importlib.import_module("ssmsam.imaging.nothing")
