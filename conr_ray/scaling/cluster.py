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
# What Ray raises where there is no cluster to join, or none that lets this process in.
NOT_JOINED = (ConnectionError, RuntimeError, ValueError, AuthenticationError)
# Runs that a cluster holds which starts who knows how many nodes.
_UNKNOWN = 10_000
# Of Ray, in the command and all processes that it starts.
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    # Trials wait for cores, and clouds take minutes to bring nodes.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    # Relative paths mean the same in every process.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Ray's coming default; unset, Ray prints advice about it.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # The commands have displays and files of their own.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}


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

    def fits(self) -> int:
        """How many runs of such workers the connected cluster holds at once, or could hold.

        Raises:
            UserError: not even one.
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
    """Of workers on this machine."""
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
    """Join a cluster, or start one with room for at least one run; what each worker gets there.

    Args:
        options: which cluster.
        workers: of one run.
        cpus_per_worker: of a cluster that is started; by default all cores, shared out, or one
            where there are GPUs. In one that is joined it is one.
        dashboard: of a cluster that is started; needed where runs of several workers are stopped
            early: it serves the API that frees their workers.

    Raises:
        UserError: there is no such cluster, or it is too small.
    """
    if options.address is None:
        if options.autoscaling:
            raise UserError("--autoscaling is said of a cluster: give its --address")
        resources = local_resources(options, workers, cpus_per_worker)
        start(resources, dashboard=dashboard)
        return resources
    _join(options.address)
    has_gpus = _nodes(_grows()).have("GPU")
    resources = options.resources(workers, cpus_per_worker=1, num_cpus=1, has_gpus=has_gpus)
    resources.fits()
    return resources


def start(resources: WorkerResources, *, dashboard: bool) -> None:
    """Start a Ray of this process's own, with cores for at least one run.

    More workers than cores are let through, each a thread: slow, but right.

    Args:
        resources: of one run.
        dashboard: needed where runs are stopped early: it serves the API that frees their workers.

    Raises:
        UserError: this machine has too few GPUs for the run.
    """
    # A name left over from a killed cluster would else be tried first, for minutes; and what
    # `ray up` says of a node is not meant for another Ray on it.
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
    """Raise UserError where nobody listens at an address, for which Ray would wait minutes.

    One without a port, such as auto, is left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster there: {error}") from None


def not_joined(address: str, error: Exception) -> UserError:
    """One of NOT_JOINED in a line for the user."""
    if isinstance(error, AuthenticationError):
        cause, _, _ = error.message.partition(". ")
        return UserError(
            f"--address {address}: {cause}: copy the cluster's token to ~/.ray/auth_token "
            "(for a cluster that is still to be started: ray get-auth-token --generate)"
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
            # All nodes run the code that this process runs. By its path: within a job Ray copies
            # what it is given, and a module cannot be copied.
            runtime_env={
                "py_modules": [str(Path(conr_ray.__file__).parent)],
                "env_vars": {name: os.environ[name] for name in _SETTINGS},
            },
        )
    except NOT_JOINED as error:
        raise not_joined(address, error) from None


def _grows() -> bool:
    """Whether `ray up` has made this node the head of a cluster that starts others.

    Hosts of one's own are in the cluster all the time, and its file does not say what they have.
    """
    cluster = _cluster_file()
    return cluster is not None and cluster["provider"]["type"] != "local"


def _cluster_file() -> dict[str, Any] | None:
    """What `ray up` has left on this node, None where it did not make it a head."""
    file = _CLUSTER_FILE.expanduser()
    return yaml.safe_load(file.read_text()) if file.exists() else None


@dataclass(frozen=True)
class _Nodes:
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


def _nodes(more_to_come: bool) -> _Nodes:
    """Of the connected cluster, those that are there or, of `ray up`'s, all that it can start."""
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
    """Tell all processes that Ray starts here which cluster is theirs.

    Ray Train asks for the state of its actors from within them; where several clusters run on a
    machine it would else not know which one to ask, and leave the cores of dead trials taken.
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
