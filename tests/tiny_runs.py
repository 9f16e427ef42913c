"""Runs of a few seconds on real digits, for tests of everything around the method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from conr_ray.config import RunConfig, load_preset
from conr_ray.engine.loop import train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.stopping import stop_request
from conr_ray.engine.training_state import TrainingState, neighborhood_of
from conr_ray.errors import RunStopped
from conr_ray.frozen import open_samples
from conr_ray.method.collectives import rank, world_size
from conr_ray.method.frameworks.base import Step
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.pairs import PairStage

TINY: dict[str, Any] = {
    "data.limit": 300,
    "model.widths": [4, 8],
    "model.head_hidden_dim": 32,
    "model.embedding_dim": 16,
    "optim.batch_size": 64,
    # Full after two steps; not divisible over 3 workers.
    "bank.size": 130,
    "schedule.epochs": 4,
    "schedule.group_start": 2,
    "schedule.relax_epochs": 1,
    "schedule.warmup_epochs": 1,
    "evaluation.every": 1,
    "checkpoint.every": 1,
}
# Of other sections, what a framework works with.
NEEDS: dict[str, dict[str, Any]] = {"heads": {"neighborhood__pool": "data", "bank__size": 0}}
# For `Clusterer` and `search`, on samples of their own.
SHORT: dict[str, Any] = {
    "model__widths": [8, 8],
    "model__head_hidden_dim": 16,
    "model__embedding_dim": 8,
    "schedule__epochs": 2,
    "schedule__group_start": 1,
    "schedule__relax_epochs": 1,
    "schedule__warmup_epochs": 1,
    "clustering__restarts": 2,
}
# 60 vectors in three groups.
VECTORS = np.random.default_rng(0).normal(size=(60, 5)) + 6 * (np.arange(60) % 3)[:, None]
# What makes such a run collapse within two epochs, whatever the seed.
COLLAPSING: dict[str, Any] = {
    "optim__weight_decay": 3.0,
    "byol__momentum": 0,
    "data__limit": 200,
    "model__widths": [8, 8],
    "model__head_hidden_dim": 16,
    "model__embedding_dim": 8,
    "bank__size": 0,
    "clustering__restarts": 2,
    "evaluation__neighbors": False,
}


def tiny_config(**changes: Any) -> RunConfig:
    """The digits preset cut down; keywords such as schedule__epochs=6 change fields."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return load_preset("digits", {**TINY, **dotted})


def framework_config(name: str, **changes: Any) -> RunConfig:
    """`tiny_config` for a framework."""
    return tiny_config(model__framework=name, **{**changes, **NEEDS.get(name, {})})


def group_stage_of(config: RunConfig, state: TrainingState, classes: Tensor | None = None) -> Stage:
    """The group stage of a run; in all data, the next two samples are a sample's neighbours."""
    if config.neighborhood.pool == "batch":
        return GroupStage(state.bank, 1.0, classes)
    stage = PairStage(neighborhood_of(config), 1.0, classes)
    device = next(state.framework.parameters()).device
    rows_n1 = torch.arange(1000, device=device)[:, None]
    stage.neighbors_mk = (rows_n1 + torch.arange(3, device=device)) % 300
    return stage


def lists_of(vectors: Any) -> pa.Array:
    """Vectors (n, d) as a column of a table."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def on_vectors(file: Path, vectors: Any, labels: Any = None) -> dict[str, Any]:
    """Write a table of vectors to `file`; the changes of `tiny_config` that train on it."""
    columns = {"embedding": lists_of(vectors)} | ({} if labels is None else {"label": labels})
    pq.write_table(pa.table(columns), file)
    return {
        "data__source": "vectors",
        "data__path": str(file),
        "data__limit": None,
        "model__backbone": "mlp",
        "model__widths": [32],
        "views__noise": 0.3,
        "views__dropout": 0.2,
    }


def as_settings(config_changes: dict[str, Any]) -> list[str]:
    """Fields as `--set` arguments of the commands."""
    return [word for name, v in config_changes.items() for word in ("--set", f"{name}={v}")]


def run_here(config: RunConfig, folder: Path, observer: Observer | None = None) -> list[MetricRow]:
    """Train in this process (or as this worker), from the newest checkpoint in `folder`."""
    images = open_samples(config)
    return train(config, images, RunDirectory(folder), observer or Observers(), torch.device("cpu"))


def run_step_by_step(config: RunConfig, folder: Path) -> tuple[list[MetricRow], list[str]]:
    """As `run_here`, but stopped after each step and resumed; also what was said each time.

    Of several workers the last one alone is asked to stop.
    """
    told: list[str] = []
    while True:
        stop_request.asked = rank() == world_size() - 1
        try:
            return run_here(config, folder), told
        except RunStopped as stop:
            told.append(str(stop))
        finally:
            stop_request.asked = False


def train_step(state: TrainingState, stage: Stage, views: list[Tensor], step: Step) -> Tensor:
    """A step as the training loop makes it, on one worker; returns the loss."""
    step = stage.paired(step)
    outputs = state.framework(views, step)
    loss, _ = stage.loss(state.framework, outputs, step)
    state.optimizer.zero_grad()
    torch.autograd.backward(loss)
    state.optimizer.step()
    state.framework.after_step(outputs, step)
    return loss.detach()


def without_times(rows: list[MetricRow]) -> list[dict[str, Any]]:
    """The figures that a seed decides."""
    times = ("epoch_time_s", "train_time_s", "images_per_s", "discovery_time_s")
    return [{n: v for n, v in row.items() if n not in times} for row in rows]
