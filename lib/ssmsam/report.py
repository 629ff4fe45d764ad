"""Result files: how sure a mean is, and what must be known to run a measurement again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssmsam.files import whole_file
from ssmsam.models.weights import sha256_of

_PACKAGES = ("ssmsam", "torch", "numpy", "scipy", "SimpleITK", "monai", "monailabel", "pydicom", "segment-anything")


def run_manifest(
    *,
    protocol: str,
    data: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
    device: str = "cpu",
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Versions, machine, device, threads, seed, code, weights (name -> sha256) and data of a run, ready for JSON.

    ``data`` says which cases were read, and their digest; it never holds a path of this machine.
    """
    return {
        "protocol": protocol,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **installed_versions(_PACKAGES)},
        "machine": {"system": platform.system(), "processor": processor_name(), "cores": os.cpu_count()},
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "threads": torch.get_num_threads(),
        "seed": seed,
        "code": code_version(),
        "weights_sha256": dict(weights or {}),
        "settings": dict(settings or {}),
        "data": dict(data or {}),
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


def code_version() -> dict[str, Any]:
    """The git commit of the code, and whether files differed from it. Both None outside a git checkout."""
    folder = Path(__file__).resolve().parent
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


def write_result(path: Path, result: dict[str, Any]) -> Path:
    """Write a result as JSON, in place of an older one."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n")
    return path


def record_run(path: Path | None, result: Mapping[str, Any], **manifest: Any) -> None:
    """Write what a command did and its :func:`run_manifest`; nothing where there is no path to write to."""
    if path:
        write_result(path, {**result, "manifest": run_manifest(**manifest)})


@dataclass(frozen=True)
class Summary:
    """The mean over cases, the 95 % confidence interval of that mean, and the number of cases."""

    mean: float
    ci95: tuple[float, float]
    n: int

    def as_json(self) -> dict[str, object]:
        return {"mean": round(self.mean, 3), "ci95": [round(end, 3) for end in self.ci95], "n": self.n}


def bootstrap_ci(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of ``values``, one value per case.

    The cases are what is drawn again, so give one value per case, never one per slice. With a single case the
    interval is that value itself: nothing is known of the spread. Raises ValueError for no values.
    """
    data = np.asarray(list(values), dtype=np.float64)
    if data.size == 0:
        raise ValueError("an interval needs at least one value")
    picks = np.random.default_rng(seed).integers(0, data.size, size=(resamples, data.size))
    low, high = np.percentile(data[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def summarise(values: Iterable[float]) -> Summary:
    """:class:`Summary` of one value per case. Raises ValueError for no values."""
    data = [float(value) for value in values]
    interval = bootstrap_ci(data)
    return Summary(mean=float(np.mean(data)), ci95=interval, n=len(data))


def mean_over_labels(per_label: Mapping[str, Summary]) -> float:
    """The mean over labels of the mean over cases: a rare organ counts as much as a frequent one."""
    return float(np.mean([summary.mean for summary in per_label.values()])) if per_label else float("nan")


class RunLog:
    """What a long run has finished so far, one JSON line each, so that it goes on where it was stopped.

    Lines belong to one ``run``: a text that changes with everything that changes the results. Lines of other runs
    are left alone but not returned; a line that was cut off is ignored.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        self.path = path
        self.run = run

    def read(self) -> dict[str, Any]:
        """Finished pieces of this run by name."""
        if not self.path.exists():
            return {}
        found: dict[str, Any] = {}
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut off when the run was killed: that piece is done again
                continue
            if entry.get("run") == self.run:
                found[entry["name"]] = entry["content"]
        return found

    def append(self, name: str, content: Any) -> None:
        """Note that a piece is finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut_off = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut_off + json.dumps({"run": self.run, "name": name, "content": content}) + "\n")
