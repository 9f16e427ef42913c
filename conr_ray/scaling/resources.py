"""Resources of a run's workers, and how many runs fit on nodes; does not use Ray."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from conr_ray.cores import usable_cores
from conr_ray.errors import UserError

# Where `ray up` leaves its cluster file on a head node.
_CLUSTER_FILE = "~/ray_bootstrap_config.yaml"
# Device files of GPU drivers: NVIDIA's, also on embedded boards and in WSL, and AMD's.
_GPU_DEVICES = ("nvidia*", "nvgpu", "nvhost-gpu", "dxg", "kfd")


@dataclass(frozen=True)
class Nodes:
    """Resources of a cluster's nodes: those `there`; of those `to_come`, at most `most` start."""

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
        """Whether any node has some of the resource `kind`."""
        return any(node.get(kind) for node in (*self.there, *self.to_come))


@dataclass(frozen=True)
class WorkerResources:
    """Resources of each worker of a run.

    Attributes:
        workers: number of workers.
        cpus_per_worker: cores of each.
        gpus_per_worker: GPUs of each.
        more_to_come: whether the cluster starts nodes on demand.
    """

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    more_to_come: bool = False

    def bundle(self) -> dict[str, float]:
        """One worker's resources by Ray's names."""
        bundle: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker
        return bundle

    def fits_on(self, nodes: Nodes) -> int:
        """Number of such runs that fit on the nodes at once.

        Raises:
            UserError: not even one fits.
        """
        workers = nodes.hold(self.bundle())
        if workers < self.workers:
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in self.bundle().items())
            raise UserError(
                f"workers={self.workers} needs {self.workers} x ({each}), the cluster's nodes "
                f"have room for {workers}: ask for less"
            )
        return workers // self.workers


@dataclass(frozen=True)
class ClusterOptions:
    """The cluster to run on, and what each worker gets.

    Attributes:
        address: of a cluster to join; None starts one on this machine.
        autoscaling: whether the cluster starts nodes on demand.
        cpus_per_worker: None means the command's default.
        gpus_per_worker: None means one if there are any, else none.
    """

    address: str | None = None
    autoscaling: bool = False
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None

    def resources(
        self, workers: int, *, cpus_per_worker: int | None, num_cpus: int, has_gpus: bool
    ) -> WorkerResources:
        """Resources of each worker.

        Without a number of cores, it is one with GPUs, else an equal share of `num_cpus`.

        Raises:
            UserError: an amount is out of range.
        """
        if workers < 1:
            raise UserError(f"workers={workers}: give 1 or more")
        more_to_come = self.address is not None and (self.autoscaling or grows())
        gpus, cpus = self.gpus_per_worker, self.cpus_per_worker or cpus_per_worker
        if gpus is None:
            gpus = 1.0 if has_gpus else 0.0
        if gpus < 0:
            raise UserError(f"gpus_per_worker={gpus:g}: give 0 or more")
        if self.cpus_per_worker is not None and self.cpus_per_worker < 1:
            raise UserError(f"cpus_per_worker={self.cpus_per_worker}: give 1 or more")
        if cpus is None:
            cpus = 1 if gpus else max(1, num_cpus // workers)
        return WorkerResources(workers, cpus, gpus, more_to_come)


def local_resources(
    options: ClusterOptions, workers: int, cpus_per_worker: int | None = None
) -> WorkerResources:
    """Resources of workers on this machine.

    Raises:
        UserError: an amount is out of range, the machine has too few GPUs, or an option needs a
            cluster.
    """
    if options.autoscaling:
        raise UserError("autoscaling needs a cluster: give its address")
    gpus = local_gpus()
    resources = options.resources(
        workers,
        cpus_per_worker=cpus_per_worker,
        num_cpus=usable_cores(),
        has_gpus=gpus > 0,
    )
    needed = resources.workers * resources.gpus_per_worker
    if needed > gpus:
        amount = f"{needed:g} GPU{'s' if needed != 1 else ''}"
        need = f"1 worker needs {amount}" if workers == 1 else f"{workers} workers need {amount}"
        there = f"this machine has {gpus or 'none'} that torch can use"
        less = "ask for less" if gpus else "leave it out"
        raise UserError(
            f"gpus_per_worker={resources.gpus_per_worker:g}: {need}, {there}: {less}, or give the "
            "address of a cluster that has them"
        )
    return resources


def crowded(resources: WorkerResources) -> str | None:
    """A line on a run that asks this machine for more cores than it has; None if it does not."""
    asked, cores = resources.workers * resources.cpus_per_worker, usable_cores()
    if asked <= cores:
        return None
    return (
        f"{resources.workers} x {resources.cpus_per_worker} cores are asked for, this machine has "
        f"{cores}: workers take turns, which is slower than fewer of them, and each is a process "
        "with torch in its memory"
    )


def local_nodes(resources: WorkerResources) -> Nodes:
    """This machine as the only node of a Ray that is started for such runs."""
    return Nodes([{"CPU": local_cores(resources), "GPU": local_gpus()}], [], 0)


def local_cores(resources: WorkerResources) -> int:
    """Cores that this process may use, or those that one run needs if that is more."""
    return max(usable_cores(), resources.workers * resources.cpus_per_worker)


def local_gpus() -> int:
    """GPUs of this machine that torch can use."""
    if not any(next(Path("/dev").glob(name), None) for name in _GPU_DEVICES):
        return 0
    # Torch gives the exact answer, but takes a second to import.
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def grows() -> bool:
    """Whether this node is the head of a cluster of `ray up` that starts other nodes.

    With the provider `local`, all hosts are always in the cluster, and its file does not list their
    resources.
    """
    cluster = cluster_file()
    return cluster is not None and cluster["provider"]["type"] != "local"


def cluster_file() -> dict[str, Any] | None:
    """The cluster file of `ray up` on this node; None if `ray up` did not make it a head."""
    # A user without a home has no such file: pathlib would raise.
    file = Path(os.path.expanduser(_CLUSTER_FILE))
    return yaml.safe_load(file.read_text()) if file.exists() else None
