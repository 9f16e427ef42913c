"""The training loop: one worker's life, from the newest checkpoint to the last epoch.

Shapes: n rows of the global batch, b of this worker.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from conr_ray.config import RunConfig
from conr_ray.data import keyed_random
from conr_ray.data.keyed_random import fold
from conr_ray.data.pixels import Pixels
from conr_ray.data.store import DataSet
from conr_ray.data.views import Views
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, DataNeighbors, cluster_data
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.schedule import Schedule
from conr_ray.engine.snapshot import Snapshot, take_snapshot
from conr_ray.engine.step_figures import StepFigures
from conr_ray.engine.training_state import TrainingState
from conr_ray.errors import RunFailed, UserError
from conr_ray.method.collectives import broadcast_first, rank, share, world_size
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.instance import instance_loss


@dataclass(frozen=True)
class Span:
    """The epochs of a run that are trained in one go.

    Attributes:
        origin: checkpoint of another run, as its directory and epoch, to go on from where the run
            has none of its own; the two may differ in what follows it, and where `may_change`.
        until: epochs after which training ends and a checkpoint is written; all where None.
        pinned: epochs after which checkpoints are written that are kept for good.
    """

    origin: tuple[RunDirectory, int] | None = None
    until: int | None = None
    pinned: frozenset[int] = frozenset()


WHOLE = Span()


def train(
    config: RunConfig,
    images: DataSet,
    directory: RunDirectory,
    observer: Observer,
    device: torch.device,
    span: Span = WHOLE,
) -> list[MetricRow]:
    """Train a run from the newest checkpoint in `directory`, or from the start.

    Called by every worker of a run, inside torch.distributed's process group where there are
    several. All workers return the same rows, one an epoch; the first one writes the files.

    Args:
        config: of the run.
        images: what it is trained on.
        directory: where it is written, and goes on from.
        observer: told of every epoch.
        device: of this worker.
        span: which epochs are trained, where not all.

    Raises:
        UserError: config and images do not fit, or the checkpoint is of other images.
        RunFailed: the loss is not finite.
    """
    error: BaseException | None = None
    try:
        return _train(config, images, directory, observer, device, span)
    except BaseException as raised:
        error = raised
        if isinstance(raised, UserError | RunFailed) and rank() == 0:
            directory.record_failure(raised)
        raise
    finally:
        observer.end(error)


def _train(
    config: RunConfig,
    images: DataSet,
    directory: RunDirectory,
    observer: Observer,
    device: torch.device,
    span: Span,
) -> list[MetricRow]:
    num_clusters = check_data(config, images, world_size())
    num_global, num_rows = config.optim.batch_size, images.num_images
    steps_per_epoch, local = num_rows // num_global, share(num_global)
    positions_b = torch.arange(local.start, local.stop, device=device)

    pixels = Pixels(images.images, device, on_device=config.data.placement == "device")
    views = Views(config.views, images.mean, images.std, device)
    schedule = Schedule(config, steps_per_epoch)
    classes = None if images.labels is None else torch.from_numpy(images.labels).to(device)
    group_stage = GroupStage(config.optim.group_loss_weight)
    precision = _autocast(config.optim.precision, device)

    state = TrainingState.create(config, images.num_channels, device)
    last_epoch = span.until or config.schedule.epochs
    saved_epoch = _load_newest(state, directory, images.fingerprint, device, last_epoch)
    if saved_epoch is None and span.origin is not None:
        origin, origin_epoch = span.origin
        state.load(origin.load_checkpoint(origin_epoch, device), images.fingerprint)
    online, target, optimizer = state.trained_module(), state.target, state.optimizer
    embedder = Embedder(target, pixels, views, precision)

    def cluster() -> DataClustering:
        try:
            found = cluster_data(
                config,
                embedder,
                num_rows=num_rows,
                num_clusters=num_clusters,
                epoch=state.epoch,
            )
        except FloatingPointError as error:
            raise RunFailed(
                f"{error} after {state.epoch} epochs of {steps_per_epoch} steps; last good "
                f"checkpoint: {_named(directory, saved_epoch)}; lower optim.lr"
            ) from None
        state.pseudo_labels, state.centers = found.clusters_n, found.centers_cd
        state.clustered_epoch = state.epoch
        return found

    def scores(clustering: DataClustering) -> dict[str, float]:
        key = fold(config.seed, "scores", state.epoch)
        return clustering.metrics(images.labels, embedder, key)

    due = state.history and schedule.evaluated(state.epoch - 1)
    if due and state.clustered_epoch != state.epoch:
        # The run that it goes on from had no use for these.
        state.history[-1] = {**state.history[-1], **scores(cluster())}
    if state.history and rank() == 0:
        # The run may have been stopped between its checkpoint and these.
        directory.write_metrics(state.history)
    if saved_epoch == last_epoch:
        tell_again(directory, state.history, observer)
    elif state.history:
        observer.inherit(state.history)

    for epoch in range(state.epoch, last_epoch):
        started = time.perf_counter()
        grouped, fraction = schedule.in_group_stage(epoch), schedule.fraction(epoch)
        if grouped and state.clustered_epoch != epoch:
            cluster()
        order = keyed_random.permutation(fold(config.seed, "order", epoch), num_rows).to(device)
        figures = StepFigures(epoch, _named(directory, saved_epoch))

        for step in range(steps_per_epoch):
            rows_n = order[step * num_global : (step + 1) * num_global]
            batch = pixels.take(rows_n[local])
            view_1, view_2 = (
                views.random(
                    batch,
                    fold(config.seed, "view", view, epoch, step),
                    positions_b,
                    group_stage=grouped,
                ).contiguous(memory_format=torch.channels_last)
                for view in (1, 2)
            )
            with precision:
                predictions = online(view_1, view_2)
                keys = target(view_1), target(view_2)

            step_figures: dict[str, Tensor] = {}
            if grouped:
                assert state.pseudo_labels is not None and state.centers is not None
                loss, step_figures = group_stage(
                    predictions,
                    keys,
                    state.bank,
                    sample_ids_n=rows_n,
                    pseudo_labels_n=state.pseudo_labels[rows_n],
                    centers_cd=state.centers,
                    fraction=fraction,
                    classes=classes,
                )
            else:
                loss_1 = instance_loss(predictions[0], keys[1], num_global)
                loss_2 = instance_loss(predictions[1], keys[0], num_global)
                loss = (loss_1 + loss_2) / 2

            optimizer.zero_grad()
            # Workers' parts sum to the global loss, while gradients are averaged over workers.
            torch.autograd.backward(loss * world_size())
            rate = schedule.set_learning_rates(optimizer, epoch, step)
            optimizer.step()
            momentum = schedule.momentum(epoch, step)
            target.follow(state.online, momentum)
            figures.add(loss, step_figures)

        snapshot: Snapshot | None = None
        row: dict[str, float | int | str | None] = {
            "epoch": epoch,
            "stage": "group" if grouped else "instance",
            **figures.means(),
            "fraction": fraction,
            "lr": rate,
            "predictor_lr": optimizer.param_groups[1]["lr"],
            "momentum": momentum,
        }
        state.epoch = epoch + 1
        trained = time.perf_counter()
        row["images_per_s"] = steps_per_epoch * num_global / (trained - started)
        if schedule.evaluated(epoch):
            clustering = cluster()
            row |= scores(clustering)
            if state.epoch == config.schedule.epochs:
                _write_table("assignments", clustering.assignments(images, fraction), directory)
                if config.evaluation.neighbors:
                    near = DataNeighbors.of(config.neighborhood, clustering.embeddings_bd, num_rows)
                    row |= near.metrics(images.labels)
                    _write_table("neighbors", near.table(images), directory)
            if schedule.pictured(epoch):
                snapshot = take_snapshot(
                    config.neighborhood, clustering, images, epoch=state.epoch, fraction=fraction
                )
                if snapshot is not None:
                    snapshot.write(directory)
        epoch_time_s = time.perf_counter() - started
        row["epoch_time_s"] = epoch_time_s
        row["train_time_s"] = epoch_time_s + _seconds_of(state.history)
        state.history.append(row)

        pinned = state.epoch in span.pinned
        if pinned or schedule.saved(epoch) or state.epoch == last_epoch:
            saved_epoch = state.epoch
            _save(config, state, directory, images.fingerprint, pinned=pinned)
        if rank() == 0:
            directory.write_metrics(state.history)
        # Drawing is no part of the epoch's time.
        if snapshot is not None:
            observer.snapshot(snapshot)
        observer.epoch(row)

    return state.history


def tell_again(directory: RunDirectory, rows: Sequence[MetricRow], observer: Observer) -> None:
    """Tell of a run that had trained all its epochs before: who was told then may be dead."""
    snapshot = Snapshot.read(directory) if rank() == 0 else None
    if snapshot is not None:
        observer.snapshot(snapshot)
    observer.inherit(rows)
    observer.epoch(rows[-1])


def check_data(config: RunConfig, images: DataSet, workers: int) -> int:
    """Number of clusters of a run of `config` on `images` by so many workers.

    Raises:
        UserError: too few images for the batch or the clusters, or no number of clusters.
    """
    num_clusters = config.clustering.num_clusters or images.num_classes
    if num_clusters is None:
        raise UserError("clustering.num_clusters is not set and the images have no labels: set it")
    if num_clusters > images.num_images:
        raise UserError(
            f"clustering.num_clusters={num_clusters} exceeds the {images.num_images} images: "
            "lower it or add images"
        )
    if config.optim.batch_size > images.num_images:
        raise UserError(
            f"optim.batch_size={config.optim.batch_size} exceeds the {images.num_images} images: "
            "lower it or add images"
        )
    if not 1 <= workers <= config.optim.batch_size // 2:
        raise UserError(
            f"--workers {workers} is not between 1 and {config.optim.batch_size // 2}, half of "
            "optim.batch_size: a worker needs 2 images of a batch"
        )
    return num_clusters


def _load_newest(
    state: TrainingState,
    directory: RunDirectory,
    fingerprint: str,
    device: torch.device,
    last_epoch: int,
) -> int | None:
    """Load the newest checkpoint up to `last_epoch`, the same one on all workers.

    Returns its epoch, None without one.
    """
    epochs = directory.checkpoint_epochs() if rank() == 0 else []
    newest = max((epoch for epoch in epochs if epoch <= last_epoch), default=0)
    epoch = int(broadcast_first(torch.tensor(newest, device=device)))
    if not epoch:
        return None
    state.load(directory.load_checkpoint(epoch, device), fingerprint)
    return epoch


def _save(
    config: RunConfig,
    state: TrainingState,
    directory: RunDirectory,
    fingerprint: str,
    *,
    pinned: bool,
) -> None:
    checkpoint = state.to_checkpoint(config, fingerprint)
    if rank() > 0:
        return
    summary = {"workers": world_size(), "data_fingerprint": fingerprint, **state.history[-1]}
    directory.save_checkpoint(
        state.epoch,
        checkpoint,
        {"epochs_trained": state.epoch, **summary},
        config.checkpoint.keep,
        pinned=pinned,
    )


def _seconds_of(history: Sequence[MetricRow]) -> float:
    """Time in which the epochs of `history` were trained, whoever trained them."""
    return sum(float(row["epoch_time_s"] or 0) for row in history)


def _write_table(name: str, table: pa.Table, directory: RunDirectory) -> None:
    if rank() == 0:
        directory.write_table(f"{name}.parquet", table)


def _named(directory: RunDirectory, epoch: int | None) -> str:
    return "none yet" if epoch is None else f"{directory.uri}/{directory.checkpoint_name(epoch)}"


def _autocast(precision: str, device: torch.device) -> torch.autocast:
    """Mixed precision as a reusable context."""
    if precision == "auto":
        able = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if able else "fp32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
