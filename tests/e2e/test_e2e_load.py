"""Several annotators at one server, as the benchmark lets them work; and that the benchmark notices what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sample_cases import CT, SAMPLES, copy_of
from serving import Server

from ssmsam.cli.live_server import LiveServer
from ssmsam_research.labelled_sets import open_set
from ssmsam_research.protocols.load import LoadAnnotator, LoadProtocol, Tally, Work, run_load

QUICK = LoadProtocol(annotators=3, seconds=6, pause_s=(0.1, 0.3), train=False)


@pytest.fixture(scope="module")
def work() -> list[Work]:
    data = open_set(SAMPLES / "abdomen", label_names={1: "liver", 2: "spleen"}, only=[CT], organs=["liver", "spleen"])
    volume, labels = data.cases[0].read()
    return [Work(CT, label, volume, truth) for label, truth in data.targets(labels)]


@pytest.mark.faults
def test_everybody_gets_their_own_answers(start: Callable[..., Server], work: list[Work], tmp_path: Path) -> None:
    studies = tmp_path / "studies"
    studies.mkdir()
    copy_of(CT, studies)
    server = start(studies=studies, conf={"precompute": "false"}).wait_until_it_answers()
    found = run_load(LiveServer(server.url, server.pid, 0.0, server.log), work, QUICK)
    assert found["errors"] == {} and found["wrong"] == []
    assert found["routes"]["POST /infer/sam_2d"]["n"] >= 3 and found["routes"]["GET /info/"]["n"] >= 3
    assert found["memory_mb"]["peak"] >= found["memory_mb"]["first"] > 100


@pytest.fixture
def confused() -> Iterator[str]:
    """A server that mixes up its clients."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps({"partial": {"slices": {"liver": {"annotated": [1, 2]}}}}).encode()
            self.send_response(200 if "annotations" in self.path else 500)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_somebody_elses_slices_and_errors_are_noticed(confused: str, work: list[Work]) -> None:
    tally = Tally()
    LoadAnnotator(confused, work[0], tally, QUICK, number=0, until=0.0).check()
    assert tally.ask("GET /info/", "GET", f"{confused}/info/") is None
    assert tally.ask("GET /nobody/", "GET", "http://127.0.0.1:9/") is None
    found = tally.as_json()
    assert "annotated [1, 2], not []" in found["wrong"][0]
    assert [kind.split()[2] for kind in found["errors"]] == ["500", "ConnectionError"]
    assert found["routes"]["GET /datastore/annotations"]["n"] == 1
