"""JSON from outside: whatever is accepted can be kept in a file and read again by everybody."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssmsam.json_text import DEEPEST, InvalidJson, read_json_text

NESTED = "[" * 20_000 + "]" * 20_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NESTED, "deep"),
        ('{"a":' * 20_000 + "1" + "}" * 20_000, "deep"),
        ("[" * (DEEPEST + 2) + "]" * (DEEPEST + 2), "deep"),
        ("[" * 20_000, "deep|not valid"),
        ("[NaN]", "NaN"),
        ("-Infinity", "-Infinity"),
        ("1e400", "beyond"),
        ("1e300", "beyond"),
        ("9" * 5000, "beyond"),
        ("9007199254740993", "beyond"),
        (r'{"liver \ud83d": 1}', "half a character"),
        (r'["\udc00"]', "half a character"),
        (b"\xff", "UTF-8"),
        (b"\xff\xfe\x00\xd8", "UTF-8"),
        ('{"a": 1}'.encode("utf-16").decode("latin-1"), "UTF-8"),
        ("{", "not valid"),
        ("{}{}", "not valid"),
    ],
)
def test_what_cannot_be_kept_is_refused(text: str, words: str) -> None:
    with pytest.raises(InvalidJson, match=words):
        read_json_text(text, name="params")


@pytest.mark.parametrize("text", [r'"\ud83d\ude00"', "[1.5, -2, true, null]", "9007199254740992", " ", "1e3"])
def test_what_can_be_kept_is_read(text: str) -> None:
    assert read_json_text(text, name="params") == (json.loads(text) if text.strip() else None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_bytes_of_any_unicode_encoding_are_read(encoding: str) -> None:
    assert read_json_text('{"Überlauf": 1}'.encode(encoding), name="the request's body") == {"Überlauf": 1}
    assert read_json_text('\ufeff{"a": 1}', name="params") == {"a": 1}


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_there_is_one_error(text: str | bytes) -> None:
    try:
        value = read_json_text(text, name="params")
    except InvalidJson:
        return
    assert json.loads(json.dumps(value, allow_nan=False).encode()) == value
