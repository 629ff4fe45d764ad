"""What pages of other sites get, and what pages of ours load."""

from __future__ import annotations

import re

import pytest
import requests
from serving import Server

TIMEOUT = 60
ELSEWHERE = {"Origin": "https://elsewhere.example"}


@pytest.mark.parametrize("page", ["/swagger", "/docs"])
def test_the_reference_loads_everything_from_the_server(server: Server, page: str) -> None:
    shown = requests.get(server.url + page, timeout=TIMEOUT)
    assert shown.status_code == 200 and shown.headers["content-type"].startswith("text/html")
    loaded = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)["']|url: ["']([^"']+)["']""", shown.text)
    addresses = [first or second for first, second in loaded]
    assert len(addresses) >= 2 and not any("//" in address for address in addresses)
    for address in addresses:
        assert requests.get(server.url + address, timeout=TIMEOUT).status_code == 200, address


@pytest.mark.parametrize("name", ["absent.js", "..%2Fcore.py", "%2e%2e/core.py"])
def test_nothing_else_is_served_with_the_reference(server: Server, name: str) -> None:
    assert requests.get(f"{server.url}/reference-files/{name}", timeout=TIMEOUT).status_code == 404


def test_a_page_of_another_site_reads_and_changes_nothing(server: Server) -> None:
    read = requests.get(f"{server.url}/info/", headers=ELSEWHERE, timeout=TIMEOUT)
    assert "access-control-allow-origin" not in read.headers
    asked = requests.options(
        f"{server.url}/datastore/label",
        headers={**ELSEWHERE, "Access-Control-Request-Method": "PUT"},
        timeout=TIMEOUT,
    )
    assert "access-control-allow-origin" not in asked.headers
    for method in ("post", "put", "delete"):
        sent = requests.request(method, f"{server.url}/train/fewshot_decoder", headers=ELSEWHERE, timeout=TIMEOUT)
        assert sent.status_code == 403 and "MONAI_LABEL_CORS_ORIGINS" in sent.json()["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "{server}"},
        {"Origin": "https://labels.hospital.example", "X-Forwarded-Host": "labels.hospital.example"},
        {"Origin": "https://labels.hospital.example", "Sec-Fetch-Site": "same-origin"},
    ],
)
def test_programs_and_our_own_pages_are_answered(server: Server, headers: dict[str, str]) -> None:
    mine = {name: value.format(server=server.url) for name, value in headers.items()}
    answer = requests.post(f"{server.url}/activelearning/first", json={}, headers=mine, timeout=TIMEOUT)
    assert answer.status_code == 200
