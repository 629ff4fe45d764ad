"""The files for SLURM and Kubernetes say what the programs take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = Path(__file__).parents[2] / "docs" / "cluster"

pytest.importorskip("distributed")


def test_a_job_of_slurm_is_a_worker() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    import dask

    ours = dask.config.merge(dask.config.config, yaml.safe_load((FILES / "slurm.yaml").read_text()))
    local = {"host": "127.0.0.1", "dashboard": False}
    with dask.config.set(ours), jobqueue.SLURMCluster(scheduler_options=local) as cluster:
        script = cluster.job_script()
    assert "#SBATCH -p batch" in script and "#SBATCH --cpus-per-task=4" in script and "#SBATCH --mem=15G" in script
    assert "distributed.cli.dask_worker" in script and "--nthreads 1" in script
    assert script.index("export OMP_NUM_THREADS=4") < script.index("dask_worker")


def containers() -> dict[str, dict[str, Any]]:
    documents = list(yaml.safe_load_all((FILES / "kubernetes.yaml").read_text()))
    pods = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment"]
    return {container["name"]: container for pod in pods for container in pod["containers"]}


@pytest.mark.parametrize("role", ["scheduler", "worker"])
def test_the_pods_start_programs_with_options_that_there_are(role: str) -> None:
    from distributed.cli import dask_scheduler, dask_worker

    program, name, *options = containers()[role]["command"]
    assert (program, name) == ("dask", role)
    command = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[role]
    parsed = command.make_context(role, list(options), resilient_parsing=False).params
    if role == "worker":
        assert parsed["nthreads"] == 1 and parsed["scheduler"] == "tcp://ssmsam-scheduler:8786"


def test_workers_reach_the_scheduler_and_nobody_else_does() -> None:
    documents = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(
        (FILES / "kubernetes.yaml").read_text()
    )}  # fmt: skip
    allowed = documents["NetworkPolicy", "ssmsam-scheduler"]["spec"]["ingress"][0]["from"][0]["podSelector"]
    labels = documents["Deployment", "ssmsam-workers"]["spec"]["template"]["metadata"]["labels"]
    assert allowed["matchLabels"].items() <= labels.items()
    service = documents["Service", "ssmsam-scheduler"]["spec"]
    pod = documents["Deployment", "ssmsam-scheduler"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= pod.items() and service["ports"][0]["port"] == 8786
