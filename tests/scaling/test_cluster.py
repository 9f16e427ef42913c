"""What fits on a cluster that `ray up` has made, and what a command asks for there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from conr_ray.errors import UserError
from conr_ray.scaling.cluster import ClusterOptions, WorkerResources

CLUSTER: dict[str, Any] = {
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
    assert WorkerResources(workers, cpus, gpus, more_to_come=True).fits() == runs


@pytest.mark.usefixtures("head_node")
def test_what_can_never_fit_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"needs 12 x \(1 CPU, 1 GPU\), the cluster's nodes have ro"
    ):
        WorkerResources(12, 1, 1.0, more_to_come=True).fits()
    with pytest.raises(
        UserError, match=r"needs 1 x \(33 CPU\), the cluster's nodes have room for 0"
    ):
        WorkerResources(1, 33, 0.0, more_to_come=True).fits()


def test_of_a_cluster_that_grows_by_itself_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    options = ClusterOptions("auto", autoscaling=True)
    resources = options.resources(8, cpus_per_worker=1, num_cpus=1, has_gpus=True)
    assert resources == WorkerResources(8, 1, 1.0, more_to_come=True)
    assert resources.fits() > 1000


@pytest.mark.usefixtures("head_node")
def test_a_ray_of_ones_own_on_a_head_node_does_not_grow() -> None:
    resources = ClusterOptions().resources(1, cpus_per_worker=None, num_cpus=4, has_gpus=False)
    assert resources == WorkerResources(1, 4, 0.0, more_to_come=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ClusterOptions(cpus_per_worker=0), "--cpus-per-worker 0: give 1 or more"),
        (ClusterOptions(gpus_per_worker=-1), "--gpus-per-worker -1: give 0 or more"),
    ],
)
def test_amounts_that_cannot_be_are_refused(options: ClusterOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.resources(1, cpus_per_worker=None, num_cpus=4, has_gpus=False)
