"""A run in this process, or on the workers of a Ray cluster.

The run directory is the only channel in a cluster: workers write metrics and checkpoints there, the
driver reads them, and workers restarted by Ray resume from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import ray.train
import ray.train.torch
import torch

from conr_ray.config import RunConfig, from_yaml
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.origin import Origin
from conr_ray.engine.run import tell_again
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunFailed, UserError, last_line
from conr_ray.method.collectives import all_reduce_sum, rank
from conr_ray.scaling.resources import WorkerResources
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_settings import WandbSettings

_POLL_S, _POLL_REMOTE_S = 0.2, 5.0


def run_here(
    config: RunConfig,
    directory: RunDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    observer: Observer,
    trunks: TrunkStore | None = None,
    span: Span = WHOLE,
) -> None:
    """Train in this process as the only worker; `observer` is called after W&B.

    With `trunks`, the run starts from its trunk; `span` selects the epochs to train.

    Raises:
        UserError, RunFailed: as the loop raises them.
    """
    torch.set_num_threads(resources.cpus_per_worker)
    device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
    directory.clear_failure()
    # Opened first: once started, a W&B run is ended only by the loop.
    images = open_data(config.data)
    observers = Observers([open_wandb(wandb, config), observer])
    train_from_trunk(config, images, directory, observers, device, trunks, span)


def run_on_workers(
    config: RunConfig,
    directory: RunDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    trunks: TrunkStore | None = None,
    span: Span = WHOLE,
    *,
    max_failures: int = 3,
) -> Iterator[MetricRow]:
    """Train on Ray Train workers; yield each epoch's metrics soon after it has ended.

    Rows of epochs trained before a resume, or by the run's trunk or other origin, are left out,
    except for the last row of all.

    Args:
        config: the run's.
        directory: claimed for `config`; visible to all nodes.
        resources: number and size of the workers.
        wandb: where to log; only the first worker does.
        trunks: if given, the run starts from its trunk.
        span: the epochs to train, if not all.
        max_failures: restarts of the worker group after dead processes or nodes.

    Raises:
        UserError, RunFailed: raised by the loop, or Ray gave up on the run.
    """
    seen = (directory.checkpoint_epochs() or [0])[-1]
    if seen == (span.until or config.schedule.epochs):
        rows = directory.load_checkpoint(seen, torch.device("cpu"))["history"]
        directory.write_metrics(rows)
        tracking = open_wandb(wandb, config)
        tell_again(directory, rows, tracking)
        tracking.end(None)
        yield rows[-1]
        return
    job = {
        "config": config.to_yaml(),
        "uri": directory.uri,
        "threads": resources.cpus_per_worker,
        "wandb": wandb,
        "trunks": trunks,
        "span": span,
    }
    trainer = _trainer(job, directory, resources, max_failures)
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            errors.append(error)

    directory.clear_failure()
    # Epochs after the checkpoint are trained and written again.
    directory.write_metrics(directory.metric_rows()[:seen])
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    if not seen and span.origin is not None:
        seen = span.origin[1]
    running = True
    while running:
        running = thread.is_alive()
        if not seen and directory.metric_rows() and (origin := Origin.read(directory)):
            seen = origin.epoch
        for row in directory.metric_rows(from_epoch=seen):
            seen += 1
            yield row
        if running:
            time.sleep(_POLL_S if directory.is_local else _POLL_REMOTE_S)
    directory.raise_failure()
    if errors:
        raise RunFailed(f"Ray gave up on the run: {last_line(errors[0])}") from errors[0]


def _trainer(
    job: dict[str, Any], directory: RunDirectory, resources: WorkerResources, max_failures: int
) -> ray.train.torch.TorchTrainer:
    """Runs `_work` with `job` on every worker."""
    return ray.train.torch.TorchTrainer(
        _work,
        train_loop_config=job,
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=resources.bundle(),
        ),
        torch_config=ray.train.torch.TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo"
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=directory.uri,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )


def _work(job: dict[str, Any]) -> None:
    """One worker; called by Ray Train in each process."""
    config = from_yaml(job["config"], "the run's config")
    torch.set_num_threads(job["threads"])
    device = ray.train.torch.get_device()
    directory = RunDirectory(job["uri"])
    # An error raised here makes Ray restart all workers. One that would recur is recorded for
    # the driver instead, and all workers end.
    images = _open_everywhere(config, directory, device)
    if images is None:
        return
    tracking = open_wandb(job["wandb"], config) if rank() == 0 else Observer()
    with contextlib.suppress(UserError, RunFailed):
        train_from_trunk(config, images, directory, tracking, device, job["trunks"], job["span"])


def _open_everywhere(
    config: RunConfig, directory: RunDirectory, device: torch.device
) -> DataSet | None:
    """The images, or None on all workers if any of them cannot open them."""
    images, failed = None, torch.zeros((), device=device)
    try:
        images = open_data(config.data)
    except UserError as error:
        directory.record_failure(error)
        failed += 1
    return images if all_reduce_sum(failed) == 0 else None
