"""A server that wants a login: who has a valid token works as before, nobody else gets anything."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from sample_cases import CT, SLICE_DICE, Truth, copy_of, dice
from serving import Server
from viewers import TIMEOUT, read_mask

pytest.importorskip("cryptography", reason="the realm signs its tokens with cryptography")

from token_realm import TokenRealm

USER, ANNOTATOR = "monailabel-user", "monailabel-annotator"


@pytest.fixture(scope="module")
def realm() -> Iterator[TokenRealm]:
    running = TokenRealm(password="sesame", roles=(USER, ANNOTATOR))
    yield running
    running.close()


@pytest.fixture(scope="module")
def guarded(realm: TokenRealm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    studies = tmp_path_factory.mktemp("guarded-studies")
    copy_of(CT, studies)
    running = Server(
        studies=studies,
        home=tmp_path_factory.mktemp("guarded-home"),
        conf={"precompute": "false"},
        environment={"MONAI_LABEL_AUTH_ENABLE": "true", "MONAI_LABEL_AUTH_REALM_URI": realm.url},
    )
    try:
        yield running.wait_until_it_answers()
    finally:
        running.kill()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_from_the_password_to_an_annotated_slice(guarded: Server, ct: Truth) -> None:
    assert requests.get(f"{guarded.url}/auth/", timeout=TIMEOUT).json()["enabled"] is True
    login = {"username": "reader-a", "password": "sesame", "grant_type": "password"}
    token = requests.post(f"{guarded.url}/auth/token", data=login, timeout=TIMEOUT).json()["access_token"]
    mine = bearer(token)
    who = requests.get(f"{guarded.url}/auth/token/valid", headers=mine, timeout=TIMEOUT)
    assert who.json()["username"] == "reader-a"

    info = requests.get(f"{guarded.url}/info/", headers=mine, timeout=TIMEOUT)
    assert "sam_2d" in info.json()["models"]
    click = ct.click("left kidney")
    prompt = {"foreground": [click], "background": [], "label": "left kidney"}

    def run(model: str) -> requests.Response:
        return requests.post(
            f"{guarded.url}/infer/{model}", params={"image": CT, "output": "image"}, headers=mine,
            files={"params": (None, json.dumps(prompt))}, timeout=TIMEOUT,
        )  # fmt: skip

    mask = read_mask(run("sam_2d").content, "mask.nrrd")[click[2]] > 0
    assert dice(mask, ct.mask("left kidney")[click[2]]) > SLICE_DICE
    assert run("accept_slice").status_code == 200
    known = requests.get(f"{guarded.url}/datastore/annotations", params={"image": CT}, headers=mine, timeout=TIMEOUT)
    assert known.json()["partial"]["slices"]["left kidney"]["annotated"] == [click[2]]


def test_nobody_reviews_their_own_work(guarded: Server, realm: TokenRealm, ct: Truth) -> None:
    anna, bert = (bearer(realm.token(USER, ANNOTATOR, preferred_username=name)) for name in ("anna", "bert"))
    click = ct.click("left kidney")  # the one that is annotated already: a study is finished with all its labels
    prompt = {"foreground": [click], "label": "left kidney", "client_id": "page"}

    def post(path: str, who: dict[str, str], **params: str) -> requests.Response:
        form = {"params": (None, json.dumps(prompt))} if path.startswith("/infer") else None
        query = {"image": CT, "client_id": "page", **params}
        return requests.post(f"{guarded.url}{path}", params=query, headers=who, files=form, timeout=TIMEOUT)

    prompt["confirm"] = True
    for model in ("sam_3d", "accept_slice", "finish_volume"):
        assert post(f"/infer/{model}", anna, output="json").status_code == 200
    accepted = {"verdict": "accept"}
    own = post("/studies/review", anna, **accepted)
    assert (own.status_code, "second person" in own.json()["detail"]) == (403, True)
    looking = bearer(realm.token(USER, preferred_username="carl"))
    assert post("/studies/review", looking, **accepted).status_code == 403
    given = post("/studies/review", bert, **accepted)
    assert (given.json()["state"], given.json()["review"]["client"]) == ("finished", "bert")


ROUTES = [
    ("GET", "/info/"),
    ("POST", "/activelearning/first"),
    ("GET", f"/datastore/image?image={CT}"),
    ("GET", f"/datastore/annotations?image={CT}"),
    ("PUT", f"/datastore/label?image={CT}"),
    ("POST", f"/infer/sam_2d?image={CT}"),
    ("POST", "/train/fewshot_decoder"),
    ("GET", "/heads"),
    ("DELETE", "/heads/any"),
    ("GET", "/starts"),
    ("GET", "/cache"),
    ("DELETE", "/cache"),
    ("POST", "/starts/roll_back"),
    ("POST", f"/studies/review?image={CT}&verdict=accept"),
    ("GET", "/studies/dataset"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_nothing_without_a_valid_token(guarded: Server, realm: TokenRealm, method: str, path: str) -> None:
    stranger = TokenRealm(password="", roles=())
    stranger.close()
    tokens = [None, "no token", stranger.token(USER, ANNOTATOR), realm.token(USER, ANNOTATOR, exp=time.time() - 60)]
    for token in tokens:
        headers = bearer(token) if token else {}
        answer = requests.request(method, guarded.url + path, headers=headers, timeout=TIMEOUT)
        assert answer.status_code == 401, answer.text


def test_who_may_only_look_cannot_annotate(guarded: Server, realm: TokenRealm, tmp_path: Path) -> None:
    mine = bearer(realm.token(USER))
    assert requests.get(f"{guarded.url}/info/", headers=mine, timeout=TIMEOUT).status_code == 200
    (tmp_path / "label.bin").write_bytes(b"")
    with (tmp_path / "label.bin").open("rb") as file:
        answer = requests.put(
            f"{guarded.url}/datastore/label", params={"image": CT}, headers=mine,
            files={"label": ("label.bin", file)}, timeout=TIMEOUT,
        )  # fmt: skip
    assert answer.status_code == 403, answer.text


OPEN = ("/auth/",)
"""Calls for who has no login yet."""


def test_every_other_route_asks_who_is_there(guarded: Server) -> None:
    document = requests.get(f"{guarded.url}/openapi.json", timeout=TIMEOUT).json()
    calls = [(path, method) for path, known in document["paths"].items() for method in known]
    calls += [
        ("/ohif/", "get"),
        ("/ohif/index.html", "get"),
        ("/proxy/dicom/studies", "get"),
        ("/proxy/dicom/", "post"),
    ]
    assert len(calls) > 40
    let_in = []
    for path, method in calls:
        if path.startswith(OPEN):
            continue
        address = guarded.url + re.sub(r"\{[^}]*\}", "x", path)
        answer = requests.request(method, address, timeout=TIMEOUT, allow_redirects=False)
        if answer.status_code not in (401, 403):
            let_in.append((method, path, answer.status_code))
    assert let_in == []
