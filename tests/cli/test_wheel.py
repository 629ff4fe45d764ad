"""What `pip install` of the wheel brings: everything that a server and the demo need, without the clone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from answering import answer

from ssmsam.cli.live_server import free_port

ROOT = Path(__file__).parents[2]
LARGEST = 25 * 10**6
NOT_DATA = (".py", ".pyc")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.split("\0"):
        if name and (name.startswith(("lib/", "sample-datasets/abdomen")) or "/" not in name):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run(build, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of processes that find the wheel's content, and nothing of the clone."""
    folder = tmp_path_factory.mktemp("site-packages")
    zipfile.ZipFile(wheel).extractall(folder)
    home = tmp_path_factory.mktemp("home")
    return {
        **os.environ,
        "PYTHONPATH": str(folder),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "SSMSAM_ENCODER": "small",
    }


def run(environment: dict[str, str], *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssmsam", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True)


def test_it_holds_all_data_of_the_product_and_no_research(wheel: Path) -> None:
    assert wheel.stat().st_size <= LARGEST
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.startswith(("ssmsam_research", "tests"))]
    product = ROOT / "lib" / "ssmsam"
    tracked = subprocess.run(["git", "ls-files", str(product)], cwd=ROOT, capture_output=True, text=True).stdout.split()
    data = {str(Path(name).relative_to("lib")) for name in tracked}
    assert data <= set(names)
    assert "ssmsam/sample_datasets/abdomen/ct_01.nii.gz" in names


def test_the_command_works_without_the_clone(installed: dict[str, str], tmp_path: Path) -> None:
    where = [sys.executable, "-c", "import ssmsam; print(ssmsam.__file__)"]
    found = subprocess.run(where, env=installed, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert found.startswith(installed["PYTHONPATH"])
    doctor = run(installed, "doctor", cwd=tmp_path)
    assert "OK    sample data: 2 volumes with labels" in doctor.stdout, doctor.stderr
    assert "weights small: " in doctor.stdout
    assert "FAIL  weights" not in doctor.stdout


def test_the_server_starts_on_the_samples(installed: dict[str, str], tmp_path: Path) -> None:
    assert run(installed, "samples", "--out", "samples", cwd=tmp_path).returncode == 0
    port = free_port()
    command = [sys.executable, "-m", "ssmsam", "serve", "samples/abdomen", "--port", str(port)]
    log = tmp_path / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(command, env=installed, cwd=tmp_path, stdout=file, stderr=file)
    try:
        info = answer(f"http://127.0.0.1:{port}/info/", server, log, patience_s=180)
        assert {"sam_2d", "sam_3d", "fewshot"} <= set(info["models"])
        assert info["datastore"]["total"] == 2
    finally:
        server.terminate()
        server.wait(timeout=30)
