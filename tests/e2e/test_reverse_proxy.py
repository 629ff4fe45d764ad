"""The reverse proxy of the documentation, in front of the real server: nginx below a path."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests
from sample_cases import SAMPLES
from serving import ROOT, START_SECONDS, clean_environment, free_port, start_command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nginx") is None, reason="needs nginx (apt-get install nginx-light)"),
]
GUIDE = ROOT / "docs" / "howto" / "department.md"
TIMEOUT = 120


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server as the proxy shows it, with a slash at its end."""
    home, port, outside = tmp_path_factory.mktemp("proxy"), free_port(), free_port()
    (home / "tmp").mkdir()
    (home / "studies").mkdir()
    shutil.copy(SAMPLES / "abdomen" / "ct_01.nii.gz", home / "studies")
    command = start_command(studies=home / "studies", port=port, conf={"encoder": "small", "precompute": "false"})
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--root_path", "/label"], cwd=ROOT, env=clean_environment(home), stdout=log, stderr=log
        )
    proxy = subprocess.Popen(["nginx", "-p", str(home), "-c", str(configured(home, port, outside))])
    try:
        url = f"http://127.0.0.1:{outside}/label/"
        until = time.monotonic() + START_SECONDS
        while not answers(url):
            assert time.monotonic() < until, (home / "error.log").read_text() + (home / "log").read_text()[-3000:]
            time.sleep(0.5)
        yield url
    finally:
        for process in (proxy, server):
            process.terminate()
            process.wait(timeout=60)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=TIMEOUT).status_code == 200
    except requests.ConnectionError:
        return False


def configured(home: Path, port: int, outside: int) -> Path:
    """The guide's own lines, with the ports of this test."""
    (location,) = re.findall(r"^location /label/ \{.*?^\}", GUIDE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert "127.0.0.1:8000" in location
    file = home / "nginx.conf"
    file.write_text(
        f"daemon off; pid {home}/pid; error_log {home}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {home}/body; proxy_temp_path {home}/sent;\n"
        f"fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;\n"
        f"server {{ listen 127.0.0.1:{outside};\n{location.replace('127.0.0.1:8000', f'127.0.0.1:{port}')}\n}} }}\n"
    )
    return file


@pytest.mark.parametrize("page", ["", "annotate?image=ct_01", "dashboard", "swagger", "docs"])
def test_what_a_page_loads_comes_through_the_proxy(address: str, page: str) -> None:
    shown = requests.get(urljoin(address, page), timeout=TIMEOUT)
    assert shown.status_code == 200
    loaded = [
        one for one in re.findall(r"""(?:src|href)=["']([^"'#]+)["']""", shown.text) if not one.startswith("data:")
    ]
    assert loaded
    for one in loaded:
        target = urljoin(shown.url, one)
        assert target.startswith(address), target
        assert requests.get(target, timeout=TIMEOUT).status_code == 200, target


def test_a_person_annotates_through_it(address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    if (chromium := shutil.which("chromium")) is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--use-gl=swiftshader"])
        page = browser.new_page()
        failed: list[str] = []
        page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.locator("a[href*='annotate?image=ct_01']").first.click()
        page.wait_for_function("document.querySelector('canvas')?.width > 0", timeout=TIMEOUT * 1000)
        page.wait_for_load_state("networkidle", timeout=TIMEOUT * 1000)
        assert page.url.startswith(address)
        sent = page.evaluate(
            """async () => (await fetch('activelearning/first', {
                method: 'POST', body: '{}', headers: {'Content-Type': 'application/json'}})).status"""
        )
        browser.close()
    assert sent == 200 and not failed


def test_requests_through_it_are_our_own(address: str) -> None:
    origin = address.removesuffix("/label/")
    params = {"image": "ct_01", "output": "json"}
    asked = {"params": (None, '{"label": "liver", "foreground": [[40, 64, 20]]}')}
    headers = {"Origin": origin}
    click = requests.post(f"{address}infer/sam_2d", params=params, files=asked, headers=headers, timeout=TIMEOUT)
    assert click.status_code == 200, click.text
    foreign = {"Origin": "https://elsewhere.example"}
    assert requests.post(f"{address}activelearning/first", json={}, headers=foreign, timeout=TIMEOUT).status_code == 403
