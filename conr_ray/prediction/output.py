"""The folder of a prediction.

prediction.json                  of which run, in which state, of what
predictions/part-NNNNNN.parquet  a row for each sample
errors.parquet                   samples that could not be read, with the reason; absent if none
prediction.lock                  held by the process that predicts, if the folder is local

Parts are written once they are whole. A later row of a sample takes the place of an earlier one,
which is removed at the end of the prediction; so that a prediction that was killed at any time goes
on with the parts that are there. In a bucket, which has no locks, prediction.json tells who
predicts: of two processes the later one takes over, and the earlier one ends before its next part.
"""

from __future__ import annotations

import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from conr_ray.data.sources.base import Int64Array
from conr_ray.errors import UserError
from conr_ray.storage.locks import FileLocks
from conr_ray.storage.patience import PatientFolder

FORMAT = 1
_PARTS, _ERRORS, _JSON = "predictions", "errors.parquet", "prediction.json"
# Of a sample's file: it is predicted anew when they change.
_VERSION = ("size", "mtime_ns")


@dataclass(frozen=True)
class Done:
    """What is in the parts, a number for each sample: its newest row. Memory: 33 bytes a sample.

    Attributes:
        keys_n: hashes of what tells a sample from others, sorted.
        versions_n2: size and modification time of its file.
        clusters_n: its cluster.
        current_n: whether that row counts as done.
        has_older: whether there are older rows of some samples.
    """

    keys_n: NDArray[np.uint64]
    versions_n2: Int64Array
    clusters_n: Int64Array
    current_n: NDArray[np.bool_]
    has_older: bool

    def left(self, piece: pa.Table, keys: Sequence[str]) -> pa.Table:
        """The samples of a piece that are not done, with their `previous_cluster`."""
        if not len(self.keys_n):
            previous = pa.nulls(len(piece), pa.int64())
            return piece.append_column("previous_cluster", previous)
        hashes_b = hashes(piece, keys)
        places_b = np.searchsorted(self.keys_n, hashes_b).clip(max=len(self.keys_n) - 1)
        known_b = self.keys_n[places_b] == hashes_b
        same_b = (self.versions_n2[places_b] == _versions(piece)).all(1)
        done_b = known_b & same_b & self.current_n[places_b]
        previous = pa.array(self.clusters_n[places_b], mask=~known_b)
        piece = piece.append_column("previous_cluster", previous)
        return piece.filter(pa.array(~done_b)) if done_b.any() else piece


def hashes(table: pa.Table, keys: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of 64 bits for each row's `keys`."""
    columns = [table.column(name).to_pylist() for name in keys]
    digests = (
        blake2b("\0".join(map(str, row)).encode(), digest_size=8).digest()
        for row in zip(*columns, strict=True)
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _versions(table: pa.Table) -> Int64Array:
    if _VERSION[0] not in table.column_names:
        return np.zeros((len(table), 2), np.int64)
    return np.stack([table.column(name).to_numpy() for name in _VERSION], 1)


@dataclass(frozen=True)
class PredictionDirectory:
    """The files of a prediction, local or in a bucket; `keys` tell a sample from all others."""

    files: PatientFolder
    keys: tuple[str, ...]
    _holder: str = field(default_factory=lambda: secrets.token_hex(8))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from predicting into it, if it is local.

        Raises:
            UserError: another process does.
        """
        lock = FileLocks(self.files.uri)("prediction") if self.files.is_local else nullcontext()
        with lock as held:
            if held is not None and not held.acquired():
                raise UserError(f"--out {self.files.uri}: another process predicts into it")
            self.files.remove_parts(deep=True)
            yield

    def claim(self, about: Mapping[str, Any], *, again: bool) -> tuple[int, bool]:
        """Begin, go on with, or add to the prediction that `about` tells of.

        With `again` all samples are to be predicted, until that has been done once. Returns the
        number of the first part to write, and whether it was taken over from a process that was
        killed, or is at work in a bucket and may write one more part.

        Raises:
            UserError: the folder holds another prediction.
        """
        uri, before = self.files.uri, self.files.read_json(_JSON)
        if before is None:
            if self.files.has(_PARTS):
                raise UserError(f"--out {uri}: holds predictions of no known run: choose another")
        else:
            self._check(before, about, again=again)
        first = int((before or {}).get("first_part", 0))
        same = ("state", "edits", "embeddings")
        going_on = first and all((before or {}).get(name) == about.get(name) for name in same)
        taken_over = "holder" in (before or {})
        # The other process would give that part the next number.
        after = max(self.part_numbers(), default=0) + 1 + taken_over
        if again and before is not None and not going_on:
            first = after
        held = {"complete": False, "first_part": first, "holder": self._holder}
        self._write_json({**about, **held})
        return after, taken_over

    def _check(self, before: Mapping[str, Any], about: Mapping[str, Any], *, again: bool) -> None:
        uri = self.files.uri
        if before.get("format") != FORMAT:
            raise UserError(
                f"--out {uri}: format {before.get('format')} of another version of conr_ray: use "
                "that version, or choose another --out"
            )
        for name in ("run", "what", "images"):
            if before.get(name) != about[name]:
                raise UserError(
                    f"--out {uri}: holds predictions of another {name} ({before.get(name)}): "
                    "choose another --out"
                )
        clusters = [_clusters_of(one) for one in (before, about)]
        if clusters[0] != clusters[1]:
            raise UserError(
                f"--out {uri}: holds predictions among {clusters[0]}, not {clusters[1]}: choose "
                "another --out"
            )
        if before.get("state") != about["state"] and not again:
            raise UserError(
                f"--out {uri}: holds predictions of this run after {before.get('epochs')} epochs: "
                "add --all to predict all again, or choose another --out"
            )
        if before.get("edits") != about.get("edits") and not again:
            raise UserError(
                f"--out {uri}: holds predictions among clusters that have been changed since (or "
                "without changes): add --all to predict all again, or choose another --out"
            )
        if before.get("embeddings") != about["embeddings"] and not again:
            other = "without" if about["embeddings"] else "with"
            raise UserError(
                f"--out {uri}: holds predictions {other} embeddings: add --all to predict all "
                "again, or choose another --out"
            )

    def _about(self) -> dict[str, Any]:
        return self.files.read_json(_JSON) or {}

    def _write_json(self, about: Mapping[str, Any]) -> None:
        self.files.write_text(_JSON, json.dumps(about, indent=2) + "\n")

    def _write_table(self, name: str, table: pa.Table) -> None:
        self._check_held()
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        self.files.write_bytes(name, buffer.getvalue())

    def _check_held(self) -> None:
        """Raise UserError if another process has taken over."""
        if not self.files.is_local and self._about().get("holder") != self._holder:
            raise UserError(
                f"--out {self.files.uri}: another process has taken over and predicts into it"
            )

    def part_numbers(self) -> list[int]:
        """Numbers of the parts, ascending."""
        names = self.files.file_names(_PARTS)
        return [int(n[5:-8]) for n in names if n.startswith("part-") and n.endswith(".parquet")]

    def write_part(self, number: int, rows: pa.Table) -> None:
        """Write a part."""
        self._write_table(_part(number), rows)

    def read_part(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Some columns of a part, or all.

        Raises:
            UserError: it is damaged.
        """
        data = self.files.read_bytes(_part(number))
        try:
            file = pq.ParquetFile(pa.BufferReader(data or b""), page_checksum_verification=True)
            known = set(file.schema_arrow.names)
            chosen = None if columns is None else [name for name in columns if name in known]
            return file.read(columns=chosen)
        # Arrow raises errors of many kinds.
        except Exception:
            raise UserError(
                f"{self.files.uri}/{_part(number)} is damaged: delete it, its samples are then "
                "predicted again"
            ) from None

    def done(self) -> Done:
        """What is in the parts."""
        first = int(self._about().get("first_part", 0))
        keys, versions, clusters, current = [], [], [], []
        for number in self.part_numbers():
            part = self.read_part(number, (*self.keys, *_VERSION, "cluster"))
            keys.append(hashes(part, self.keys))
            versions.append(_versions(part))
            clusters.append(part.column("cluster").to_numpy())
            current.append(np.full(len(part), number >= first))
        if not keys:
            none = np.empty(0, np.int64)
            return Done(none.view(np.uint64), none.reshape(0, 2), none, none > 0, False)
        all_keys = np.concatenate(keys)
        order = np.argsort(all_keys, kind="stable")
        all_keys = all_keys[order]
        newest = np.append(all_keys[1:] != all_keys[:-1], True)
        order = order[newest]
        return Done(
            all_keys[newest],
            np.concatenate(versions)[order],
            np.concatenate(clusters)[order],
            np.concatenate(current)[order],
            not newest.all(),
        )

    def tidy(self, *, has_older: bool) -> None:
        """Remove rows that later ones have replaced, and those before all was predicted again."""
        self._check_held()
        first = int(self._about().get("first_part", 0))
        for number in self.part_numbers():
            if number < first:
                self.files.delete_file(_part(number))
        if not has_older:
            return
        later = np.empty(0, np.uint64)
        for number in reversed(self.part_numbers()):
            rows = self.read_part(number)
            keys = hashes(rows, self.keys)
            kept = ~np.isin(keys, later)
            later = np.concatenate([later, keys])
            if not kept.any():
                self.files.delete_file(_part(number))
            elif not kept.all():
                self.write_part(number, rows.filter(pa.array(kept)))

    def finish(self, errors: pa.Table | None) -> None:
        """Write what could not be read, and that the prediction is complete."""
        if errors is not None and len(errors):
            by_key = [(key, "ascending") for key in self.keys]
            self._write_table(_ERRORS, errors.sort_by(by_key))
        elif self.files.has(_ERRORS):
            self.files.delete_file(_ERRORS)
        self._check_held()
        of_work = ("first_part", "holder")
        about = {name: value for name, value in self._about().items() if name not in of_work}
        self._write_json({**about, "complete": True})

    def rows(self) -> Iterator[pa.Table]:
        """The rows of all parts, part by part."""
        for number in self.part_numbers():
            yield self.read_part(number)


@dataclass
class Writer:
    """Collects rows, writes them in parts, and counts.

    Attributes:
        counts: rows written or collected.
        errors: rows of what could not be read.
    """

    directory: PredictionDirectory
    part_rows: int
    next_number: int
    predicted: int = 0
    replaced: int = 0
    errors: list[pa.Table] = field(default_factory=list)
    _rows: list[pa.Table] = field(default_factory=list)
    _num_rows: int = 0

    def add(self, rows: pa.Table) -> None:
        """Take the rows of a batch."""
        failed = pc.is_valid(rows.column("reason"))
        if pc.any(failed).as_py():
            self.errors.append(rows.filter(failed).select([*self.directory.keys, "reason"]))
            rows = rows.filter(pc.invert(failed))
        rows = rows.drop_columns("reason")
        self.predicted += len(rows)
        self.replaced += len(rows) - rows.column("previous_cluster").null_count
        self._rows.append(rows)
        self._num_rows += len(rows)
        if self._num_rows >= self.part_rows:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        if self._num_rows:
            table = pa.concat_tables(self._rows)
            self.directory.write_part(self.next_number, table)
            self.next_number += 1
        self._rows, self._num_rows = [], 0

    @property
    def num_errors(self) -> int:
        """Samples that could not be read."""
        return sum(map(len, self.errors))


def _clusters_of(about: Mapping[str, Any]) -> str:
    """Which clusters a prediction is among, in words."""
    if about.get("reclustered"):
        return f"{about['num_clusters']} reclustered clusters (--clusters)"
    return "the run's own clusters"


def _part(number: int) -> str:
    return f"{_PARTS}/part-{number:06d}.parquet"
