"""A run on the workers of a Ray cluster: a Ray task for one of them, Ray Train for several.

The run directory is the only channel in a cluster: workers write metrics and checkpoints there, the
driver reads them, and workers restarted by Ray resume from the newest checkpoint. The driver loads
Ray Train only for several workers: a command is at work some seconds earlier without.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import ray
from ray.exceptions import RayError

from conr_ray.config import RunConfig
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.stopping import stop_request
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunFailed, last_line
from conr_ray.scaling.pulse import Pulse
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.watch import Limits, Watch
from conr_ray.tracking.wandb_settings import WandbSettings

_POLL_S, _POLL_REMOTE_S = 0.2, 5.0
_LIMITS = Limits()
_logger = logging.getLogger(__name__)


def run_on_workers(
    config: RunConfig,
    directory: RunDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    trunks: TrunkStore | None = None,
    span: Span = WHOLE,
    *,
    max_failures: int = 3,
    profiled: bool = False,
    limits: Limits = _LIMITS,
    tell: Callable[[str], None] = _logger.warning,
    pulse: Pulse | None = None,
) -> Iterator[MetricRow]:
    """Train on workers of the cluster; yield each epoch's metrics soon after it has ended.

    Rows of epochs trained before a resume, or by the run's trunk or other origin, are left out,
    except for the last row of all.

    Args:
        config: the run's.
        directory: claimed for `config`; visible to all nodes.
        resources: number and size of the workers.
        wandb: where to log; only the first worker does.
        trunks: if given, the run starts from its trunk.
        span: the epochs to train, if not all.
        max_failures: restarts of all workers after dead processes or nodes.
        profiled: add a profile of the first worker to the run's directory.
        limits: how long workers may do nothing.
        tell: given lines about workers that do nothing.
        pulse: of another process that watches the workers; by default this one does.

    Raises:
        StorageError: the directory cannot be written.
        UserError, RunFailed: raised by the loop, or Ray gave up on the run.
        RunStopped: this process was asked to stop, and the workers have.
    """
    directory.tidy()
    seen, _ = directory.newest_checkpoint()
    if seen == (span.until or config.schedule.epochs):
        from conr_ray.scaling.worker import tell_run_again

        yield tell_run_again(config, directory, wandb, seen)
        return
    watch = Watch(limits, tell) if pulse is None else None
    job = {
        "pulse": pulse if watch is None else watch.pulse,
        "config": config.to_yaml(),
        "uri": directory.uri,
        "threads": resources.cpus_per_worker,
        "wandb": wandb,
        "trunks": trunks,
        "span": span,
        "profiled": profiled,
    }
    train = _on_one_worker if resources.workers == 1 else _on_several_workers
    errors: list[BaseException] = []

    def fit() -> None:
        try:
            train(job, directory, resources, max_failures)
        except BaseException as error:
            errors.append(error)

    # Epochs after the checkpoint are trained and written again.
    directory.write_metrics(directory.metric_rows()[:seen])
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    if not seen and span.origin is not None:
        seen = span.origin[1]
    running = True
    with stop_request.heeding():
        while running:
            running = thread.is_alive()
            if not seen and directory.metric_rows() and (origin := Origin.read(directory)):
                seen = origin.epoch
            for row in directory.metric_rows(from_epoch=seen):
                seen += 1
                yield row
            if running:
                if watch is not None:
                    if stop_request.asked:
                        watch.stop_workers()
                    watch.look()
                thread.join(_POLL_S if directory.is_local else _POLL_REMOTE_S)
    directory.raise_failure()
    if errors:
        # If it is the storage, that is said, and may pass.
        directory.check_room()
        raise RunFailed(f"Ray gave up on the run: {last_line(errors[0])}") from errors[0]


def load_here() -> None:
    """Load torch, with which the driver prepares a run, beside the start of Ray; does not wait.

    A start waits for processes, one after another, and leaves a core to this one.
    """
    threading.Thread(target=import_module, args=("torch",)).start()


def load_ahead(resources: WorkerResources) -> None:
    """Have the process of a run's only worker load what it needs; does not wait for it."""
    if resources.workers == 1:
        _task(_load, resources, max_calls=0).remote()


def _task(function: Callable[..., None], resources: WorkerResources, *, max_calls: int) -> Any:
    """A Ray task with one worker's resources, whose process ends after `max_calls` of it, if not 0.

    Without Ray's own retries: where the memory of the node is short they have no end.
    """
    return ray.remote(
        num_cpus=resources.cpus_per_worker,
        num_gpus=resources.gpus_per_worker,
        max_retries=0,
        max_calls=max_calls,
    )(function)


def _load() -> None:
    import conr_ray.scaling.worker  # noqa: F401


def _on_one_worker(
    job: dict[str, Any], _: RunDirectory, resources: WorkerResources, max_failures: int
) -> None:
    """Run `_work_alone` with `job` in a task, again after each of `max_failures` failures.

    Ray Train would start a controller and four more processes, one after another, to do the same.
    """
    # Each attempt in a process of its own: that of a failed one may be broken.
    task = _task(_work_alone, resources, max_calls=1)
    for failures_left in range(max_failures, -1, -1):
        try:
            ray.get(task.remote(job, "cuda" if resources.gpus_per_worker else "cpu"))
            return
        except RayError:
            # A task would start another Ray for a command that is being left.
            if not failures_left or not ray.is_initialized():
                raise


def _work_alone(job: dict[str, Any], device: str) -> None:
    """The only worker; called by Ray in a process of its own."""
    import torch

    from conr_ray.scaling.worker import work

    work(job, torch.device(device))


def _on_several_workers(
    job: dict[str, Any], directory: RunDirectory, resources: WorkerResources, max_failures: int
) -> None:
    """Run `_work` with `job` on every worker of a group of Ray Train."""
    import ray.train
    import ray.train.torch

    class Trainer(ray.train.torch.TorchTrainer):
        """Without the process that hands out data sets of Ray's: there are none."""

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]
            return [one for one in callbacks if type(one).__name__ != "DatasetsCallback"]

    Trainer(
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
    ).fit()


def _work(job: dict[str, Any]) -> None:
    """One worker of several; called by Ray Train in each process."""
    import ray.train.torch

    from conr_ray.scaling.worker import work

    work(job, ray.train.torch.get_device())
