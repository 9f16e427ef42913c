"""A run on disk: its config, metrics, tables and checkpoints, on any pyarrow file system.

    config.yaml            the resolved config
    metrics.parquet        a row for each epoch
    assignments.parquet    a row for each sample, once the run has ended
    neighbors.parquet      its neighbours in the whole data set, likewise
    snapshot/              what its figures are drawn from: see engine.snapshot
    checkpoints/epoch_000040/state.pt, summary.json

A checkpoint whose `summary.json` is missing was not finished and is passed over.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from conr_ray.config import RunConfig, differences, from_yaml, override
from conr_ray.engine.observer import MetricRow
from conr_ray.errors import RunFailed, UserError

if TYPE_CHECKING:
    import torch


class RunDirectory:
    """A run's files under `uri`, a local path or a URI such as s3://bucket/folder."""

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri)
        if "://" not in self.uri:
            self.uri = Path(self.uri).absolute().as_posix()
            self._files, self._root = pafs.LocalFileSystem(), self.uri
        else:
            try:
                self._files, root = pafs.FileSystem.from_uri(self.uri)
            except (pa.ArrowException, OSError) as error:
                raise UserError(f"{self.uri} cannot be opened: {error}") from None
            self._root = root.rstrip("/")
        self.is_local = isinstance(self._files, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[RunDirectory], tuple[str]]:
        # Each process opens the files itself.
        return RunDirectory, (self.uri,)

    @property
    def parent(self) -> RunDirectory:
        """The folder in which it is."""
        return RunDirectory(self.uri.rpartition("/")[0])

    def check(self, config: RunConfig, *, resume: bool) -> bool:
        """Whether a run of `config` is here already; nothing is written.

        Where its images lie may have changed.

        Raises:
            UserError: another run is here, or this one is and `resume` was not asked for.
        """
        old = self.read_config()
        if old is None:
            return False
        changed = differences(old, override(config, {"data.path": old.data.path}))
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UserError(
                f"{self.uri} holds another run ({changed[0]}{more}): choose another --name"
            )
        if not resume:
            raise UserError(f"{self.uri} holds this run: add --resume, or choose another --name")
        return True

    def claim(self, config: RunConfig, *, resume: bool) -> None:
        """Write config.yaml where there is none; else `check`."""
        if not self.check(config, resume=resume):
            try:
                self.write_text("config.yaml", config.to_yaml())
            except OSError as error:
                raise UserError(f"--storage: {self.uri} cannot be written: {error}") from None

    def read_config(self) -> RunConfig | None:
        """The config of the run that is here, None where there is none."""
        text = self.read_text("config.yaml")
        return None if text is None else from_yaml(text, f"{self.uri}/config.yaml", trusted=True)

    def read_text(self, name: str) -> str | None:
        """The text of a file, None where there is none."""
        data = self._read(name)
        return None if data is None else data.decode()

    def read_bytes(self, name: str) -> bytes:
        """A file that is there."""
        data = self._read(name)
        assert data is not None, f"{self.uri}/{name}"
        return data

    def write_text(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        self._write(name, text.encode())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all."""
        self._write(name, data)

    def has(self, name: str) -> bool:
        """Whether there is such a file, or a folder with files in it."""
        info = self._files.get_file_info(f"{self._root}/{name}")
        return bool(info.type != pafs.FileType.NotFound)

    def file_names(self, folder: str) -> list[str]:
        """Names of the files in a folder, in their order; none where there is no such folder."""
        selector = pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        found = self._files.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.File)

    def folder_names(self, folder: str) -> list[str]:
        """Names of the folders in a folder, in their order; none where there is no such folder."""
        selector = pafs.FileSelector(f"{self._root}/{folder}", allow_not_found=True)
        found = self._files.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all in it, where there is one."""
        if self.has(name):
            self._files.delete_dir(f"{self._root}/{name}")

    def delete_file(self, name: str) -> None:
        """Delete a file that is there."""
        self._files.delete_file(f"{self._root}/{name}")

    def read_table(self, name: str) -> pa.Table | None:
        """A Parquet file, None where there is none."""
        data = self._read(name)
        try:
            return None if data is None else pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.uri}/{name} is damaged ({error}): delete it") from None

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file, whole or not at all."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        self._write(name, buffer.getvalue())

    def write_metrics(self, rows: Sequence[MetricRow]) -> None:
        """Write metrics.parquet; columns are those that any row has."""
        names = list(dict.fromkeys(["epoch", *(name for row in rows for name in row)]))
        self.write_table(
            "metrics.parquet", pa.table({n: [row.get(n) for row in rows] for n in names})
        )

    def metric_rows(self, from_epoch: int = 0) -> list[MetricRow]:
        """Rows of metrics.parquet from an epoch on; empty where there are none yet."""
        table = self.read_table("metrics.parquet")
        if table is None or table.num_rows <= from_epoch:
            return []
        rows = table.slice(from_epoch).to_pylist()
        return [{name: v for name, v in row.items() if v is not None} for row in rows]

    def record_failure(self, error: UserError | RunFailed) -> None:
        """Write down why the run stopped, for those who started it from another process."""
        failure = {"kind": type(error).__name__, "message": str(error)}
        self.write_text("failure.json", json.dumps(failure) + "\n")

    def clear_failure(self) -> None:
        """Forget why an earlier try stopped."""
        if self._read("failure.json") is not None:
            self.delete_file("failure.json")

    def raise_failure(self) -> None:
        """Raise the error that was recorded, if one was."""
        text = self.read_text("failure.json")
        if text is not None:
            failure = json.loads(text)
            kinds = {"UserError": UserError, "RunFailed": RunFailed}
            raise kinds[failure["kind"]](failure["message"])

    def checkpoint_epochs(self) -> list[int]:
        """Epochs (trained so far) of the finished checkpoints, rising."""
        selector = pafs.FileSelector(
            f"{self._root}/checkpoints", allow_not_found=True, recursive=True
        )
        paths = (info.path for info in self._files.get_file_info(selector))
        found = (re.search(r"/epoch_(\d+)/summary\.json$", path) for path in paths)
        return sorted(int(match[1]) for match in found if match)

    def checkpoint_name(self, epoch: int) -> str:
        """Folder of the checkpoint after `epoch` epochs, relative to the run's."""
        return f"checkpoints/epoch_{epoch:06d}"

    def save_checkpoint(
        self,
        epoch: int,
        state: Mapping[str, Any],
        summary: Mapping[str, Any],
        keep: int,
        *,
        pinned: bool = False,
    ) -> None:
        """Write a checkpoint, then delete all but the newest `keep` and those that are pinned."""
        import torch

        name = self.checkpoint_name(epoch)
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        self._write(f"{name}/state.pt", buffer.getbuffer())
        summary = {**summary, "sha256": _digest(buffer.getbuffer())}
        summary |= {"pinned": True} if pinned else {}
        self.write_text(f"{name}/summary.json", json.dumps(summary, indent=2) + "\n")
        for old in self.checkpoint_epochs()[:-keep]:
            if not self._summary(old).get("pinned"):
                self.delete_checkpoint(old)

    def _summary(self, epoch: int) -> dict[str, Any]:
        text = self.read_text(f"{self.checkpoint_name(epoch)}/summary.json")
        return dict(json.loads(text or "{}"))

    def delete_checkpoint(self, epoch: int) -> None:
        """Delete the checkpoint after `epoch` epochs."""
        self._files.delete_dir(f"{self._root}/{self.checkpoint_name(epoch)}")

    def load_checkpoint(self, epoch: int, device: torch.device) -> dict[str, Any]:
        """The state saved after `epoch` epochs, its tensors on `device`."""
        import torch

        name = f"{self.checkpoint_name(epoch)}/state.pt"
        data = self._read(name)
        try:
            if data is None:
                raise ValueError("it is missing")
            digest = _digest(data)
            if self._summary(epoch).get("sha256", digest) != digest:
                raise ValueError("its checksum is another one")
            state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
            if not isinstance(state, dict):
                raise ValueError(f"it holds a {type(state).__name__}")
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{self.uri}/{name} is damaged ({reason}): delete its folder to go on from the "
                "checkpoint before"
            ) from None
        return state

    def _read(self, name: str) -> bytes | None:
        try:
            with self._files.open_input_stream(f"{self._root}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"--storage: {self.uri}/{name} cannot be read: {error}") from None

    def _write(self, name: str, data: bytes | memoryview) -> None:
        path = f"{self._root}/{name}"
        if not self.is_local:
            # An object appears whole when its upload ends.
            with self._files.open_output_stream(path) as stream:
                stream.write(data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(target)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
