"""What fits on a cluster that `ray up` has made, and what a command asks for there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import ray
import yaml
from ray.autoscaler._private.commands import _set_up_config_for_head_node
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_provider import NodeProvider

from conr_ray.errors import UserError
from conr_ray.scaling.cluster import connect, room_for
from conr_ray.scaling.resources import ClusterOptions, WorkerResources
from tests.waiting import HANG_S

ROOT = Path(__file__).parents[2]
CLUSTER: dict[str, Any] = {
    "provider": {"type": "aws"},
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"max_workers": 0, "resources": {"CPU": 4}},
        "small": {"max_workers": 4, "resources": {"CPU": 4, "GPU": 1}},
        "large": {"max_workers": 2, "resources": {"CPU": 32, "GPU": 4}},
    },
}


@pytest.fixture
def head_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a head node, where `ray up` has left its file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(CLUSTER))


@pytest.mark.usefixtures("head_node")
@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "runs"),
    [
        # Two large nodes and three small ones have 11 GPUs.
        (1, 1, 1.0, 11),
        (4, 1, 1.0, 2),
        (1, 1, 0.5, 22),
        # Two GPUs for one worker are on a large node.
        (1, 1, 2.0, 4),
        (1, 1, 0.0, 80),
        (1, 32, 0.0, 2),
    ],
)
def test_nodes_that_can_come_count(workers: int, cpus: int, gpus: float, runs: int) -> None:
    assert room_for(WorkerResources(workers, cpus, gpus, more_to_come=True)) == runs


@pytest.mark.usefixtures("head_node")
def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"needs 12 x \(1 CPU, 1 GPU\), the cluster's nodes have ro"
    ):
        room_for(WorkerResources(12, 1, 1.0, more_to_come=True))
    with pytest.raises(
        UserError, match=r"needs 1 x \(33 CPU\), the cluster's nodes have room for 0"
    ):
        room_for(WorkerResources(1, 33, 0.0, more_to_come=True))


def test_of_a_cluster_that_grows_by_itself_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ClusterOptions("auto", autoscaling=True)
    resources = options.resources(8, cpus_per_worker=1, num_cpus=1, has_gpus=True)
    assert resources == WorkerResources(8, 1, 1.0, more_to_come=True)
    assert room_for(resources) > 1000


@pytest.mark.usefixtures("head_node")
def test_a_ray_of_ones_own_on_a_head_node_does_not_grow() -> None:
    resources = ClusterOptions().resources(1, cpus_per_worker=None, num_cpus=4, has_gpus=False)
    assert resources == WorkerResources(1, 4, 0.0, more_to_come=False)


def test_own_hosts_are_there_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load((ROOT / "clusters" / "onprem.yaml").read_text())
    cluster = prepare_config(shipped)
    provider = NodeProvider(cluster["provider"], cluster["cluster_name"])
    _, left_on_the_head = _set_up_config_for_head_node(cluster, provider, no_restart=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    text = Path(left_on_the_head.name).read_text()
    assert '"local.cluster.node"' in text
    (tmp_path / "ray_bootstrap_config.yaml").write_text(text)
    asked = {"cpus_per_worker": 1, "num_cpus": 1, "has_gpus": False}
    resources = ClusterOptions("auto").resources(3, **asked)
    assert resources == WorkerResources(3, 1, 0.0, more_to_come=False)
    # To wait for hosts that have not joined yet, one says so.
    resources = ClusterOptions("auto", autoscaling=True).resources(3, **asked)
    assert room_for(resources) > 1000


@pytest.mark.parametrize("workers", [0, -1])
def test_a_number_of_workers_that_cannot_be_is_refused_before_ray_is_started(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match=f"^workers={workers}: give 1 or more$"):
        connect(ClusterOptions(), workers)


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that speaks gRPC."""
    server = grpc.server(ThreadPoolExecutor(1))
    number = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield number
    server.stop(None)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_missing_token_is_told_in_one_line(scheme: str, port: int, tmp_path: Path) -> None:
    address = f"{scheme}127.0.0.1:{port}"
    done = subprocess.run(
        [sys.executable, "-m", "conr_ray.train", "--check", "--address", address],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
        },
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: address={address}: Token authentication is enabled but")
    assert ": copy the cluster's token to ~/.ray/auth_token (for a cluster that is" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ClusterOptions(cpus_per_worker=0), "cpus_per_worker=0: give 1 or more"),
        (ClusterOptions(gpus_per_worker=-1), "gpus_per_worker=-1: give 0 or more"),
    ],
)
def test_amounts_that_cannot_be_are_refused(options: ClusterOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.resources(1, cpus_per_worker=None, num_cpus=4, has_gpus=False)
