"""What is changed about MONAI Label, where no other test of the server meets it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

WORKER = """
import time
from ssmsam.server.monailabel_patches import end_with_parent
end_with_parent(every_s=0.1)
print("watching", flush=True)
time.sleep(60)
"""
SERVER = f"""
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", {WORKER!r}], stdout=subprocess.PIPE, text=True)
print(worker.pid, worker.stdout.readline().strip(), flush=True)
time.sleep(60)
"""


def test_what_a_server_started_ends_when_it_is_killed() -> None:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        pid, said = server.stdout.readline().split()
        assert said == "watching"
        worker = psutil.Process(int(pid))
        time.sleep(0.3)
        assert worker.is_running()
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        worker.wait(timeout=10)
    finally:
        server.kill()
