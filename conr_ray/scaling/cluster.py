"""The Ray cluster that a command runs on."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

import conr_ray
from conr_ray.errors import UserError, last_line
from conr_ray.scaling.resources import (
    ClusterOptions,
    Nodes,
    WorkerResources,
    cluster_file,
    grows,
    local_cores,
    local_resources,
)

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
        resources = local_resources(options, workers, cpus_per_worker)
        start(resources, dashboard=dashboard)
        return resources
    _join(options.address)
    has_gpus = _nodes(grows()).have("GPU")
    resources = options.resources(workers, cpus_per_worker=1, num_cpus=1, has_gpus=has_gpus)
    room_for(resources)
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
    with _own_address():
        ray.init(
            address="local",
            num_cpus=local_cores(resources),
            include_dashboard=dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    room_for(resources)


def room_for(resources: WorkerResources) -> int:
    """How many runs of such workers the connected cluster holds at once, or could hold.

    Raises:
        UserError: not even one.
    """
    if resources.more_to_come and not grows():
        return _UNKNOWN
    return resources.fits_on(_nodes(resources.more_to_come))


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


def _nodes(more_to_come: bool) -> Nodes:
    """Of the connected cluster, those that are there or, of `ray up`'s, all that it can start."""
    if not more_to_come:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return Nodes([node["Resources"] for node in nodes if node["Alive"]], [], 0)
    cluster = cluster_file()
    assert cluster is not None
    most = cluster.get("max_workers", 2)
    types = cluster["available_node_types"]
    to_come = [
        node_type.get("resources") or {}
        for node_type in types.values()
        for _ in range(min(most, node_type.get("max_workers", most)))
    ]
    head = types[cluster["head_node_type"]].get("resources") or {}
    return Nodes([head], to_come, most)


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
