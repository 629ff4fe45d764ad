"""The requests in the documentation are ones that the server accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from ssmsam.server.clients.rest import INFERENCE, OPTIONS, SAMPLE, SUBMISSION, require_keys
from ssmsam.server.openapi import ANSWERS, ASKED, EXAMPLES, SUBMITTED, describe, operations
from ssmsam.server.routes import ROUTERS
from ssmsam.service.errors import InvalidRequest

DOCUMENTS = Path(__file__).parents[2] / "docs"
TEXT = (DOCUMENTS / "rest.md").read_text()
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


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app = FastAPI()
    for router in ROUTERS:
        app.include_router(router)
    found = app.openapi()
    describe(found)
    return found


def test_every_call_is_described_with_its_parameters_and_its_answer(document: dict[str, Any]) -> None:
    calls = list(operations(document))
    assert len(calls) > 40 and sum(method == "delete" for method, _, _ in calls) >= 10
    for method, path, operation in calls:
        assert operation["summary"] and operation["description"], (method, path)
        for parameter in operation.get("parameters", ()):
            assert parameter["description"], (method, path, parameter["name"])
        (content,) = operation["responses"]["200"]["content"].values()
        reference = content["schema"].get("$ref", "")
        if reference:
            model = document["components"]["schemas"][reference.rpartition("/")[2]]
            assert model["description"], (method, path)
        else:
            assert content["schema"] == {"type": "string", "format": "binary"}, (method, path)


def test_no_answer_is_described_for_a_call_that_is_not_ours(document: dict[str, Any]) -> None:
    """But for those of MONAI Label that stay as they are."""
    ours = {(method, path) for method, path, _ in operations(document)}
    theirs = {path for _, path in set(ANSWERS) - ours}
    assert theirs == {"/batch/infer", "/train/", "/scoring/", "/model/{model}", "/model/info/{model}"}


def test_examples_have_the_keys_that_are_described() -> None:
    for answer in ANSWERS.values():
        if answer.keys:
            assert set(answer.example) <= set(answer.keys), answer.name


def test_checkpoints_are_described_by_one_name(document: dict[str, Any]) -> None:
    assert not [path for path in document["paths"] if path.startswith(("/heads", "/starts"))]


PAGES = [
    path
    for pattern in ("README.md", "docs/**/*.md", "benchmarks/README.md", "lib/ssmsam/models/weights/*.md")
    for path in DOCUMENTS.parent.glob(pattern)
    if "_build" not in path.parts
]


def asked_for(text: str) -> Iterator[tuple[str, str, str]]:
    """Method, path and query of what curl asks for, or of what is named as ``GET /path``."""
    for call in re.findall(r"^curl [^\n]*(?:\n(?!curl|```|\n)[^\n]*)*", text, flags=re.MULTILINE):
        address = re.search(r"https?://[^/\s']+(/[^'?\s]*)\??([^'\s]*)", call)
        assert address, call
        method = re.search(r"-X (\w+)", call)
        sends = "POST" if re.search(r" (-F|-d)", call) else "GET"
        yield method[1] if method else sends, address[1], address[2]
    for span in re.findall(r"(?<!`)`([^`]+)`", text):
        if named := re.match(r"(GET|PUT|POST|DELETE) (/[\w/.-]*)\??(\S*)", span):
            yield named[1], named[2], named[3].partition("&...")[0]


def test_calls_that_the_documents_name_exist_with_their_parameters(document: dict[str, Any]) -> None:
    from monailabel.app import app

    theirs = get_openapi(title="MONAI Label", version="0", routes=app.routes)
    known = {
        (method.upper(), path): {one["name"] for one in operation.get("parameters", ())}
        for described in (theirs, document)
        for method, path, operation in operations(described)
    }
    wrong, calls = [], 0
    for page in PAGES:
        for method, path, query in asked_for(page.read_text()):
            said = path.split("/")
            fits = [
                parameters
                for (verb, template), parameters in known.items()
                if verb == method
                and len(parts := template.split("/")) == len(said)
                and all(mine == its or its.startswith("{") for mine, its in zip(said, parts, strict=True))
            ]
            keys = {pair.partition("=")[0] for pair in query.split("&") if pair}
            calls += 1
            if not any(keys <= parameters for parameters in fits):
                wrong.append((page.name, method, path, query))
    assert calls > 60 and not wrong
