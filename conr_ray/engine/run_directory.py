"""The files of a run: its config, metrics, tables and checkpoints, local or in a bucket.

config.yaml            the resolved config
metrics.parquet        a row for each epoch
assignments.parquet    a row for each sample, once the run has ended
neighbors.parquet      the neighbours of each sample, once the run has ended
snapshot/              data for its figures: see engine.snapshot
checkpoints/           states to resume from: see engine.checkpoints
failure.json           why the run stopped, if it failed
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from conr_ray.config import RunConfig, build, differences, override, parse_yaml
from conr_ray.engine.checkpoints import CheckpointFolder
from conr_ray.engine.metric_rows import MetricRow, from_table, to_table
from conr_ray.errors import (
    FolderTaken,
    OutOfMemory,
    RunCollapsed,
    RunFailed,
    StorageError,
    UserError,
)

# Kinds of recorded failures by name; a subclass comes before its base class.
_FAILURES = {
    kind.__name__: kind for kind in (StorageError, UserError, OutOfMemory, RunCollapsed, RunFailed)
}


class RunDirectory(CheckpointFolder):
    """The folder of a run."""

    def check(self, config: RunConfig, *, resume: bool) -> bool:
        """Whether the folder holds a run of `config`; nothing is written.

        The path of its data and `optim.compile` may have changed, and `auto` stands for whatever
        precision it has.

        Raises:
            FolderTaken: it holds another run, or this one and `resume` is false.
        """
        old = self._read_config(trusted=False)
        if old is None:
            return False
        kept = {"data.path": old.data.path, "optim.compile": old.optim.compile}
        if config.optim.precision == "auto":
            kept["optim.precision"] = old.optim.precision
        changed = differences(old, override(config, kept))
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise FolderTaken(f"{self.uri} holds another run ({changed[0]}{more})")
        if not resume:
            raise FolderTaken(f"{self.uri} holds this run", same_run=True)
        return True

    def claim(self, config: RunConfig, *, resume: bool) -> None:
        """Write config.yaml if there is none; otherwise `check`.

        Raises:
            FolderTaken: as in `check`.
            StorageError: it cannot be written.
        """
        if not self.check(config, resume=resume):
            try:
                self.write_text("config.yaml", config.to_yaml())
            except OSError as error:
                raise StorageError(f"{self.uri} cannot be written: {error}") from None

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
        tree = parse_yaml(text, file)
        try:
            return build(tree or {}, trusted=trusted)
        except UserError as error:
            raise UserError(
                f"{file}: {error}: it was written by another version of conr_ray; use that "
                "version, or choose another name"
            ) from None

    def write_metrics(self, rows: Sequence[MetricRow]) -> None:
        """Write metrics.parquet."""
        self.write_table("metrics.parquet", to_table(rows))

    def metric_rows(self, from_epoch: int = 0) -> list[MetricRow]:
        """Rows of metrics.parquet from an epoch on; empty if there are none yet."""
        table = self.read_table("metrics.parquet")
        if table is None or table.num_rows <= from_epoch:
            return []
        return from_table(table.slice(from_epoch))

    def record_failure(self, error: UserError | RunFailed) -> None:
        """Record why the run stopped, for the process that started it."""
        kind = next(name for name, kind in _FAILURES.items() if isinstance(error, kind))
        failure = {"kind": kind, "message": str(error)}
        self.write_text("failure.json", json.dumps(failure) + "\n")

    def has_failed(self) -> bool:
        """Whether a failure is recorded."""
        return self.read_bytes("failure.json") is not None

    def clear_failure(self) -> None:
        """Delete the record of an earlier failure."""
        if self.has_failed():
            self.delete_file("failure.json")

    def raise_failure(self) -> None:
        """Raise the recorded error, if there is one."""
        text = self.read_text("failure.json")
        if text is not None:
            failure = json.loads(text)
            raise _FAILURES[failure["kind"]](failure["message"])
