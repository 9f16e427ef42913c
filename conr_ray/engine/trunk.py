"""The shared trunk: the instance stage that runs have in common, trained once.

Runs that agree on everything that affects the instance stage are identical until their group stages
begin. They start from checkpoints of one *trunk*, a run without a group stage, which is trained as
far as any of them needs. Trunks are stored under a hash of what determines them: fields, samples
and code versions. A trunk is a run directory; `origin.json` in the directory of a run records the
trunk that it started from.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, replace

import torch

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.engine.checkpoints import described
from conr_ray.engine.data_checks import check_data
from conr_ray.engine.given_edits import agreed_edits, edits_digest, keep_edits
from conr_ray.engine.initial_weights import agreed_weights
from conr_ray.engine.loop import record_failure, train
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer, Observers
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE, Span
from conr_ray.engine.trunk_fields import trunk_config
from conr_ray.engine.trunk_store import TrunkStore, trunk_name
from conr_ray.errors import RunFailed, RunStopped, UserError, WorkerFailed
from conr_ray.method.collectives import broadcast_first, rank, world_size
from conr_ray.method.phases import phase
from conr_ray.storage.locks import Lock

logger = logging.getLogger(__name__)

_POLL_S, _POLL_REMOTE_S = 0.2, 5.0
_READY, _BUILD, _WAIT, _FAILED = range(4)


def train_from_trunk(
    config: RunConfig,
    data: DataSet,
    directory: RunDirectory,
    observer: Observer,
    device: torch.device,
    store: TrunkStore | None,
    span: Span = WHOLE,
) -> list[MetricRow]:
    """`train`, but a run without a checkpoint starts from its trunk, which is built if needed.

    The run is bit-identical to one trained from epoch 0 on the same number of workers as the trunk.
    Called by every worker. A span that has its own origin, or ends before the trunk, needs none.
    """
    begun = bool(directory.checkpoints()) if rank() == 0 else False
    if store is None or span.origin is not None or _agreed(int(begun), device):
        return train(config, data, directory, observer, device, span)
    epoch = store.fork_epoch(config)
    if not epoch or (span.until is not None and span.until <= epoch):
        return train(config, data, directory, observer, device, span)
    try:
        weights = agreed_weights(config, device)
        least = check_data(config, data, world_size())
        links = agreed_edits(config, data, directory, least, device)
        digest = None if weights is None else weights.digest
        name = trunk_name(config, data.fingerprint, digest, edits_digest(links))
        if rank() == 0:
            keep_edits(links, data, store.directory(name))
        origin = _provide(store, name, config, epoch, data, device)
    except BaseException as error:
        record_failure(directory, error)
        observer.end(error)
        raise
    if rank() == 0:
        before = Origin.read(directory)
        if before is not None and before.trunk == origin.trunk:
            # An earlier attempt of the run trained a part of it.
            origin = replace(origin, built_epochs=origin.built_epochs + before.built_epochs)
        directory.write_text("origin.json", json.dumps(asdict(origin)) + "\n")
        if weights is not None:
            weights.record(directory)
    forked = replace(span, origin=(store.directory(origin.trunk), epoch))
    return train(config, data, directory, observer, device, forked)


def _provide(
    store: TrunkStore,
    name: str,
    config: RunConfig,
    epoch: int,
    data: DataSet,
    device: torch.device,
) -> Origin:
    """Ensure that `config`'s trunk, called `name`, has an intact checkpoint after `epoch` epochs.

    The run that gets the lock trains what is missing; others wait for the checkpoint, or for the
    lock if its holder dies.
    """
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
            with phase("wait for the trunk"):
                time.sleep(pause_s)
            waited_s += pause_s
        if state == _FAILED:
            trunk.raise_failure()
        if state == _BUILD:
            shared = trunk_config(config)
            if rank() == 0:
                # Its name identifies the run, whatever path the data has this time.
                trunk.write_config(shared)
                built = epoch - max((e for e in trunk.checkpoint_epochs() if e < epoch), default=0)
            span = Span(until=epoch, pinned=store.starts | {epoch})
            train(shared, data, trunk, Observers(), device, span)
    return Origin(name, epoch, built, waited_s, note)


def _look(trunk: RunDirectory, epoch: int, lock: Lock) -> tuple[int, str]:
    """What to do about the trunk, and what was wrong with it."""
    if _is_sound(trunk, epoch):
        return _READY, ""
    if not lock.acquired():
        return _WAIT, ""
    note = ""
    for place in reversed(trunk.checkpoints()):
        if place <= (epoch, 0) and not _is_sound(trunk, *place):
            note = f"trunk {trunk.uri} was damaged {described(*place)}: retrained from there"
            logger.warning(note)
            trunk.delete_checkpoint(*place)
    if epoch in trunk.checkpoint_epochs():
        return _READY, note
    try:
        trunk.raise_failure()
    except (UserError, WorkerFailed, RunStopped):
        # Of an earlier attempt; its cause may be fixed.
        trunk.delete_file("failure.json")
    except RunFailed:
        return _FAILED, note
    return _BUILD, note


def _is_sound(trunk: RunDirectory, epoch: int, steps: int = 0) -> bool:
    if (epoch, steps) not in trunk.checkpoints():
        return False
    try:
        trunk.load_checkpoint(epoch, torch.device("cpu"), steps)
    except UserError:
        return False
    return True


def _agreed(value: int, device: torch.device) -> int:
    """The first worker's `value`, on all workers."""
    return int(broadcast_first(torch.tensor(value, device=device)))
