"""What is browsed: the samples of a run, or of a prediction, with pictures and embeddings.

Shapes: n samples, d embedding width.
"""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from conr_ray.browsing.columns import Columns, Part, open_columns
from conr_ray.config import RunConfig
from conr_ray.data.prepared import prepared_data
from conr_ray.data.store import DataSet
from conr_ray.edits.folder import fingerprint_of
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError, one_line
from conr_ray.reporting.sample_names import shown_path
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

PART_ROWS = 2**16
"""Samples that are read at a time."""

Embeddings = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class Collection(ABC):
    """Samples in clusters.

    Attributes:
        folder: where a person's edits of these clusters are.
        columns: of the samples.
        title: what people call it.
        run_uri: the folder of the run that made the clusters; empty if none is known.
        num_clusters: of reclustered clusters; None if they are the run's own.
        curation: where the findings of `conr_ray.curate` are, if there are any.
    """

    folder: Folder
    columns: Columns
    title: str
    run_uri: str
    num_clusters: int | None = None
    curation: Folder | None = None

    def __init__(self) -> None:
        """Nothing is embedded yet."""
        self._embedding = threading.Lock()
        self._embeddings: Embeddings | None = None

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What tells these clusters from others, for the edits of them."""

    @abstractmethod
    def pictures(self, rows: Sequence[int]) -> Mapping[int, bytes]:
        """Small files of those samples that have a picture and can be reached."""

    @abstractmethod
    def embedded_parts(self) -> tuple[int, Iterator[Embeddings]]:
        """The width of embeddings, and those of all samples, part by part.

        Raises:
            UserError: they cannot be had.
        """

    def rows_found(self, table: pa.Table) -> Rows:
        """The rows of the samples of a table of `conr_ray.curate`, -1 where there is none."""
        return self.rows_of(table.column("sample_id").to_numpy())

    def rows_of(self, ids_m: Rows) -> Rows:
        """The rows of samples by their ids, int64 (m,), -1 where there is none."""
        ids_n = self.columns.ids_n
        order_n = np.argsort(ids_n, kind="stable")
        places_m = np.searchsorted(ids_n, ids_m, sorter=order_n)
        found_m = order_n[np.minimum(places_m, len(ids_n) - 1)]
        return np.where(ids_n[found_m] == ids_m, found_m, -1)

    def name(self, row: int) -> str:
        """What people call a sample."""
        if self.columns.names is not None and (path := self.columns.names[row].as_py()) is not None:
            return shown_path(path)
        return f"sample {self.columns.ids_n[row]}"

    @property
    def embeddings_nd(self) -> Embeddings:
        """Embeddings of unit length, float32 (n, d), memory-mapped; the first call makes them.

        Raises:
            UserError: they cannot be had.
        """
        with self._embedding:
            if self._embeddings is None:
                self._embeddings = self._stored_embeddings()
            return self._embeddings

    def _stored_embeddings(self) -> Embeddings:
        path = self.columns.folder / "embeddings.npy"
        if not path.exists():
            width, parts = self.embedded_parts()
            part = path.with_suffix(".part")
            shape = (len(self.columns), width)
            stored = np.lib.format.open_memmap(part, "w+", np.float32, shape)
            done = 0
            for rows_bd in parts:
                lengths = np.linalg.norm(rows_bd, axis=1, keepdims=True)
                stored[done : done + len(rows_bd)] = rows_bd / np.maximum(lengths, 1e-12)
                done += len(rows_bd)
            if done != shape[0]:
                raise UserError(
                    f"{self.folder.uri}: {done:,} embeddings of {shape[0]:,} samples: begin anew"
                )
            stored.flush()
            os.replace(part, path)
        found: Embeddings = np.load(path, mmap_mode="r")
        return found


class RunCollection(Collection):
    """The samples of a run that has ended, in its own clusters or in reclustered ones."""

    def __init__(
        self,
        directory: RunDirectory,
        num_clusters: int | None = None,
        curation: Folder | None = None,
    ) -> None:
        """Read which samples are in which cluster.

        Args:
            directory: of the run.
            num_clusters: of reclustered clusters; None for its own.
            curation: where its findings are, unless in its own folder.

        Raises:
            UserError: the run has not ended, or has no such clusters.
        """
        super().__init__()
        self.directory, self.num_clusters = directory, num_clusters
        self.curation = curation or directory
        self.run_uri = directory.uri
        config = directory.read_config()
        if config is None:
            raise UserError(f"{directory.uri} holds no run (no config.yaml): give a run's folder")
        self.config: RunConfig = config
        self.folder: Folder = directory
        if num_clusters is not None:
            from conr_ray.engine.clusters_folder import ClustersFolder

            self.folder = ClustersFolder.of(directory, num_clusters)
        self.title = f"{config.data.title}: {directory.uri.rpartition('/')[2]}"
        place = f"{self.folder.uri}/assignments.parquet"
        file, version = opened_table(self.folder, "assignments.parquet")
        if file is None:
            way = f"python -m conr_ray.recluster --run {directory.uri} --clusters {num_clusters}"
            remedy = "resume it to its end" if num_clusters is None else f"make it with {way}"
            raise UserError(f"{place}: there is none: {remedy}")
        self.columns = open_columns(
            key_of(place, version), lambda: _assigned(file), file.metadata.num_rows
        )

    @cached_property
    def fingerprint(self) -> str:
        """As `TrainedRun` checks it."""
        return fingerprint_of(self.columns.ids_n, self.columns.clusters_n)

    @cached_property
    def _data(self) -> DataSet | None:
        try:
            data = prepared_data(self.config.data)
            if data is None:
                from conr_ray.data.store import open_data

                data = open_data(self.config.data)
                disk.tell(data.line)
        except UserError as error:
            disk.tell(f"no pictures are shown: {error}")
            return None
        if data.num_rows != len(self.columns):
            disk.tell(
                f"no pictures are shown: {data.num_rows:,} {data.what} are where the run's "
                f"{len(self.columns):,} were"
            )
            return None
        return data

    def pictures(self, rows: Sequence[int]) -> Mapping[int, bytes]:
        """From the decoded copy of the run's images."""
        data = self._data
        if data is None:
            return {}
        found = {row: data.picture(row) for row in rows}
        return {row: picture for row, picture in found.items() if picture is not None}

    def embedded_parts(self) -> tuple[int, Iterator[Embeddings]]:
        """By the networks of the run, or as `conr_ray.recluster` has stored them."""
        from conr_ray.engine.recluster import Reclustering
        from conr_ray.engine.trained_run import TrainedRun
        from conr_ray.frozen import open_samples

        run = TrainedRun.load(self.directory)
        if run.state.centers is None:
            raise UserError(f"{self.run_uri}: the run has no clusters yet: train it on")
        data = open_samples(run.config, self.directory)
        found = Reclustering.of(run, data, self.directory).embeddings()
        return run.state.centers.shape[1], (part.float().numpy(force=True) for part in found)


def opened_table(folder: Folder, name: str) -> tuple[Any, str]:
    """A Parquet file, memory-mapped if it is local, and what tells its content; None without.

    Raises:
        UserError: it is damaged.
    """
    place = f"{folder.uri}/{name}"
    try:
        if folder.is_local and "://" not in folder.uri:
            if not Path(place).exists():
                return None, ""
            status = os.stat(place)
            return pq.ParquetFile(place, memory_map=True), f"{status.st_size}:{status.st_mtime_ns}"
        data = folder.read_bytes(name)
        if data is None:
            return None, ""
        return pq.ParquetFile(pa.BufferReader(data)), hashlib.sha256(data).hexdigest()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{place} is damaged ({one_line(error)}): delete it") from None


def _assigned(file: Any) -> Iterator[Part]:
    with_names = "path" in file.schema_arrow.names
    wanted = ["sample_id", "cluster", "boundary_ratio", *(["path"] if with_names else [])]
    for batch in file.iter_batches(PART_ROWS, columns=wanted):
        columns = [batch.column(name).to_numpy() for name in wanted[:3]]
        names = batch.column("path") if with_names else None
        yield columns[0], columns[1], columns[2], names


def key_of(*parts: str) -> str:
    """What tells `open_columns` these samples from others."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
