"""The Ray cluster that a command runs on."""

from __future__ import annotations

import atexit
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import AuthenticationError

import conr_ray
from conr_ray.errors import UserError, last_line
from conr_ray.remedies import described
from conr_ray.scaling.ray_sessions import new_temporary_folder, tidy_sessions
from conr_ray.scaling.resources import (
    ClusterOptions,
    Nodes,
    WorkerResources,
    cluster_file,
    grows,
    local_cores,
    local_resources,
)
from conr_ray.storage.private_folder import private_folder

# Raised by Ray if there is no cluster to join, or if it rejects this process.
NOT_JOINED = (ConnectionError, RuntimeError, ValueError, AuthenticationError)
# Assumed number of runs that fit on a cluster that starts an unknown number of nodes.
_UNKNOWN = 10_000
# Most characters of a path that Ray puts its folders and sockets under: a socket's path has at most
# 103 bytes on macOS, of which Ray's own part takes 68.
_LONGEST_FOLDER = 35
_ROOM = 128 * 2**20
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
    # A process for each run that tells its workers of nodes to be taken back; they do not ask.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # At its default, info, Ray writes the environment of jobs, keys included, to a log file.
    "RAY_LOGGER_LEVEL": "warning",
}
# Cluster and job of the last connection made here. Any other one, such as a notebook's, is not to
# be closed.
_made: tuple[str, str] | None = None


def connect(
    options: ClusterOptions,
    workers: int,
    cpus_per_worker: int | None = None,
    *,
    dashboard: bool = False,
) -> WorkerResources:
    """Join a cluster, or start one with room for a run; return each worker's resources.

    A Ray that runs in this process already is used, unless an earlier command has left it.

    Args:
        options: which cluster.
        workers: workers per run.
        cpus_per_worker: for a started cluster; by default all cores divided among workers, or
            one core if there are GPUs. In a joined cluster it is one.
        dashboard: for a started cluster; needed if runs of several workers are stopped early,
            since it serves the API that frees their workers.

    Raises:
        UserError: there is no such cluster, it does not start, or it is too small.
    """
    if ray.is_initialized() and not _is_ours():
        if options.address not in (None, "auto"):
            raise UserError(
                f"address={options.address}: this process has a Ray already: leave the address "
                "out, or call ray.shutdown() first"
            )
        options = replace(options, address="auto")
        _set_environment()
    elif options.address is None:
        resources = local_resources(options, workers, cpus_per_worker)
        start(resources, dashboard=dashboard)
        return resources
    else:
        leave()
        _join(options.address)
    has_gpus = _nodes(grows()).have("GPU")
    resources = options.resources(workers, cpus_per_worker=1, num_cpus=1, has_gpus=has_gpus)
    room_for(resources)
    return resources


def start(resources: WorkerResources, *, dashboard: bool) -> None:
    """Start Ray for this process alone, with cores for at least one run.

    More workers than cores are allowed, one thread each: slow but correct.

    Args:
        resources: of one run.
        dashboard: needed if runs are stopped early: it serves the API that frees their workers.

    Raises:
        UserError: Ray does not start, or this machine has too few GPUs for the run.
    """
    leave()
    # Ray would first try the address of a killed cluster, for minutes. The resources that
    # `ray up` sets for a node are not those of another Ray on it.
    for name in ("RAY_ADDRESS", "RAY_OVERRIDE_RESOURCES"):
        os.environ.pop(name, None)
    _set_environment()
    # Ray lets all users write in its folder: this one is in another that they cannot enter.
    folder = private_folder("RAY_TMPDIR", room=_ROOM, longest=_LONGEST_FOLDER) / "ray"
    tidy_sessions(folder)
    atexit.unregister(_end)
    atexit.register(_end, folder)
    try:
        with _environment_of_ray(new_temporary_folder(folder)):
            ray.init(
                address="local",
                num_cpus=local_cores(resources),
                include_dashboard=dashboard,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    except Exception as error:
        ray.shutdown()
        raise UserError(
            f"Ray does not start: {described(error)}: see {folder}/session_latest/logs, or set "
            "RAY_TMPDIR to another folder; train --local needs no Ray"
        ) from None
    _remember()
    room_for(resources)


def leave() -> None:
    """Leave a cluster that was joined here, and stop one that was started here.

    When Python exits, Ray does the same, but first waits for messages of workers, which are off.
    """
    if _is_ours():
        ray.shutdown()


def _end(folder: Path) -> None:
    """At the end of this process: stop Ray, and delete the sockets that it leaves in `folder`."""
    leave()
    tidy_sessions(folder)


def room_for(resources: WorkerResources) -> int:
    """Number of such runs that fit at once on the connected cluster, with nodes that it may start.

    Raises:
        UserError: not even one fits.
    """
    if resources.more_to_come and not grows():
        return _UNKNOWN
    return resources.fits_on(_nodes(resources.more_to_come))


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
        raise UserError(f"address={address}: no Ray cluster there: {error}") from None


def not_joined(address: str, error: Exception) -> UserError:
    """The UserError for an error in NOT_JOINED."""
    if isinstance(error, AuthenticationError):
        cause, _, _ = error.message.partition(". ")
        return UserError(
            f"address={address}: {cause}: copy the cluster's token to ~/.ray/auth_token "
            "(for a cluster that is not started yet: ray get-auth-token --generate)"
        )
    return UserError(f"address={address}: no Ray cluster there: {last_line(error)}")


def _join(address: str) -> None:
    check_reachable(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
    variables = _set_environment()
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            # All nodes run this process's code. Given by path: within a job Ray copies its
            # arguments, and a module cannot be copied.
            runtime_env={
                "py_modules": [str(Path(conr_ray.__file__).parent)],
                "env_vars": variables,
            },
        )
    except NOT_JOINED as error:
        raise not_joined(address, error) from None
    _remember()


def _set_environment() -> dict[str, str]:
    """Set what is not set yet; return what all processes are to have."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in _SETTINGS}


def _remember() -> None:
    global _made
    context = ray.get_runtime_context()
    _made = context.gcs_address, context.get_job_id()


def _is_ours() -> bool:
    """Whether this process is connected to Ray by this module."""
    if _made is None or not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return _made == (context.gcs_address, context.get_job_id())


def _nodes(more_to_come: bool) -> Nodes:
    """Live nodes of the connected cluster; with `more_to_come`, all that `ray up` can start."""
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
def _environment_of_ray(temporary: Path) -> Iterator[None]:
    """Tell all processes that Ray starts here which cluster they belong to, and where to write.

    Ray Train queries the state of its actors from within them; with several clusters on a machine
    it would not know which one to ask, and would not free the cores of dead trials. Temporary
    files of processes that are killed stay, so that their folder is one that is tidied.
    """
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = str(probe.getsockname()[1])
    names = {
        "RAY_GCS_SERVER_PORT": port,
        "RAY_ADDRESS": f"127.0.0.1:{port}",
        "TMPDIR": str(temporary),
    }
    # Python looks for its folder once: this process keeps its own.
    tempfile.gettempdir()
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(before)
