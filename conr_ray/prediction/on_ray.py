"""Prediction on a Ray cluster: Ray Data reads in tasks and places in a pool of actors.

Files are read in the tasks of `map_batches`, not by Ray Data's readers: those end a block with the
first broken file, and cannot say of an image why it was not read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data
import torch
from ray.exceptions import RayError

from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import RunFailed, last_line
from conr_ray.prediction.placing import Placing
from conr_ray.prediction.samples import NewSamples
from conr_ray.scaling.resources import WorkerResources
from conr_ray.storage.patience import patient

# Of a worker's cores, what reads for it has half of one: decoding takes less than the network.
_READING = 0.5


Work = Callable[[pa.Table], pa.Table]


class _Actor:
    """Work on a node, with the worker's cores and GPU."""

    def __init__(self, make: Callable[[str], Work], threads: int, on_gpu: bool) -> None:
        torch.set_num_threads(threads)
        self._work = make("cuda" if on_gpu else "cpu")

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._work(batch)


def _placing(
    uri: str, num_clusters: int | None, edits: bool, embeddings: bool, device: str
) -> Work:
    load = patient(TrainedRun.load, "://" not in uri)
    return Placing(load(uri, device, num_clusters, edits=edits), embeddings)


def placed_on_ray(
    samples: NewSamples,
    pieces: Iterable[pa.Table],
    run_uri: str,
    num_clusters: int | None,
    resources: WorkerResources,
    *,
    embeddings: bool,
    edits: bool = False,
) -> Iterator[pa.Table]:
    """The rows of the samples in `pieces`, batch by batch, in any order.

    `resources.workers` actors place them among the run's own clusters, or `num_clusters`
    reclustered ones; with `edits`, as a person has changed them.

    Raises:
        RunFailed: a task failed, or its node too often.
    """
    make = partial(_placing, run_uri, num_clusters, edits, embeddings)
    yield from worked_on_ray(pieces, samples.read, make, resources)


def worked_on_ray(
    pieces: Iterable[pa.Table],
    read: Callable[[pa.Table], Iterator[pa.Table]] | None,
    make: Callable[[str], Work],
    resources: WorkerResources,
) -> Iterator[pa.Table]:
    """What actors make of tables, in any order.

    Args:
        pieces: the tables; each is a task, and Ray's store holds them.
        read: makes of each the tables that actors work on, in tasks of its own; they work on the
            pieces themselves if None.
        make: makes the work, given the device of an actor.
        resources: number of actors, and what each has.

    Raises:
        RunFailed: a task failed, or its node too often.
    """
    # A piece is a block, and a block is a task. Ray's store holds them, this process none.
    blocks: list[Any] = [ray.put(piece) for piece in pieces]
    if not blocks:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    for name in ("ray.data", "ray.data._internal", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cpus, on_gpu = resources.cpus_per_worker, resources.gpus_per_worker > 0
    of_actor: dict[str, Any] = {"num_gpus": resources.gpus_per_worker} if on_gpu else {}
    found: ray.data.Dataset = ray.data.from_arrow_refs(blocks)
    if read is not None:
        found = found.map_batches(read, batch_size=None, batch_format="pyarrow", num_cpus=_READING)
    worked = found.map_batches(
        _Actor,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=resources.workers),
        fn_constructor_args=(make, cpus, on_gpu),
        num_cpus=cpus if read is None else cpus - _READING,
        **of_actor,
    )
    try:
        yield from worked.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    except RayError as error:
        raise RunFailed(f"a worker has failed: {last_line(error)}") from None
