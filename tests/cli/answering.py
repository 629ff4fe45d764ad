"""What a server of another process says once it is up."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import requests


def answer(url: str, server: subprocess.Popen[bytes], log: Path, *, patience_s: float = 300) -> dict:
    """Its JSON. Fails with the end of the log when the process ends first, or says nothing for so long."""
    until = time.monotonic() + patience_s
    while time.monotonic() < until and server.poll() is None:
        try:
            return requests.get(url, timeout=10).json()
        except requests.RequestException:
            time.sleep(0.5)
    pytest.fail(f"no answer: {log.read_text()[-3000:]}")
