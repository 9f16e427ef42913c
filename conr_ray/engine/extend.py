"""Take more samples into a run that has ended, without training: its clusters go on with them.

Shapes: c clusters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from conr_ray.config import RunConfig, override
from conr_ray.data.store import DataSet
from conr_ray.data.subset import ALL_SAMPLES
from conr_ray.engine.run import Run
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import Span
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError


def extended_config(run: TrainedRun, path: str) -> RunConfig:
    """The config of a run on the samples at `path`, which goes on with the clusters of `run`.

    Raises:
        UserError: the run has no clusters yet, or its source has no path.
    """
    if run.num_clusters is None:
        raise UserError(f"{run.directory.uri}: the run has no clusters yet: train it on")
    if run.config.data.path is None:
        raise UserError(
            f"{run.directory.uri}: data.source={run.config.data.source} has no path, so nothing "
            "can be added: train a new run, and give it --ids-of"
        )
    changes = {
        **ALL_SAMPLES,
        "data.path": path,
        "clustering.num_clusters": run.num_clusters,
        "clustering.ids_of": run.directory.uri,
        # What it learned from is about the samples of before, and has been heeded.
        "clustering.edits": None,
    }
    return override(run.config, changes)


def extend(
    origin: RunDirectory,
    config: RunConfig,
    data: DataSet,
    out: RunDirectory,
    device: torch.device,
) -> None:
    """Write a run that holds all of `data`, by the networks of the run in `origin`.

    Its networks, and how samples are prepared for them, are those of that run. The centres of its
    clusters move once, to the means of all samples that are nearest to them (a step of k-means);
    those that a framework learns, or that another kind of clustering finds, stay as they are.
    Numbers, names and edits go along (`engine.earlier_clusters`).

    Args:
        origin: of a run that has ended.
        config: as `extended_config` makes it.
        data: its samples; those of the earlier run are among them, and more.
        out: of the new run, claimed for `config`.
        device: where to compute.

    Raises:
        UserError: the samples have another shape, none is of the earlier run, or that has not
            ended.
        RunFailed: an embedding is not finite.
    """
    epoch, _ = origin.newest_checkpoint()
    shape = TrainedRun.load(origin).inputs_state["shape"]
    if list(data.row_shape) != list(shape):
        raise UserError(
            f"data.path={config.data.path}: {data.what} of {_shown(data.row_shape)}, but those of "
            f"{origin.uri} are {_shown(shape)}: give {data.what} of that shape"
        )
    if epoch < config.schedule.epochs:
        raise UserError(f"{origin.uri}: the run has not ended: resume it to its end")
    run = Run(config, data, out, device, Span(origin=(origin, epoch), extends=True))
    with run.acceleration.applied():
        # The last epoch's figures stay, but for those of the clusters.
        run.state.history[-1] = row = dict(run.state.history[-1])
        run.evaluate(row)
        run.save_where_due()


def _shown(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))
