"""The container recipe: its steps are carried out in a bare Debian, and what they leave is started."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from answering import answer

from ssmsam.cli.live_server import free_port

ROOT = Path(__file__).parents[2]
RECIPE = (ROOT / "Containerfile").read_text()
CA = "/etc/ssl/certs/ca-certificates.crt"
THIS_MACHINES = {"PIP_CERT": "/ca.crt", "NODE_EXTRA_CA_CERTS": "/ca.crt", "npm_config_cafile": "/ca.crt"}
"""So that packages come from where this machine takes them; a container's engine sees to that elsewhere."""

slow = pytest.mark.slow
bare = pytest.mark.skipif(
    shutil.which("debootstrap") is None or os.getuid() != 0, reason="needs root and debootstrap (apt-get install)"
)


@dataclass
class Stage:
    """A root folder in which a stage's instructions are carried out, as an engine of containers does."""

    root: Path
    environment: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
    )
    folder: str = "/"
    user: str = "root"
    entry: list[str] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        settings = [f"{name}={value}" for name, value in {**self.environment, **THIS_MACHINES}.items()]
        inside = ["chroot", f"--userspec={self.user}:{self.user}", str(self.root), "env", "-i", *settings]
        return [*inside, "sh", "-c", f'cd {self.folder} && exec "$@"', "sh", *arguments]

    def run(self, line: str) -> None:
        done = subprocess.run(self.command("sh", "-c", line), capture_output=True, text=True, timeout=1800)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"

    def within(self, path: str) -> Path:
        return self.root / str(Path(self.folder, path)).lstrip("/")

    def copy(self, sources: list[Path], target: str) -> None:
        into = self.within(target)
        into.mkdir(parents=True, exist_ok=True)
        for source in sources:
            if source.is_dir():
                shutil.copytree(source, into, dirs_exist_ok=True, symlinks=True)
            else:
                shutil.copy(source, into)


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in RECIPE.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def clone(folder: Path) -> Path:
    """What a build context holds: the files of the repository, without those that .dockerignore names."""
    left_out = tuple(f"{line}/" for line in (ROOT / ".dockerignore").read_text().split())
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if not name.startswith(left_out):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("image")
    bare_debian, context = folder / "debian", clone(folder / "context")
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", str(bare_debian)], check=True, capture_output=True)
    stages: dict[str, Stage] = {}
    stage = Stage(bare_debian)
    for name, rest in instructions():
        if name == "FROM":
            assert rest.startswith("debian:bookworm-slim")
            stage = Stage(folder / f"stage{len(stages)}")
            stages[rest.rpartition(" AS ")[2]] = stage
            subprocess.run(["cp", "--archive", str(bare_debian), str(stage.root)], check=True)  # with its devices
            for own in ("/etc/resolv.conf", "/etc/hosts"):
                shutil.copyfile(own, stage.root / own[1:])
            shutil.copyfile(CA, stage.root / "ca.crt")
            subprocess.run(["mount", "--bind", "/dev", str(stage.root / "dev")], check=True)
            subprocess.run(["mount", "-t", "proc", "proc", str(stage.root / "proc")], check=True)
        elif name == "RUN":
            stage.run(rest)
        elif name == "COPY":
            *sources, target = shlex.split(rest)
            source = stages[sources.pop(0).removeprefix("--from=")] if sources[0].startswith("--from=") else None
            stage.copy([source.within(one) if source else context / one for one in sources], target)
        elif name == "ENV":
            stage.environment |= dict(
                (key, value.replace("$PATH", stage.environment["PATH"]))
                for key, value in re.findall(r"(\S+)=(\S+)", rest)
            )
        elif name == "WORKDIR":
            stage.folder = rest
        elif name == "USER":
            stage.user = rest
        elif name == "ENTRYPOINT":
            stage.entry = [part.strip(' "') for part in rest.strip("[]").split(",")]
    yield stage
    for one in stages.values():
        for mounted in ("proc", "dev"):
            subprocess.run(["umount", "--lazy", str(one.root / mounted)], check=True)


@slow
@bare
@pytest.mark.timeout(3600)
def test_its_steps_give_a_server_with_a_page(image: Stage, tmp_path: Path) -> None:
    shutil.copy(ROOT / "sample-datasets" / "abdomen" / "ct_01.nii.gz", image.root / "studies")
    shutil.chown(image.root / "studies" / "ct_01.nii.gz", 1000)
    port = free_port()
    log = tmp_path / "log"
    with log.open("wb") as file:
        command = image.command(*image.entry, "/studies", "--port", str(port))
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        info = answer(f"{url}/info/", server, log)
        assert info["datastore"]["total"] == 1
        assert info["ssmsam"]["encoder"] == "medsam_lite"
        assert b"Niivue" in requests.get(f"{url}/page/niivue.js", timeout=30).content
        params = {"image": "ct_01", "output": "json"}
        asked = {"params": (None, '{"label": "liver", "foreground": [[40, 64, 20]]}')}
        click = requests.post(f"{url}/infer/sam_2d", params=params, files=asked, timeout=300)
        assert click.status_code == 200, click.text
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def test_what_it_copies_is_there_and_its_user_is_no_root() -> None:
    found = instructions()
    assert {name for name, _ in found} <= {
        "FROM",
        "RUN",
        "ARG",
        "COPY",
        "WORKDIR",
        "USER",
        "ENV",
        "VOLUME",
        "EXPOSE",
        "ENTRYPOINT",
        "CMD",
    }
    assert [rest for name, rest in found if name == "USER"] == ["ssmsam"]
    assert "wheel:" in (ROOT / "Makefile").read_text()
    assert (ROOT / "constraints.txt").exists()
