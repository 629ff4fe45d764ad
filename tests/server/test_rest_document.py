"""The requests in the documentation are ones that the server accepts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ssmsam.server.clients.rest import INFERENCE, OPTIONS, SAMPLE, SUBMISSION, require_keys
from ssmsam.server.openapi import ASKED, EXAMPLES, SUBMITTED
from ssmsam.service.errors import InvalidRequest

TEXT = (Path(__file__).parents[2] / "docs" / "rest.md").read_text()
CALLS = re.findall(r"params=(\{.*?\})'[^']*'http[^?]*?/(infer/\w+|datastore/label)\?", TEXT, re.DOTALL)


def test_there_is_a_request_for_each_model_but_the_map() -> None:
    assert {path.removeprefix("infer/") for _, path in CALLS} >= set(EXAMPLES) - {"uncertainty_map", "ssm_sam"}


@pytest.mark.parametrize(("params", "path"), CALLS)
def test_documented_requests_have_known_keys(params: str, path: str) -> None:
    valid = {**INFERENCE, **OPTIONS} if path.startswith("infer") else SUBMISSION
    require_keys(json.loads(params), valid, where="params")


def test_published_examples_have_known_keys() -> None:
    for example in EXAMPLES.values():
        require_keys(example, {**INFERENCE, **OPTIONS}, where="params")
    require_keys(SUBMITTED, SUBMISSION, where="params")
    require_keys(ASKED, SAMPLE, where="the request")


def test_the_nearest_key_is_named() -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'foreground'"):
        require_keys({"foregroud": []}, INFERENCE, where="params")
    with pytest.raises(InvalidRequest, match="known: client_id"):
        require_keys({"qqqq": 1}, ["client_id"], where="params")
