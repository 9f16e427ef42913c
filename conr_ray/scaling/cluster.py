"""The Ray cluster that a command runs on."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
import yaml
from ray.exceptions import AuthenticationError

import conr_ray
from conr_ray.errors import UserError, last_line

# Where `ray up` leaves its cluster file on a head node.
_CLUSTER_FILE = Path("~/ray_bootstrap_config.yaml")
# What Ray raises if there is no cluster to join, or it refuses this process.
NOT_JOINED = (ConnectionError, RuntimeError, ValueError, AuthenticationError)
# Runs that fit on a cluster that starts an unknown number of nodes.
_UNKNOWN = 10_000
# Ray's settings, in the command and all processes that it starts.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Trials wait for cores, and clouds take minutes to start nodes.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    # Relative paths mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's future default; if unset, Ray prints a warning about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The commands have their own display and files.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run gets.

    Attributes:
        workers: workers per run.
        cpus_per_worker: CPU cores per worker.
        gpus_per_worker: GPUs per worker.
        more_to_come: the cluster starts nodes on demand.
    """

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0
    more_to_come: bool = False

    def bundle(self) -> dict[str, float]:
        """One worker's resources as a Ray bundle."""
        bundle: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker
        return bundle

    def fits(self) -> int:
        """How many such runs fit on the connected cluster at once, counting nodes it can start.

        Raises:
            UserError: not even one fits.
        """
        if self.more_to_come and not _grows():
            return _UNKNOWN
        workers = _nodes(self.more_to_come).hold(self.bundle())
        if workers < self.workers:
            each = ", ".join(f"{amount:g} {kind}" for kind, amount in self.bundle().items())
            raise UserError(
                f"--workers {self.workers} needs {self.workers} x ({each}), the cluster's nodes "
                f"have room for {workers}: ask for less"
            )
        return workers // self.workers


@dataclass(frozen=True)
class ClusterOptions:
    """The command's options for the cluster that it runs on.

    Attributes:
        address: cluster to join; None starts one on this machine.
        autoscaling: the cluster starts nodes on demand.
        cpus_per_worker: None leaves it to the command.
        gpus_per_worker: None means one if there are any.
    """

    address: str | None = None
    autoscaling: bool = False
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None

    def resources(
        self, workers: int, *, cpus_per_worker: int | None, num_cpus: int, has_gpus: bool
    ) -> WorkerResources:
        """Resources of each worker; by default the `num_cpus` cores are divided among workers.

        Raises:
            UserError: an invalid amount.
        """
        if workers < 1:
            raise UserError(f"--workers {workers}: give 1 or more")
        more_to_come = self.address is not None and (self.autoscaling or _grows())
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
    """Resources of workers on this machine."""
    return options.resources(
        workers,
        cpus_per_worker=cpus_per_worker,
        num_cpus=os.cpu_count() or 1,
        has_gpus=torch.cuda.is_available(),
    )


def connect(
    options: ClusterOptions,
    workers: int,
    cpus_per_worker: int | None = None,
    *,
    dashboard: bool = False,
) -> WorkerResources:
    """Join a cluster, or start one with room for a run; return each worker's resources.

    Args:
        options: which cluster.
        workers: workers per run.
        cpus_per_worker: for a started cluster; by default all cores divided among workers, or
            one core if there are GPUs. In a joined cluster it is one.
        dashboard: for a started cluster; needed if runs of several workers are stopped early,
            since it serves the API that frees their workers.

    Raises:
        UserError: there is no such cluster, or it is too small.
    """
    if options.address is None:
        if options.autoscaling:
            raise UserError("--autoscaling needs a cluster: give its --address")
        resources = local_resources(options, workers, cpus_per_worker)
        start(resources, dashboard=dashboard)
        return resources
    _join(options.address)
    has_gpus = _nodes(_grows()).have("GPU")
    resources = options.resources(workers, cpus_per_worker=1, num_cpus=1, has_gpus=has_gpus)
    resources.fits()
    return resources


def start(resources: WorkerResources, *, dashboard: bool) -> None:
    """Start Ray for this process alone, with cores for at least one run.

    More workers than cores are allowed, one thread each: slow but correct.

    Args:
        resources: of one run.
        dashboard: needed if runs are stopped early: it serves the API that frees their workers.

    Raises:
        UserError: this machine has too few GPUs for the run.
    """
    # An address left over from a killed cluster would be tried first, for minutes; and what
    # `ray up` sets for a node is not meant for another Ray on it.
    for name in ("RAY_ADDRESS", "RAY_OVERRIDE_RESOURCES"):
        os.environ.pop(name, None)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    cores = os.cpu_count() or 1
    with _own_address():
        ray.init(
            address="local",
            num_cpus=max(cores, resources.workers * resources.cpus_per_worker),
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    resources.fits()


def check_reachable(address: str) -> None:
    """Raise UserError if nothing listens at an address; Ray itself would wait for minutes.

    An address without a port, such as auto, is left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster there: {error}") from None


def not_joined(address: str, error: Exception) -> UserError:
    """One of NOT_JOINED as a UserError."""
    if isinstance(error, AuthenticationError):
        cause, _, _ = error.message.partition(". ")
        return UserError(
            f"--address {address}: {cause}: copy the cluster's token to ~/.ray/auth_token "
            "(before you start a cluster: ray get-auth-token --generate)"
        )
    return UserError(f"--address {address}: no Ray cluster there: {last_line(error)}")


def _join(address: str) -> None:
    check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # All nodes run this process's code. Given by path: within a job Ray copies its
            # arguments, and a module cannot be copied.
            runtime_env={
                "py_modules": [str(Path(conr_ray.__file__).parent)],
                "env_vars": {name: os.environ[name] for name in _SETTINGS},
            },
        )
    except NOT_JOINED as error:
        raise not_joined(address, error) from None


def _grows() -> bool:
    """Whether this node is the head of a `ray up` cluster that starts other nodes.

    Own hosts are always in the cluster, and its file does not list their resources.
    """
    cluster = _cluster_file()
    return cluster is not None and cluster["provider"]["type"] != "local"


def _cluster_file() -> dict[str, Any] | None:
    """The cluster file that `ray up` left on this node; None if it is not a head."""
    file = _CLUSTER_FILE.expanduser()
    return yaml.safe_load(file.read_text()) if file.exists() else None


@dataclass(frozen=True)
class _Nodes:
    """Resources of a cluster's nodes: present ones, and ones of which `most` can be started."""

    there: list[dict[str, float]]
    to_come: list[dict[str, float]]
    most: int

    def hold(self, bundle: dict[str, float]) -> int:
        """How many bundles fit on the nodes."""

        def on(node: dict[str, float]) -> int:
            return min(int(node.get(kind, 0) / amount) for kind, amount in bundle.items())

        coming = sorted(map(on, self.to_come), reverse=True)[: self.most]
        return sum(map(on, self.there)) + sum(coming)

    def have(self, kind: str) -> bool:
        """Whether any node has the resource."""
        return any(node.get(kind) for node in (*self.there, *self.to_come))


def _nodes(more_to_come: bool) -> _Nodes:
    """The connected cluster's present nodes or, for `ray up`, all that it can start."""
    if not more_to_come:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return _Nodes([node["Resources"] for node in nodes if node["Alive"]], [], 0)
    cluster = _cluster_file()
    assert cluster is not None
    most = cluster.get("max_workers", 2)
    types = cluster["available_node_types"]
    to_come = [
        node_type.get("resources") or {}
        for node_type in types.values()
        for _ in range(min(most, node_type.get("max_workers", most)))
    ]
    head = types[cluster["head_node_type"]].get("resources") or {}
    return _Nodes([head], to_come, most)


@contextmanager
def _own_address() -> Iterator[None]:
    """Tell all processes that Ray starts here which cluster they belong to.

    Ray Train queries the state of its actors from within them; with several clusters on a machine
    it would not know which one to ask, and would not free the cores of dead trials.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    names = {"RAY_GCS_SERVER_PORT": port, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
