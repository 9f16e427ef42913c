"""The files of a run: its config, metrics, tables and checkpoints, local or in a bucket.

config.yaml            the resolved config
metrics.parquet        a row for each epoch
assignments.parquet    a row for each sample, once the run has ended
clusters.csv           the same for people, if spreadsheets open so many rows
neighbors.parquet      the neighbours of each sample, once the run has ended
snapshot/              data for its figures: see engine.snapshot
initial_weights.json   the weights it started from, unless drawn: see engine.initial_weights
checkpoints/           states to resume from: see engine.checkpoints
failure.json           why the run ended early, if it failed or was asked to stop
run.lock               held by the command that trains it; not by those of a search
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from conr_ray.config import RunConfig, build, differences, from_yaml, override, parse_yaml
from conr_ray.engine.checkpoints import CheckpointFolder, described
from conr_ray.engine.metric_rows import MetricRow, from_table, to_table
from conr_ray.errors import (
    FolderTaken,
    OutOfMemory,
    RunCollapsed,
    RunFailed,
    RunStopped,
    SampleLost,
    StorageError,
    UserError,
)
from conr_ray.method.backbone_names import INITIAL_WEIGHTS
from conr_ray.storage import disk
from conr_ray.storage.locks import FileLocks

if TYPE_CHECKING:
    import torch

# Kinds of recorded failures by name; a subclass comes before its base class.
_FAILURES = {
    kind.__name__: kind
    for kind in (
        *(StorageError, UserError, OutOfMemory, SampleLost, RunCollapsed),
        *(RunFailed, RunStopped),
    )
}

# What a run that is resumed for more epochs may change: how long its schedules are.
_LENGTHS = ("schedule.epochs", "schedule.cosine_epochs")
# What may differ between a checkpoint and the config.yaml of its run, or is checked elsewhere.
_MAY_CHANGE = (
    *("data.", "checkpoint.", "tracking."),
    *("model.init", "model.weights", "optim.compile", "optim.precision", *_LENGTHS),
)
_PROBE, _PROBE_BYTES = ".room", 2**18


class RunDirectory(CheckpointFolder):
    """The folder of a run.

    All methods raise StorageError, which is a UserError, if a read or write fails. A `config` is
    that of the run, and `resume` whether a run that is there may go on.

    Args:
        uri: a local path, or a URI such as s3://bucket/folder.
        outer: a folder around it that has to be there too, such as that of a search.

    Raises:
        StorageError: `uri` cannot be opened.
    """

    def check(self, config: RunConfig, *, resume: bool) -> bool:
        """Whether the folder holds a run of `config`; nothing is written.

        The path of its data and `optim.compile` may have changed, `auto` stands for whatever
        precision it has, and it may be asked for more epochs.

        Raises:
            FolderTaken: it holds another run, or this one and `resume` is false.
            UserError: what it holds is no config of this version.
        """
        old = self._read_config(trusted=False)
        if old is None:
            return False
        longer = config.schedule.epochs > old.schedule.epochs
        changed = [
            change
            for change in differences(old, _as_begun(config, old))
            if not (longer and change.startswith(_LENGTHS))
        ]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise FolderTaken(f"{self.uri} holds another run ({changed[0]}{more})")
        if not resume:
            raise FolderTaken(f"{self.uri} holds this run", same_run=True)
        return True

    def claim(self, config: RunConfig, *, resume: bool) -> None:
        """`check`, then write config.yaml if there is none, or if it has fewer epochs.

        A run that is resumed with more epochs follows the schedules of the longer run from its
        newest checkpoint on: its learning rate, which may have fallen to 0, is what it would be
        there, and so is the momentum of its target network. What is trained stays as it is.

        Raises:
            FolderTaken: as in `check`.
            UserError: likewise.
        """
        if not self.check(config, resume=resume):
            self.write_config(config)
            return
        self.keep()
        old = self._read_config(trusted=False)
        if old is not None and config.schedule.epochs > old.schedule.epochs:
            self.write_config(_as_begun(config, old))

    def write_config(self, config: RunConfig) -> None:
        """Write config.yaml to a folder that is kept from then on."""
        self.keep()
        self.write_text("config.yaml", config.to_yaml())

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from training this run; in a bucket, nothing does.

        Raises:
            UserError: another process trains it.
        """
        with FileLocks(self.uri)("run") if self.is_local else nullcontext() as lock:
            if lock is not None and not lock.acquired():
                raise UserError(f"{self.uri}: another process trains this run: stop it first")
            yield

    def check_room(self) -> None:
        """Raise StorageError unless something can be written here."""
        self.write_bytes(_PROBE, bytes(_PROBE_BYTES))
        self.delete_file(_PROBE)

    def tidy(self) -> None:
        """Prepare for training to start or go on, while nobody else writes here.

        Deletes what an earlier attempt left: its failure, what it was writing or deleting when it
        was killed, damaged checkpoints that are newer than any sound one, those that it would have
        deleted next, and damaged metrics, which a checkpoint has too.
        """
        self.remove_parts(deep=True)
        self.delete_unsound_checkpoints()
        if (config := self.read_config()) is not None:
            self.delete_earlier_checkpoints(config.checkpoint.keep)
        if self.read_bytes("failure.json") is not None:
            self.delete_file("failure.json")
        try:
            self.metric_rows()
        except StorageError:
            raise
        except UserError as error:
            disk.tell(f"{str(error).rpartition(': ')[0]}: written anew")
            self.delete_file("metrics.parquet")

    def load_checkpoint(self, epoch: int, device: torch.device, steps: int = 0) -> dict[str, Any]:
        """The state saved after `epoch` epochs and `steps` of the next, its tensors on `device`.

        Raises:
            UserError: it is missing or damaged, or of another run than config.yaml.
        """
        state = super().load_checkpoint(epoch, device, steps)
        around = self.read_config()
        if around is not None and (text := state.get("config")) is not None:
            name = self.checkpoint_name(epoch, steps)
            inside = from_yaml(text, f"the config of {name}", trusted=True)
            changed = [d for d in differences(inside, around) if not d.startswith(_MAY_CHANGE)]
            if changed:
                raise UserError(
                    f"{self.uri}/{name} is of another run ({changed[0]}): put back what was there, "
                    "or choose another name"
                )
        return state

    def way_on(self) -> str:
        """What resuming the run would do, for messages."""
        epoch, steps = self.newest_checkpoint()
        if not (epoch or steps):
            return "which starts anew: no checkpoint was written yet"
        return f"which goes on {described(epoch, steps)}"

    def read_config(self) -> RunConfig | None:
        """The config of the run in this folder, None if there is none.

        The section of its framework is validated, and torch imported, only on first use.

        Raises:
            UserError: it is not a config of this version.
        """
        return self._read_config(trusted=True)

    def _read_config(self, *, trusted: bool) -> RunConfig | None:
        text = self.read_text("config.yaml")
        if text is None:
            return None
        file = f"{self.uri}/config.yaml"
        if not text.strip():
            raise UserError(f"{file} is empty: put back a copy, or choose another name")
        tree = parse_yaml(text, file)
        try:
            return build(tree or {}, trusted=trusted)
        except UserError as error:
            raise UserError(
                f"{file}: {error}: it was written by another version of conr_ray; use that "
                "version, or choose another name"
            ) from None

    def write_metrics(self, rows: Sequence[MetricRow]) -> None:
        """Write metrics.parquet.

        Args:
            rows: one for each epoch from the first on: epoch, stage, figures by name.
        """
        self.write_table("metrics.parquet", to_table(rows))

    def metric_rows(self, from_epoch: int = 0) -> list[MetricRow]:
        """Rows of metrics.parquet, `from_epoch` (from 0) on; empty if there are none yet."""
        table = self.read_table("metrics.parquet")
        if table is None or table.num_rows <= from_epoch:
            return []
        return from_table(table.slice(from_epoch))

    def record_failure(self, error: UserError | RunFailed | RunStopped) -> None:
        """Record why the run ended early, for the process that started it.

        Args:
            error: what ended it, for `raise_failure` to raise again.
        """
        kind = next(name for name, kind in _FAILURES.items() if isinstance(error, kind))
        failure = {"kind": kind, "message": str(error)}
        self.write_text("failure.json", json.dumps(failure) + "\n")

    def initial_weights(self) -> dict[str, Any] | None:
        """What the run started from: source, sha256 and more; None if all was drawn.

        Raises:
            UserError: the file is damaged.
        """
        return self.read_json(INITIAL_WEIGHTS)

    def has_failed(self) -> bool:
        """Whether a failure is recorded."""
        return self.read_bytes("failure.json") is not None

    def raise_failure(self) -> None:
        """Raise the recorded error, if there is one, as it was raised.

        Raises:
            UserError: a setting, folder or bucket could not work; StorageError among them.
            RunFailed: the run could not go on: RunCollapsed, OutOfMemory, SampleLost or another
                kind, also one of a later version.
            RunStopped: it was asked to stop.
        """
        if (failure := self.read_json("failure.json")) is not None:
            kind = _FAILURES.get(failure.get("kind", ""), RunFailed)
            raise kind(failure.get("message", "the run has failed"))


def _as_begun(config: RunConfig, old: RunConfig) -> RunConfig:
    """`config` with what may differ each time that the run is resumed, as it was in `old`."""
    kept: dict[str, Any] = {"optim.compile": old.optim.compile}
    if config.data.source == old.data.source:
        kept["data.path"] = old.data.path
    if config.optim.precision == "auto":
        kept["optim.precision"] = old.optim.precision
    return override(config, kept)
