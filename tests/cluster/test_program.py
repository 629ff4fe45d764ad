"""A program on a worker: its result, its error, and its end when nobody waits for it any more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssmsam.cluster import Program, ProgramFailed, open_engine, run_elsewhere
from ssmsam.cluster.engine import InProcess

pytest.importorskip("distributed")
from dask_processes import Processes, wait


def compiled(*arguments: str) -> Program:
    return Program(module="timeit", arguments=("-n1", "-r1", *arguments), environment={"SEEN": "yes"})


def test_its_result_comes_back(tmp_path: Path) -> None:
    program = Program(module="zipfile", arguments=("-c", "{out}", __file__))
    with pytest.raises(UnicodeDecodeError):  # it is text
        run_elsewhere(InProcess(), program)
    said = "import os; open(os.sys.argv[-1] if 0 else r'{out}', 'w').write(os.environ['SEEN'])"
    assert run_elsewhere(InProcess(), compiled(said)) == "yes"


def test_an_error_brings_its_last_lines(cluster: Processes) -> None:
    with open_engine(cluster=cluster.address) as engine, pytest.raises(ProgramFailed, match="no such thing"):
        run_elsewhere(engine, compiled("raise ValueError('no such thing')"))


def test_another_version_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"what asked for this 9\.9\.9: install the same"):
        run_elsewhere(InProcess(), Program(module="this", arguments=(), version="9.9.9"))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes")
def test_it_ends_with_the_client(cluster: Processes, tmp_path: Path) -> None:
    beat = tmp_path / "beat"
    alive = (
        f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.05)"
    )
    (tmp_path / "client.py").write_text(
        "from ssmsam.cluster import Program, open_engine, run_elsewhere\n"
        f"with open_engine(cluster={cluster.address!r}) as engine:\n"
        f"    run_elsewhere(engine, Program(module='timeit', arguments=('-n1', '-r1', {alive!r})))\n"
    )
    client = subprocess.Popen(
        [sys.executable, str(tmp_path / "client.py")], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    wait(beat.exists)
    client.kill()
    client.wait()
    wait(lambda: time.time() - float(beat.read_text() or 0) > 1)
