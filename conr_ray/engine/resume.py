"""Where a run goes on: its newest checkpoint, and what it has settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from conr_ray.config import RunConfig, from_yaml, override
from conr_ray.engine.checkpoints import Position
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.precision import settled_precision
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.span import Span
from conr_ray.method.collectives import broadcast_first, rank


def read_newest(
    directory: RunDirectory, span: Span, last_epoch: int, device: torch.device
) -> tuple[Position | None, dict[str, Any] | None]:
    """The newest checkpoint up to the last epoch, the same one on all workers, and its place.

    Without one of the run's own, that of its origin, if it has one, and None as its place.
    """
    known = directory.checkpoints() if rank() == 0 else []
    newest = max((place for place in known if place <= (last_epoch, 0)), default=(0, 0))
    agreed = broadcast_first(torch.tensor(newest, device=device)).tolist()
    epoch, steps = int(agreed[0]), int(agreed[1])
    if epoch or steps:
        return (epoch, steps), directory.load_checkpoint(epoch, device, steps)
    if span.origin is None:
        return None, None
    origin, epoch = span.origin
    return None, origin.load_checkpoint(epoch, device)


def with_settled_precision(
    config: RunConfig,
    checkpoint: Mapping[str, Any] | None,
    directory: RunDirectory,
    row_shape: tuple[int, ...],
    device: torch.device,
) -> RunConfig:
    """`config` with the precision that the run keeps; the first worker writes it."""
    if config.optim.precision != "auto":
        return config
    kept: str = "auto"
    if checkpoint is not None:
        config_then = from_yaml(checkpoint["config"], "the checkpoint's config", trusted=True)
        kept = config_then.optim.precision
        if kept == "auto" and device.type == "cpu":
            # What it once stood for.
            kept = "fp32"
    elif rank() == 0 and (claimed := directory.read_config()) is not None:
        kept = claimed.optim.precision
    precision = settled_precision(config, kept, row_shape, device)
    config = override(config, {"optim.precision": precision})
    if rank() == 0:
        directory.write_config(config)
    return config


def tell_again(directory: RunDirectory, rows: Sequence[MetricRow], observer: Observer) -> None:
    """Report a run that was already fully trained: its earlier observers may have died."""
    snapshot = Snapshot.read(directory) if rank() == 0 else None
    if snapshot is not None:
        observer.snapshot(snapshot)
    observer.inherit(rows)
    observer.epoch(rows[-1])
