from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints import infer
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelError, MONAILabelException

from ssmsam.interactive.request import InvalidPrompt
from ssmsam.reading import UnreadableVolume
from ssmsam.server import monailabel_patches as patches
from ssmsam.server.errors import install_handlers
from ssmsam.server.routes import ROUTERS, proxy
from ssmsam.server.routes.common import the_app
from ssmsam.service.errors import InvalidRequest, NotKnown


class Remote(BaseHTTPRequestHandler):
    """A DICOMweb server that tells what it was asked."""

    asked: list[dict[str, Any]]
    delay = 0.0
    elsewhere = ""
    """Where it sends those who ask, with ``status``."""
    status = 200
    stumbles = 0
    """The status of the first answer."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.asked.append({"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body})
        time.sleep(self.delay)
        self.send_response(self.stumbles if self.stumbles and len(self.asked) == 1 else self.status)
        if self.elsewhere:
            self.send_header("Location", self.elsewhere)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Set-Cookie", "theirs=1")
        self.end_headers()
        self.wfile.write(b"[]")

    do_POST = do_GET

    def log_message(self, *_: Any) -> None:
        return


@contextmanager
def listening() -> Iterator[tuple[type[Remote], str]]:
    """A server and its "host:port"."""

    class Fresh(Remote):
        asked: list[dict[str, Any]] = []  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Fresh, f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Remote]]:
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with listening() as (found, address):
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", f"http://{address}/dicom-web")
        yield found


@pytest.fixture
def other() -> Iterator[tuple[type[Remote], str]]:
    """A server that the proxy has nothing to do with, and its address."""
    with listening() as found:
        yield found


@pytest.fixture
def web() -> TestClient:
    app = FastAPI()
    app.include_router(proxy.router)
    app.dependency_overrides[the_app] = lambda: None  # no series is opened here
    install_handlers(app)
    return TestClient(app, raise_server_exceptions=False)


def test_the_proxy_passes_on_what_was_asked(web: TestClient, remote: type[Remote]) -> None:
    answer = web.get(
        "/proxy/dicom/qido/studies?00100020=PAT002&includefield=a&includefield=b&PatientName=A%20B*",
        headers={"Accept": "application/dicom+json", "Cookie": "secret=1", "Authorization": "Bearer ours"},
    )
    assert answer.status_code == 200
    assert answer.json() == []
    assert answer.headers["content-type"] == "application/dicom+json"
    assert "set-cookie" not in answer.headers
    (asked,) = remote.asked
    path, _, query = asked["path"].partition("?")
    assert path == "/dicom-web/studies"
    assert query == "00100020=PAT002&includefield=a&includefield=b&PatientName=A%20B*", (
        "Orthanc needs the bare asterisk"
    )
    assert asked["headers"]["Accept"] == "application/dicom+json"
    assert not {"Cookie", "Authorization"} & set(asked["headers"])


def test_the_proxy_stores(web: TestClient, remote: type[Remote]) -> None:
    kind = "multipart/related; type=application/dicom; boundary=x"
    answer = web.post("/proxy/dicom/stow/studies", content=b"--x--", headers={"Content-Type": kind})
    assert answer.status_code == 200
    (asked,) = remote.asked
    assert (asked["method"], asked["path"], asked["body"]) == ("POST", "/dicom-web/studies", b"--x--")
    assert asked["headers"]["Content-Type"] == kind


@pytest.mark.parametrize(
    "path", ["%2e%2e/system", "%252e%252e/system", "studies/%2e%2e/%2e%2e/system", "a/..%5c..%5csystem"]
)
def test_the_proxy_stays_inside(web: TestClient, remote: type[Remote], path: str) -> None:
    for prefix in ("/proxy/dicom/x/", "/proxy/dicom/wado/x/"):
        answer = web.get(prefix + path)
        assert answer.status_code in (404, 422)
    assert remote.asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_proxy_follows_nobody_elsewhere(
    web: TestClient, remote: type[Remote], other: tuple[type[Remote], str], status: int, method: str
) -> None:
    remote.status, remote.elsewhere = status, f"http://{other[1]}/dicom-web/studies"
    answer = web.request(method, "/proxy/dicom/qido/studies", follow_redirects=False)
    assert answer.status_code == status
    assert "location" not in answer.headers, "the viewer is not sent there either"
    assert len(remote.asked) == 1
    assert other[0].asked == []


@pytest.mark.parametrize("service", ["wado/", "qido/", "stow/", ""])
@pytest.mark.parametrize(
    "path",
    ["http://{0}/studies", "//{0}/studies", "@{0}/studies", "%5c%5c{0}/studies", "studies%3f@{0}", "%0d%0ax:{0}"],
)
def test_the_proxy_cannot_be_pointed_elsewhere(
    web: TestClient, remote: type[Remote], other: tuple[type[Remote], str], service: str, path: str
) -> None:
    named = {"Host": other[1], "X-Forwarded-Host": other[1], "Forwarded": f"host={other[1]}"}
    web.get(f"/proxy/dicom/{service}{path.format(other[1])}", params={"url": f"http://{other[1]}/"}, headers=named)
    assert other[0].asked == []
    for asked in remote.asked:
        assert asked["path"].startswith("/dicom-web/")
        assert other[1] not in "".join(asked["headers"].values())


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("POST", 1)])
def test_what_only_reads_is_asked_for_again(
    web: TestClient, remote: type[Remote], monkeypatch: pytest.MonkeyPatch, method: str, times: int, status: int
) -> None:
    monkeypatch.setattr(remote, "stumbles", status)
    answer = web.request(method, "/proxy/dicom/wado/studies/1.2/metadata")
    assert (answer.status_code, len(remote.asked)) == (200 if times == 2 else status, times)


def test_the_proxy_gives_up(web: TestClient, remote: type[Remote], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.2)
    monkeypatch.setattr(remote, "delay", 1.0)
    assert web.get("/proxy/dicom/wado/studies").status_code == 504


def test_a_server_that_is_away(web: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", "http://127.0.0.1:9/dicom-web")
    answer = web.get("/proxy/dicom/wado/studies")
    assert answer.status_code == 502
    assert "127.0.0.1" not in answer.text


def test_a_stock_route_that_moved_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = APIRouter()
    moved.post("/v2/infer/{model}")(lambda: None)
    monkeypatch.setattr(infer.router, "routes", moved.routes)
    with pytest.raises(RuntimeError, match=r"POST /v2/infer/\{model\}"):
        patches.replace_routes(FastAPI(), ROUTERS)


@pytest.mark.parametrize("copied", [True, False])
def test_the_stock_route_is_gone_wherever_fastapi_keeps_it(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older versions copy a router's routes into the app, newer ones look into the router."""
    stock = APIRouter()

    @stock.post("/thing/{name}")
    async def old(name: str) -> str:
        return "old"

    app = FastAPI()
    if copied:
        app.router.routes.extend(stock.routes)
    else:
        app.include_router(stock)
    monkeypatch.setattr(patches, "STOCK", (SimpleNamespace(router=stock),))
    ours = APIRouter()

    @ours.post("/thing/{name}")
    def new(name: str) -> str:
        return "new"

    patches.replace_routes(app, [ours])
    assert TestClient(app).post("/thing/x").json() == "new"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (NotKnown("model", "x", ["a", "b"]), 404, "known: a, b"),
        (InvalidRequest("so not"), 422, "so not"),
        (InvalidPrompt("place a point"), 422, "place a point"),
        (UnreadableVolume("tilted"), 422, "tilted"),
        (ImageNotFoundException("Image x not found"), 404, "Image x not found"),
        (MONAILabelException(MONAILabelError.INVALID_INPUT, "wrong"), 422, "wrong"),
        (MONAILabelException(MONAILabelError.SERVER_ERROR, "broken"), 500, "broken"),
        (OSError("/home/somebody/patient_42"), 500, "OSError"),
    ],
)
def test_errors_become_json(error: Exception, status: int, said: str) -> None:
    app = FastAPI()

    @app.get("/")
    def fail() -> None:
        raise error

    install_handlers(app)
    answer = TestClient(app, raise_server_exceptions=False).get("/")
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert "patient_42" not in answer.text
