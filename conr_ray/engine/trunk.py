"""The shared trunk: the instance stage that runs have in common, trained once.

Runs that agree on all that shapes the instance stage are the same run until their group stages
begin. They go on from checkpoints of one *trunk*, a run without a group stage, which is trained as
far as anyone has asked. Trunks lie in a store under a hash of what shaped them: fields, images and
the code of the instance stage. A trunk is a run directory; `origin.json` in the directory of a run
tells where the run came from.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from conr_ray.config import RunConfig, override
from conr_ray.data import keyed_random, pixels, views
from conr_ray.data.store import DataSet
from conr_ray.engine import (
    embedder,
    evaluation,
    label_free,
    loop,
    schedule,
    step_figures,
    training_state,
)
from conr_ray.engine.loop import WHOLE, Span, train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import RunFailed, UserError
from conr_ray.method import batch_norm, collectives, networks, schedules
from conr_ray.method.clustering import kmeans, metrics
from conr_ray.method.collectives import broadcast_first, rank
from conr_ray.method.neighbors import (
    compiled,
    neighbor_lists,
    rank_keys,
    reranking,
    rough_products,
    search_kernels,
)
from conr_ray.method.stages import instance as instance_stage
from conr_ray.storage.locks import FileLocks, Lock, Locks

logger = logging.getLogger(__name__)

# Fields without a part in the instance stage, at values that any config can have.
_GROUP_STAGE_FIELDS: dict[str, Any] = {
    "schedule.group_start": "never",
    "schedule.relax_epochs": 0,
    "neighborhood.kind": "euclidean",
    "neighborhood.k1": 1,
    "neighborhood.k2": 1,
    "neighborhood.k": 1,
    "boundary.initial_fraction": 1.0,
    "bank.size": 0,
    "bank.dtype": "fp32",
    "bank.sharded": True,
    "views.crop_scale_group_stage": [1.0, 1.0],
    "views.group_stage_strength": 1.0,
    "optim.group_stage_lr_factor": 1.0,
    "optim.group_stage_predictor_lr_factor": 1.0,
    "optim.group_loss_weight": 1.0,
    "evaluation.neighbors": False,
    "evaluation.snapshot_every": None,
}
# Sections that say where things are and what is kept; images count by their fingerprint.
_NOT_SHAPING = ("data", "checkpoint", "tracking")
# What trains an instance stage, or makes the figures in the rows of its epochs.
_SHAPING_CODE = (
    *(keyed_random, pixels, views),
    *(embedder, evaluation, label_free, loop, schedule, step_figures, training_state),
    *(batch_norm, collectives, instance_stage, kmeans, metrics, networks, schedules),
    *(compiled, neighbor_lists, rank_keys, reranking, rough_products, search_kernels),
)
_POLL_S, _POLL_REMOTE_S = 0.2, 5.0
_READY, _BUILD, _WAIT, _FAILED = range(4)


def shapes_trunk(field: str) -> bool:
    """Whether runs that differ in the dotted `field` differ before their group stages."""
    return field not in _GROUP_STAGE_FIELDS and field.partition(".")[0] not in (
        "checkpoint",
        "tracking",
    )


def trunk_config(config: RunConfig) -> RunConfig:
    """The run without a group stage that `config` is until its group stage begins."""
    return override(config, {**_GROUP_STAGE_FIELDS, "checkpoint.keep": 1, "tracking.wandb": "off"})


def trunk_name(config: RunConfig, fingerprint: str) -> str:
    """Equal for runs on equal images that share their instance stage, and for no others."""
    tree = trunk_config(config).model_dump(mode="json")
    shaping = {name: part for name, part in tree.items() if name not in _NOT_SHAPING}
    text = json.dumps([shaping, fingerprint, _code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _code_version() -> str:
    """Changes with the code that trains an instance stage, but not with its comments."""
    digest = hashlib.sha256()
    for module in _SHAPING_CODE:
        assert module.__file__ is not None
        tree = ast.parse(Path(module.__file__).read_text())
        documented = ast.Module | ast.ClassDef | ast.FunctionDef
        for node in (node for node in ast.walk(tree) if isinstance(node, documented)):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Origin:
    """Where a run came from.

    Attributes:
        trunk: name of the trunk.
        epoch: epochs that the run did not train itself.
        built_epochs: epochs of the trunk that were trained for this run first.
        waited_s: time in which others trained them.
        note: what was wrong with the trunk, or empty.
    """

    trunk: str
    epoch: int
    built_epochs: int = 0
    waited_s: float = 0.0
    note: str = ""

    @classmethod
    def read(cls, directory: RunDirectory) -> Origin | None:
        """Of the run in `directory`; None where it came from none."""
        text = directory.read_text("origin.json")
        return None if text is None else cls(**json.loads(text))


@dataclass(frozen=True)
class TrunkStore:
    """Trunks under one folder.

    Attributes:
        uri: of the folder, a local path or a URI such as s3://bucket/folder.
        starts: epochs at which runs may ask for a trunk: it keeps its checkpoints there.
        locks: keep those who may build trunks from building the same one.
    """

    uri: str
    starts: frozenset[int]
    locks: Locks

    def directory(self, name: str) -> RunDirectory:
        """The trunk called `name`."""
        return RunDirectory(f"{self.uri}/{name}")

    def epochs_trained(self, name: str) -> int | None:
        """Of the trunk called `name`; None where looking is not cheap, in a bucket."""
        trunk = self.directory(name)
        return len(trunk.metric_rows()) if trunk.is_local else None

    def fork_epoch(self, config: RunConfig) -> int:
        """The epoch at which a run of `config` leaves its trunk; 0 where it has none.

        One without a group stage follows the trunk as far as others do.
        """
        start = config.group_start_epoch
        last = max((s for s in self.starts if s < config.schedule.epochs), default=0)
        return last if start is None else start


def open_trunks(place: str | None, starts: frozenset[int], elsewhere: Locks) -> TrunkStore | None:
    """The trunks at `place`, a folder or URI; None without one.

    Locks lie with the trunks, or `elsewhere` where these are no files.

    Raises:
        UserError: the place cannot be used.
    """
    if place is None:
        return None
    store = RunDirectory(place)
    if not store.is_local:
        return TrunkStore(store.uri, starts, elsewhere)
    folder = Path(store.uri)
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        raise UserError(f"--trunks {place}: {nearest} is no folder that can be written to")
    return TrunkStore(store.uri, starts, FileLocks(store.uri))


def train_from_trunk(
    config: RunConfig,
    images: DataSet,
    directory: RunDirectory,
    observer: Observer,
    device: torch.device,
    store: TrunkStore | None,
    span: Span = WHOLE,
) -> list[MetricRow]:
    """`train`, but a run without a checkpoint goes on from its trunk, which is built if need be.

    The run is bit for bit the one that trains from epoch 0 on the same number of workers as the
    trunk. Called by every worker. A span that has an origin of its own, or ends before the trunk,
    needs none.
    """
    begun = bool(directory.checkpoint_epochs()) if rank() == 0 else False
    if store is None or span.origin is not None or _agreed(int(begun), device):
        return train(config, images, directory, observer, device, span)
    epoch = store.fork_epoch(config)
    if not epoch or (span.until is not None and span.until <= epoch):
        return train(config, images, directory, observer, device, span)
    try:
        origin = _provide(store, config, epoch, images, device)
    except BaseException as error:
        if isinstance(error, UserError | RunFailed) and rank() == 0:
            directory.record_failure(error)
        observer.end(error)
        raise
    if rank() == 0:
        before = Origin.read(directory)
        if before is not None and before.trunk == origin.trunk:
            # An earlier try of the run trained a part of it.
            origin = replace(origin, built_epochs=origin.built_epochs + before.built_epochs)
        directory.write_text("origin.json", json.dumps(asdict(origin)) + "\n")
    forked = replace(span, origin=(store.directory(origin.trunk), epoch))
    return train(config, images, directory, observer, device, forked)


def _provide(
    store: TrunkStore, config: RunConfig, epoch: int, images: DataSet, device: torch.device
) -> Origin:
    """Make sure that the trunk of `config` has a sound checkpoint after `epoch` epochs.

    Whoever gets the lock trains what is missing; others wait until it is there, or until the lock
    is free again because its holder has died.
    """
    name = trunk_name(config, images.fingerprint)
    trunk = store.directory(name)
    waited_s, note, built = 0.0, "", 0
    with store.locks(name) as lock:
        while True:
            state = _WAIT
            if rank() == 0:
                state, found = _look(trunk, epoch, lock)
                note = note or found
            state = _agreed(state, device)
            if state != _WAIT:
                break
            pause_s = _POLL_S if trunk.is_local else _POLL_REMOTE_S
            time.sleep(pause_s)
            waited_s += pause_s
        if state == _FAILED:
            trunk.raise_failure()
        if state == _BUILD:
            shared = trunk_config(config)
            if rank() == 0:
                # Its name says that it is the same run, wherever the images lie this time.
                trunk.write_text("config.yaml", shared.to_yaml())
                built = epoch - max((e for e in trunk.checkpoint_epochs() if e < epoch), default=0)
            span = Span(until=epoch, pinned=store.starts | {epoch})
            train(shared, images, trunk, Observers(), device, span)
    return Origin(name, epoch, built, waited_s, note)


def _look(trunk: RunDirectory, epoch: int, lock: Lock) -> tuple[int, str]:
    """What has to be done about the trunk, and what was wrong with it."""
    if _is_sound(trunk, epoch):
        return _READY, ""
    if not lock.acquired():
        return _WAIT, ""
    note = ""
    for saved in reversed(trunk.checkpoint_epochs()):
        if saved <= epoch and not _is_sound(trunk, saved):
            note = f"trunk {trunk.uri} was damaged after {saved} epochs: trained anew from there"
            logger.warning(note)
            trunk.delete_checkpoint(saved)
    if epoch in trunk.checkpoint_epochs():
        return _READY, note
    try:
        trunk.raise_failure()
    except RunFailed:
        return _FAILED, note
    except UserError:
        # Of whoever tried before; it may be mended.
        trunk.clear_failure()
    return _BUILD, note


def _is_sound(trunk: RunDirectory, epoch: int) -> bool:
    if epoch not in trunk.checkpoint_epochs():
        return False
    try:
        trunk.load_checkpoint(epoch, torch.device("cpu"))
    except UserError:
        return False
    return True


def _agreed(value: int, device: torch.device) -> int:
    """The first worker's `value` on all of them."""
    return int(broadcast_first(torch.tensor(value, device=device)))
