"""Embed a run's images before it trains, where its backbone does not: here or on a Ray cluster."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console

from conr_ray.config import RunConfig, from_yaml
from conr_ray.data.store import DataSet, open_data
from conr_ray.errors import UserError
from conr_ray.frozen import FrozenBackbone, embedded
from conr_ray.frozen.sharing import share_embedded
from conr_ray.frozen.store import Part, is_embedded, vectors_of
from conr_ray.prediction.progress import PredictionProgress
from conr_ray.prediction.samples import SampleForm
from conr_ray.prediction.table import BatchEmbedding
from conr_ray.scaling.resources import WorkerResources
from conr_ray.storage.files import Folder

# Of an actor: with more, layers of usual sizes gain little.
_MOST_CORES = 8


def embedded_ahead(
    config: RunConfig,
    images: DataSet,
    console: Console,
    resources: WorkerResources | None = None,
    run: Folder | None = None,
) -> DataSet:
    """`conr_ray.frozen.embedded`, with its progress on a console.

    Args:
        config: of a run, whose images are those of its `data` if `resources` are given.
        images: its images.
        console: shows what is done, with the time left, if anything is to be done.
        resources: of the connected Ray cluster. Actors embed where it has more nodes or GPUs than
            this process can use.
        run: its folder, which may keep the weights; if the cluster has several nodes, the others
            find the vectors there.

    Raises:
        UserError: the backbone or its weights cannot be had, or the cache cannot be written.
        RunFailed: an actor failed.
    """
    if not config.embeds_once:
        return images
    is_alone = resources is None or _is_alone(resources)
    if is_embedded(config, images, run):
        data = embedded(config, images, run=run)
    else:
        count = f"{images.num_rows:,} images"
        if config.data.embedded_views:
            count += f" and {config.data.embedded_views} views of each"
        console.print(f"embedding {count} by {config.model.backbone}, once", soft_wrap=True)
        with PredictionProgress(images.num_rows, console) as progress:
            embed = None if resources is None or is_alone else OnRay(config, resources)
            data = embedded(config, images, embed=embed, progress=progress, run=run)
    if run is not None and not is_alone:
        share_embedded(data, run)
    return data


def _is_alone(resources: WorkerResources) -> bool:
    """Whether this process has all that the cluster has to embed with: one node, a GPU at most."""
    from conr_ray.scaling.nodes import alive_nodes

    gpus = sum(node["Resources"].get("GPU", 0) for node in alive_nodes().values())
    return not resources.more_to_come and len(alive_nodes()) == 1 and gpus < 2


@dataclass(frozen=True)
class OnRay:
    """Embeds by actors, of the images that `config.data` leads to on their nodes."""

    config: RunConfig
    resources: WorkerResources

    def __call__(
        self, backbone: FrozenBackbone, images: DataSet, left: Iterable[range]
    ) -> Iterator[Part]:
        """The embeddings of what is left, as the workers have them ready."""
        from conr_ray.prediction.on_ray import worked_on_ray

        shared = shared_backbone(backbone)
        make = _Make(self.config.to_yaml(), shared, images.rows_fingerprint)
        pieces = (pa.table({"first": [r.start], "stop": [r.stop]}) for r in left)
        for table in worked_on_ray(pieces, None, make, _spread(self.resources)):
            for row in table.to_pylist():
                shape = row["shape"]
                yield row["first"], np.frombuffer(row["vectors"], np.float32).reshape(shape)


def _spread(resources: WorkerResources) -> WorkerResources:
    """As many actors as fit on the cluster while nothing trains: one for each GPU, or few cores."""
    from conr_ray.scaling.nodes import alive_nodes

    nodes = [node["Resources"] for node in alive_nodes().values()]
    if resources.gpus_per_worker:
        count = int(sum(node.get("GPU", 0) for node in nodes))
        return WorkerResources(max(1, count), 1, 1.0)
    cores = [int(node.get("CPU", 0)) for node in nodes]
    each = max(1, min([_MOST_CORES, *(count for count in cores if count)]))
    return WorkerResources(max(1, sum(count // each for count in cores)), each)


@dataclass(frozen=True)
class SharedBackbone:
    """A backbone in Ray's store; pickled."""

    facts: dict[str, Any]
    content: Any

    def on(self, device: str) -> FrozenBackbone:
        """The backbone on a device of this process."""
        import ray

        with tempfile.TemporaryDirectory() as place:
            loaded = FrozenBackbone.of_file(self.facts, ray.get(self.content), Path(place))
        return replace(loaded, device=torch.device(device))


def shared_backbone(backbone: FrozenBackbone) -> SharedBackbone:
    """The backbone where actors find it."""
    import ray

    return SharedBackbone(backbone.facts, ray.put(backbone.content()))


@dataclass(frozen=True)
class BatchesOf:
    """Makes an actor's work on batches of images; pickled."""

    backbone: SharedBackbone
    form: SampleForm

    def __call__(self, device: str) -> BatchEmbedding:
        """The work of an actor, on its device."""
        return BatchEmbedding(self.backbone.on(device), self.form)


@dataclass(frozen=True)
class _Make:
    """Makes an actor's work on rows of the decoded images; pickled."""

    config: str
    backbone: SharedBackbone
    fingerprint: str

    def __call__(self, device: str) -> _Work:
        config = from_yaml(self.config, "the run's config", trusted=True)
        images = open_data(config.data)
        if images.rows_fingerprint != self.fingerprint:
            raise UserError("data.path: another node finds other images there: mount the same")
        return _Work(config, images, self.backbone.on(device))


@dataclass(frozen=True)
class _Work:
    config: RunConfig
    images: DataSet
    backbone: FrozenBackbone

    def __call__(self, piece: pa.Table) -> pa.Table:
        rows = []
        for one in piece.to_pylist():
            part = range(one["first"], one["stop"])
            found = vectors_of(self.config, self.images, self.backbone, part)
            rows.append(
                {"first": part.start, "shape": list(found.shape), "vectors": found.tobytes()}
            )
        schema = {"first": pa.int64(), "shape": pa.list_(pa.int64()), "vectors": pa.binary()}
        return pa.Table.from_pylist(rows, pa.schema(schema))
