"""The Ray cluster that a command runs on."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
import torch

from conr_ray.errors import UserError


@dataclass(frozen=True)
class WorkerResources:
    """What each worker of a run gets."""

    workers: int = 1
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0.0

    def bundle(self) -> dict[str, float]:
        """One worker's resources in Ray's words."""
        bundle: dict[str, float] = {"CPU": self.cpus_per_worker}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker
        return bundle

    def fits(self) -> int:
        """How many runs of such workers the connected cluster holds at once.

        Raises:
            UserError: not even one.
        """
        have = ray.cluster_resources()  # type: ignore[no-untyped-call]
        need = {kind: amount * self.workers for kind, amount in self.bundle().items()}
        count = min(int(have.get(kind, 0) / amount) for kind, amount in need.items() if amount)
        if count < 1:
            wants = ", ".join(f"{amount:g} {kind}" for kind, amount in need.items())
            has = ", ".join(f"{have.get(kind, 0):g} {kind}" for kind in need)
            raise UserError(
                f"--workers {self.workers} needs {wants}, the cluster has {has}: ask for less"
            )
        return count


def default_resources(
    workers: int, cpus_per_worker: int | None = None, gpus_per_worker: float | None = None
) -> WorkerResources:
    """A GPU for each worker where this machine has one, else cores: by default all, shared out."""
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if torch.cuda.is_available() else 0.0
    if gpus_per_worker < 0:
        raise UserError(f"--gpus-per-worker {gpus_per_worker:g}: give 0 or more")
    if cpus_per_worker is None:
        cpus_per_worker = 1 if gpus_per_worker else max(1, (os.cpu_count() or 1) // max(1, workers))
    return WorkerResources(workers, cpus_per_worker, gpus_per_worker)


def connect(resources: WorkerResources, *, dashboard: bool) -> None:
    """Start a Ray of this process's own, with cores for at least one run.

    More workers than cores are let through, each a thread: slow, but right.

    Args:
        resources: of one run.
        dashboard: needed where runs are stopped early: it serves the API that frees their workers.

    Raises:
        UserError: this machine has too few GPUs for the run.
    """
    # A name left over from a killed cluster would else be tried first, for minutes.
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    # Relative paths mean the same in every process.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Ray's coming default; unset, Ray prints advice about it.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # The commands have displays and files of their own.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
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
