"""What the OpenAPI document says of the JSON that routes take as text, with a request for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ssmsam.server.clients.rest import INFERENCE, OPTIONS, SAMPLE, SUBMISSION, Key, object_schema

_LIVER = {"label": "liver", "client_id": "reader-a"}
EXAMPLES: dict[str, dict[str, Any]] = {
    "sam_2d": {**_LIVER, "foreground": [[120, 88, 31]], "background": [[60, 90, 31]]},
    "sam_3d": {**_LIVER, "roi": [80, 150, 60, 120, 31, 31], "z_range": "20-50"},
    "fewshot": {"labels": ["liver"], "client_id": "reader-a", "adapt": True},
    "ssm_sam": {"labels": ["liver"], "client_id": "reader-a", "budget_s": 30},
    "uncertainty_map": {**_LIVER},
    "accept_slice": {**_LIVER, "slice": 31},
    "empty_slice": {**_LIVER, "slice": 12},
    "withdraw_slice": {**_LIVER, "slice": 31},
    "undo": {"client_id": "reader-a"},
    "finish_volume": {"client_id": "reader-a", "confirm": True},
}
"""A request for each model: its ``params``."""

SUBMITTED = {
    "label_info": [{"name": "liver", "idx": 1}],
    "client_id": "reader-a",
    "partial": {"slices": {"liver": {"annotated": [31], "empty": [5]}}},
}
ASKED = {"k": 3, "labels": ["liver"], "client_id": "reader-a"}


def describe_requests(document: dict[str, Any]) -> None:
    """Let an OpenAPI document describe every key of ``params``, and show a request for each model."""
    _describe(document, "post", "/infer/{model}", {**INFERENCE, **OPTIONS}, EXAMPLES)
    _describe(document, "put", "/datastore/label", SUBMISSION, {"submission": SUBMITTED})
    _describe_json(document, "/activelearning/{strategy}", SAMPLE, ASKED)


def _describe(
    document: dict[str, Any], method: str, path: str, keys: Mapping[str, Key], examples: Mapping[str, Any]
) -> None:
    """The form field ``params`` holds JSON as text."""
    form = document["paths"][path][method]["requestBody"]["content"]["multipart/form-data"]
    schema = form["schema"]
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    schema["properties"]["params"] |= {
        "description": "A JSON object. " + " ".join(f"`{name}`: {key.about}" for name, key in keys.items()),
        "contentMediaType": "application/json",
        "contentSchema": object_schema(keys),
        "examples": [_text(example) for example in examples.values()],
    }
    form["examples"] = {name: {"value": {"params": _text(example)}} for name, example in examples.items()}


def _describe_json(document: dict[str, Any], path: str, keys: Mapping[str, Key], example: Any) -> None:
    content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    content["schema"] = object_schema(keys)
    content["example"] = example


def _text(value: Any) -> str:
    return json.dumps(value)
