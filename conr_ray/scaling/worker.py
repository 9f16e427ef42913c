"""What trains a run: this process alone, or each of a run's workers on a Ray cluster."""

from __future__ import annotations

from typing import Any

import torch

from conr_ray.config import RunConfig, from_yaml
from conr_ray.data.store import DataSet
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.profile import Profile
from conr_ray.engine.resume import tell_again
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunFailed, RunStopped, UserError, WorkerFailed
from conr_ray.frozen import open_samples
from conr_ray.method.collectives import all_reduce_sum, rank, world_size
from conr_ray.scaling.resources import WorkerResources
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_settings import WandbSettings


def run_here(
    config: RunConfig,
    directory: RunDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    observer: Observer,
    trunks: TrunkStore | None = None,
    span: Span = WHOLE,
    *,
    profiled: bool = False,
) -> None:
    """Train in this process as the only worker; `observer` is called after W&B.

    With `trunks`, the run starts from its trunk; `span` selects the epochs to train; `profiled`
    adds a profile to its directory.

    Raises:
        UserError, RunFailed, RunStopped: as the loop raises them.
    """
    torch.set_num_threads(resources.cpus_per_worker)
    device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
    directory.tidy()
    # Opened first: once started, a W&B run is ended only by the loop.
    images = open_samples(config, directory)
    observers = Observers([open_wandb(wandb, config), observer])
    if profiled:
        observers = Observers([observers, Profile(directory, device)])
    train_from_trunk(config, images, directory, observers, device, trunks, span)


def work(job: dict[str, Any], device: torch.device) -> None:
    """Train as one worker on `device`.

    An error raised here makes Ray start all workers again. One that would recur is recorded for the
    driver instead, and all workers end. If only one of several fails, as without memory, its error
    ends the others, and no worker that is started again trains.
    """
    with job["pulse"].beating():
        _work(job, device)


def _work(job: dict[str, Any], device: torch.device) -> None:
    config = from_yaml(job["config"], "the run's config")
    torch.set_num_threads(job["threads"])
    directory = RunDirectory(job["uri"])
    # Asked by all before any of them can record a failure.
    if all_reduce_sum(torch.tensor(float(directory.has_failed()), device=device)):
        return
    images = _open_everywhere(config, directory, device)
    if images is None:
        return
    observer = open_wandb(job["wandb"], config) if rank() == 0 else Observer()
    if job["profiled"] and rank() == 0:
        observer = Observers([observer, Profile(directory, device)])
    try:
        train_from_trunk(config, images, directory, observer, device, job["trunks"], job["span"])
    except WorkerFailed:
        if world_size() > 1:
            raise
    except (UserError, RunFailed, RunStopped):
        # One that cannot be recorded must not look like success.
        if rank() == 0 and not directory.has_failed():
            raise


def _open_everywhere(
    config: RunConfig, directory: RunDirectory, device: torch.device
) -> DataSet | None:
    """The images, or None on all workers if any of them cannot open them."""
    images, failed = None, torch.zeros((), device=device)
    try:
        images = open_samples(config, directory)
    except UserError as error:
        directory.record_failure(error)
        failed += 1
    return images if all_reduce_sum(failed) == 0 else None


def tell_run_again(
    config: RunConfig, directory: RunDirectory, wandb: WandbSettings, epoch: int
) -> MetricRow:
    """Complete the files and W&B run of a run that ended at `epoch`; return its last row."""
    rows: list[MetricRow] = directory.load_checkpoint(epoch, torch.device("cpu"))["history"]
    directory.write_metrics(rows)
    tracking = open_wandb(wandb, config)
    tell_again(directory, rows, tracking)
    tracking.end(None)
    return rows[-1]
