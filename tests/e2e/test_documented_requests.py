"""The requests of docs/rest.md, run from top to bottom as they stand there, against the real server."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from sample_cases import CT, copy_of
from serving import ROOT, Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REQUESTS = [
    call.strip()
    for block in re.findall(r"^```\n(curl.*?)^```", (ROOT / "docs" / "rest.md").read_text(), re.DOTALL | re.MULTILINE)
    for call in re.split(r"\n(?=curl)", block)
]
YOURS = ("6f1d2c3b4a59", "/NAME", "http://other", "1.2.840.5", "<zlib", "verdict=send_back", "check_if_running")
"""What a reader has to put in, or what answers with success only now and then."""


def test_they_are_answered_with_success(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl: apt-get install curl")
    studies = tmp_path / "studies"
    studies.mkdir()
    copy_of(CT, studies)
    server = Server(studies=studies, home=tmp_path / "home", conf={"encoder": "small"})
    try:
        server.wait_until_it_answers().wait_until_warm()
        asked = [one for one in REQUESTS if not any(word in one for word in YOURS)]
        assert len(asked) > 25
        for request in asked:
            line = request.replace("http://127.0.0.1:8000", server.url)
            line = line.replace("curl ", "curl -sS --fail-with-body ", 1)
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=300)
            files = [tmp_path / name for name in re.findall(r" -o (\S+)", line)]
            said = done.stdout + "".join(file.read_text(errors="replace")[:300] for file in files if file.is_file())
            assert done.returncode == 0, f"{request}\n{said}{done.stderr}"
    finally:
        server.kill()
