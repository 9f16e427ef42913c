"""The training loop of one worker, from the newest checkpoint to the last epoch.

Shapes: n rows of the global batch, b of this worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import nn

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.engine.memory import NOT_MADE, is_out_of_memory, out_of_memory
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run import Run
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.stopping import stop_request
from conr_ray.errors import RunFailed, RunStopped, StorageError, UserError, WorkerFailed
from conr_ray.method.batch_norm import average_running_statistics
from conr_ray.method.collectives import rank, world_size
from conr_ray.method.phases import phase


def train(
    config: RunConfig,
    data: DataSet,
    directory: RunDirectory,
    observer: Observer,
    device: torch.device,
    span: Span = WHOLE,
) -> list[MetricRow]:
    """Train a run from the newest checkpoint in `directory`, or from the start.

    Called by every worker of a run, inside a torch.distributed process group if there are several.
    All workers return the same rows, one per epoch; the first one writes the files. A checkpoint
    may be of the first steps of an epoch, left by a run that was stopped there.

    Args:
        config: of the run.
        data: training data.
        directory: where the run is written and resumed.
        observer: notified of every epoch.
        device: of this worker.
        span: the epochs to train.

    Raises:
        UserError: config, samples and checkpoint do not fit together.
        RunFailed: the loss is not finite; RunCollapsed; WorkerFailed, which one worker alone may
            raise.
        RunStopped: one of the workers was asked to stop.
    """
    error: BaseException | None = None
    run = None
    try:
        run = Run(config, data, directory, device, span)
        return _train(run, observer)
    except BaseException as raised:
        error = raised
        if is_out_of_memory(raised):
            moment = NOT_MADE if run is None else run.moment
            error = out_of_memory(raised, config, data, device, moment)
            record_failure(directory, error)
            raise error from raised
        record_failure(directory, raised)
        raise
    finally:
        observer.end(error)


def record_failure(directory: RunDirectory, error: BaseException) -> None:
    """Record why a run has ended, once, unless it is an error of the code.

    Where the storage fails, the error itself is what tells it.
    """
    if not isinstance(error, UserError | RunFailed | RunStopped):
        return
    if rank() == 0 or isinstance(error, WorkerFailed):
        with suppress(StorageError):
            directory.record_failure(error)


def _train(run: Run, observer: Observer) -> list[MetricRow]:
    with run.acceleration.applied(), stop_request.heeding():
        trained = run.state.trained_module()
        run.tell_what_was(observer)
        for epoch in range(run.state.epoch, run.last_epoch):
            with phase(run.stage_at(epoch).name):
                row, snapshot = _train_epoch(run, trained, epoch)
            # Drawing does not count toward the epoch's time.
            if snapshot is not None:
                observer.snapshot(snapshot)
            observer.epoch(row)
            run.check_collapse()
    return run.state.history


def _train_epoch(run: Run, trained: nn.Module, epoch: int) -> tuple[MetricRow, Snapshot | None]:
    state, inputs, schedule = run.state, run.inputs, run.schedule
    framework, optimizer = state.framework, state.optimizer
    stage, figures = run.stage_at(epoch), run.figures(epoch)
    with phase("evaluation"):
        run.prepare(stage, epoch)
    side = run.config.views.size_in(epoch)

    first = figures.num_steps
    steps = run.prefetched(map(stage.paired, run.steps(epoch, first)))
    for index, step in enumerate(steps, first):
        with phase("views"):
            views = [
                inputs.random(batch, key, step.positions_b, mild=stage.mild_views, size=side)
                for batch, key in zip(run.batches(step), run.view_keys(epoch, index), strict=True)
            ]
        with phase("online"), run.acceleration.autocast():
            outputs = trained(views, step)
        with phase("loss"):
            loss, step_figures = stage.loss(framework, outputs, step)
        with phase("backward"):
            optimizer.zero_grad()
            # Workers' parts sum to the global loss, while gradients are averaged over workers.
            torch.autograd.backward(loss * world_size())
        with phase("optimiser"):
            rate = schedule.set_learning_rates(optimizer, epoch, index)
            optimizer.step()
            followed = framework.after_step(outputs, step)
        rates = {f"{group['name']}_lr": group["lr"] for group in optimizer.param_groups[1:]}
        figures.add(loss, step_figures, {"lr": rate, **rates, **followed})
        if figures.due and figures.look(wants_save=run.wants_save):
            run.stop(figures)
        if figures.save_agreed:
            with phase("checkpoint"):
                run.save_within_epoch(figures)

    average_running_statistics(framework)
    row: dict[str, float | int | str | None] = {
        "epoch": epoch,
        "stage": stage.name,
        **figures.means(),
        "fraction": schedule.fraction(epoch),
        **figures.latest,
    }
    state.epoch, state.within = epoch + 1, None
    row["images_per_s"] = run.num_trained / figures.seconds
    with phase("evaluation"):
        snapshot = run.evaluate(row) if schedule.evaluated(epoch) else None
    row["epoch_time_s"] = epoch_time_s = figures.seconds
    row["train_time_s"] = epoch_time_s + _seconds_of(state.history)
    state.history.append(row)
    with phase("checkpoint"):
        run.save_where_due()
    return row, snapshot


def _seconds_of(history: Sequence[MetricRow]) -> float:
    """Training time of the epochs of `history`, including those of a trunk."""
    return sum(float(row["epoch_time_s"] or 0) for row in history)
