"""What must be known to run a measurement again: the manifest that goes into every result."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ssmsam.models.weights import sha256_of

_PACKAGES = ("ssmsam", "torch", "numpy", "scipy", "SimpleITK", "monai", "monailabel", "pydicom", "segment-anything")


def run_manifest(
    *,
    protocol: str,
    data: Mapping[str, Any],
    weights: Mapping[str, str],
    device: str = "cpu",
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Versions, machine, device, threads, seed, code, weights (name -> sha256) and data of a run, ready for JSON.

    ``data`` says which cases were read, and their digest; it never holds a path of this machine.
    """
    return {
        "protocol": protocol,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
        "machine": {"system": platform.system(), "processor": processor_name(), "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "code": code_version(),
        "weights_sha256": dict(weights),
        "settings": dict(settings or {}),
        "data": dict(data),
    }


def installed_versions(names: Iterable[str]) -> dict[str, str | None]:
    """The installed version of every distribution, None where it is not installed."""
    versions: dict[str, str | None] = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def processor_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def code_version(folder: Path | None = None) -> dict[str, Any]:
    """The git commit of the code, and whether files differed from it. Both None outside a git checkout."""
    folder = folder or Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if changed is None else bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or not a checkout: a result may still be recorded, without a commit
    return answer.stdout.strip()


def files_digest(paths: Iterable[Path]) -> str:
    """sha256 over the names and bytes of files, whatever the order in which they are given."""
    sha = hashlib.sha256()
    for path in sorted(paths):
        sha.update(f"{path.parent.name}/{path.name} {sha256_of(path)}\n".encode())
    return sha.hexdigest()
