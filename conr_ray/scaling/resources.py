"""What the workers of a run get, and how many runs fit on nodes; nothing here needs Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conr_ray.errors import UserError

# Where `ray up` leaves its cluster file on a head node.
_CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")
# What drivers of GPUs make in /dev: NVIDIA's, on a board and in Windows' Linux too, and AMD's.
_GPU_DEVICES = ("nvidia*", "nvgpu", "nvhost-gpu", "dxg", "kfd")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a cluster by what they have: some that are there, some of which `most` may come."""

    there: list[dict[str, float]]
    to_come: list[dict[str, float]]
    most: int

    def hold(self, bundle: dict[str, float]) -> int:
        """How many bundles fit on them."""

        def on(node: dict[str, float]) -> int:
            return min(int(node.get(kind, 0) / amount) for kind, amount in bundle.items())

        coming = sorted(map(on, self.to_come), reverse=True)[: self.most]
        return sum(map(on, self.there)) + sum(coming)

    def have(self, kind: str) -> bool:
        """Whether any of them has some of it."""
        return any(node.get(kind) for node in (*self.there, *self.to_come))


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run gets.

    Attributes:
        workers: of a run.
        cpus_per_worker: cores of each.
        gpus_per_worker: GPUs of each.
        more_to_come: the cluster starts nodes when there is work.
    """

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    more_to_come: bool = False

    def bundle(self) -> dict[str, float]:
        """One worker's resources in Ray's words."""
        bundle: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker
        return bundle

    def fits_on(self, nodes: Nodes) -> int:
        """How many runs of such workers the nodes hold at once.

        Raises:
            UserError: not even one.
        """
        workers = nodes.hold(self.bundle())
        if workers < self.workers:
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in self.bundle().items())
            raise UserError(
                f"--workers {self.workers} needs {self.workers} x ({each}), the cluster's nodes "
                f"have room for {workers}: ask for less"
            )
        return workers // self.workers


@dataclass(frozen=True)
class ClusterOptions:
    """What a command was told of the cluster that it runs on.

    Attributes:
        address: of a cluster to join; None starts one of the command's own.
        autoscaling: it starts nodes when there is work.
        cpus_per_worker: None leaves it to the command.
        gpus_per_worker: None is one where there are any.
    """

    address: str | None = None
    autoscaling: bool = False
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None

    def resources(
        self, workers: int, *, cpus_per_worker: int | None, num_cpus: int, has_gpus: bool
    ) -> WorkerResources:
        """Of each of the workers, where there are `num_cpus` cores, by default all shared out.

        Raises:
            UserError: an amount that cannot be.
        """
        if workers < 1:
            raise UserError(f"--workers {workers}: give 1 or more")
        more_to_come = self.address is not None and (self.autoscaling or grows())
        gpus, cpus = self.gpus_per_worker, self.cpus_per_worker or cpus_per_worker
        if gpus is None:
            gpus = 1.0 if has_gpus else 0.0
        if gpus < 0:
            raise UserError(f"--gpus-per-worker {gpus:g}: give 0 or more")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise UserError(f"--cpus-per-worker {self.cpus_per_worker}: give 1 or more")
        if cpus is None:
            cpus = 1 if gpus else max(1, num_cpus // workers)
        return WorkerResources(workers, cpus, gpus, more_to_come)


def local_resources(
    options: ClusterOptions, workers: int, cpus_per_worker: int | None = None
) -> WorkerResources:
    """Of workers on this machine.

    Raises:
        UserError: an amount that cannot be, or an option that is said of a cluster.
    """
    if options.autoscaling:
        raise UserError("--autoscaling needs a cluster: give its --address")
    return options.resources(
        workers,
        cpus_per_worker=cpus_per_worker,
        num_cpus=os.cpu_count() or 1,
        has_gpus=local_gpus() > 0,
    )


def local_nodes(resources: WorkerResources) -> Nodes:
    """This machine, as a Ray that a command starts for runs of such workers would have it."""
    return Nodes([{"CPU": local_cores(resources), "GPU": local_gpus()}], [], 0)


def local_cores(resources: WorkerResources) -> int:
    """Cores of this machine, or as many as one run of such workers asks for."""
    return max(os.cpu_count() or 1, resources.workers * resources.cpus_per_worker)


def local_gpus() -> int:
    """GPUs of this machine that torch can use."""
    if not any(next(Path("/dev").glob(name), None) for name in _GPU_DEVICES):
        return 0
    # Torch knows best, and takes a second to import.
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def grows() -> bool:
    """Whether `ray up` has made this node the head of a cluster that starts others.

    Hosts of one's own are in the cluster all the time, and its file does not say what they have.
    """
    cluster = cluster_file()
    return cluster is not None and cluster["provider"]["type"] != "local"


def cluster_file() -> dict[str, Any] | None:
    """What `ray up` has left on this node, None where it did not make it a head."""
    file = _CLUSTER_FILE.expanduser()
    return yaml.safe_load(file.read_text()) if file.exists() else None
