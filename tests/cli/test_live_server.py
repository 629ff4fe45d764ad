import os
import signal
from pathlib import Path

import pytest
import requests

from ssmsam.cli.live_server import ServerFailed, live_server

ROOT = Path(__file__).resolve().parents[2]
APP, SAMPLES = ROOT / "ssmsam_app", ROOT / "sample-datasets" / "abdomen"


@pytest.mark.e2e
def test_a_server_that_refuses_to_start_is_reported_with_its_reason(tmp_path):
    with (
        pytest.raises(ServerFailed, match="no_such_key"),
        live_server(app=APP, studies=tmp_path, conf={"no_such_key": "1"}),
    ):
        pytest.fail("it must not start")


@pytest.mark.e2e
def test_a_server_answers_inside_the_block_and_is_gone_after_it(tmp_path, random_small, monkeypatch):
    conf = {"store": str(tmp_path / "store"), "weights": str(random_small.weights)}
    environment = {"SSMSAM_UNVERIFIED_WEIGHTS": "1"}
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "ct_01.nii.gz").symlink_to(SAMPLES / "ct_01.nii.gz")
    monkeypatch.chdir(tmp_path)  # a folder may be named from where the command runs
    with live_server(app=APP, studies=Path("studies"), conf=conf, environment=environment) as server:
        assert "sam_2d" in requests.get(f"{server.url}/info/", timeout=30).json()["models"]
        assert server.start_s > 0
        assert server.memory_mb()["peak"] > 100
        os.kill(server.pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(server.pid, signal.SIGTERM)
