"""Samples that are named by a path, or by a row of a Parquet file: of predictions and of vectors.

Shapes: d embedding width.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from conr_ray.browsing.collection import (
    PART_ROWS,
    Collection,
    Embeddings,
    Rows,
    key_of,
    opened_table,
)
from conr_ray.browsing.columns import Part, open_columns
from conr_ray.config import DataConfig
from conr_ray.data.sources.vectors import VectorsSource
from conr_ray.edits.folder import fingerprint_of
from conr_ray.errors import UserError, printable
from conr_ray.prediction.output import hashes
from conr_ray.reporting.predicted_pictures import PredictedPictures
from conr_ray.reporting.predictions_data import FORMAT, Predicted, prediction_fingerprint
from conr_ray.storage.files import Folder

# Between the name of a Parquet file and the row in it.
_BETWEEN = "\n"
_KEYS = ("path", "file", "row")


class KeyedCollection(Collection):
    """Samples whose names tell where their pictures are.

    Attributes:
        told: where the pictures are, as prediction.json tells it.
        keys: the columns that name a sample, of path, file and row.
    """

    told: dict[str, Any]
    keys: list[str]

    @cached_property
    def _pictures(self) -> PredictedPictures:
        return PredictedPictures({"what": "", "images": "", **self.told})

    def rows_found(self, table: pa.Table) -> Rows:
        """By path, file and row."""
        return self.rows_of(hashes(table, self.keys).view(np.int64))

    def name(self, row: int) -> str:
        """Its path, or where in a Parquet file it is."""
        return self._predicted(row).name

    def _predicted(self, row: int) -> Predicted:
        assert self.columns.names is not None
        text = self.columns.names[row].as_py()
        if "path" in self.keys:
            return Predicted(0, 0.0, path=text)
        file, _, number = text.rpartition(_BETWEEN)
        return Predicted(0, 0.0, file=file or None, row=int(number))

    def pictures(self, rows: Sequence[int]) -> Mapping[int, bytes]:
        """From where the images are."""
        wanted = {self._predicted(row): row for row in rows}
        return {wanted[image]: data for image, data in self._pictures.read(wanted).items()}


class PredictionCollection(KeyedCollection):
    """The images of a prediction."""

    def __init__(self, directory: Folder) -> None:
        """Read which images are in which cluster.

        Raises:
            UserError: it is of another version, or cannot be read.
        """
        super().__init__()
        self.folder = self.curation = directory
        self.told = directory.read_json("prediction.json") or {}
        if self.told.get("format") != FORMAT:
            raise UserError(
                f"{directory.uri}/prediction.json: format={self.told.get('format')}: this version "
                f"reads {FORMAT}: use the version of conr_ray that wrote it"
            )
        self.run_uri = str(self.told.get("run", ""))
        if self.told.get("reclustered"):
            self.num_clusters = int(self.told["num_clusters"])
        images = str(self.told.get("images", "")).rstrip("/").rpartition("/")[2]
        self.title = f"{printable(images) or 'images'}: {directory.uri.rpartition('/')[2]}"
        names = [n for n in directory.file_names("predictions") if n.endswith(".parquet")]
        opened = [opened_table(directory, f"predictions/{name}") for name in names]
        self._files = [file for file, _ in opened if file is not None]
        if not sum(file.metadata.num_rows for file in self._files):
            raise UserError(f"{directory.uri} holds no predictions yet: let predict go on")
        self.keys = [name for name in _KEYS if name in self._files[0].schema_arrow.names]
        self.columns = open_columns(
            key_of(directory.uri, *(version for _, version in opened)),
            self._parts,
            sum(file.metadata.num_rows for file in self._files),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Of the run and the images, so that edits hold when images are added."""
        return prediction_fingerprint(self.told)

    def _parts(self) -> Iterator[Part]:
        for file in self._files:
            wanted = [*self.keys, "cluster", "boundary_ratio"]
            for batch in file.iter_batches(PART_ROWS, columns=wanted):
                ids = hashes(pa.Table.from_batches([batch]), self.keys).view(np.int64)
                columns = [batch.column(name).to_numpy() for name in wanted[-2:]]
                yield ids, columns[0], columns[1], _names(batch)

    def embedded_parts(self) -> tuple[int, Iterator[Embeddings]]:
        """Those that were written with the prediction."""
        if not all("embedding" in file.schema_arrow.names for file in self._files):
            raise UserError(
                f"{self.folder.uri} holds no embeddings: predict with --embeddings --all to have "
                "neighbours, splits, a map and search"
            )
        width = self._files[0].schema_arrow.field("embedding").type.list_size

        def parts() -> Iterator[Embeddings]:
            for file in self._files:
                for batch in file.iter_batches(PART_ROWS // 4, columns=["embedding"]):
                    flat = batch.column("embedding").flatten().to_numpy(zero_copy_only=False)
                    yield np.asarray(flat, np.float32).reshape(-1, width)

        return width, parts()


class VectorCollection(KeyedCollection):
    """The samples of a table of vectors that was curated."""

    def __init__(self, directory: Folder, about: Mapping[str, Any]) -> None:
        """Read which samples there are; those without a cluster are in one of their own.

        Args:
            directory: of the curation, where the edits go.
            about: its curation.json, of a table.

        Raises:
            UserError: the table is gone or has changed, or names its samples in no way.
        """
        super().__init__()
        self.folder, self.run_uri, self.told = directory, "", dict(about)
        self.curation = directory
        path, column = str(about["vectors"]), str(about["column"])
        self._source = VectorsSource(
            DataConfig(source="vectors", path=path, vector_column=column, label_column=None)
        )
        self._source.check_column()
        num_rows = self._source.num_rows
        if num_rows != about["num_rows"]:
            raise UserError(
                f"{path}: {num_rows:,} rows are where {about['num_rows']:,} were curated: look "
                "anew with python -m conr_ray.curate"
            )
        self.title = f"{printable(path.rpartition('/')[2])}: {directory.uri.rpartition('/')[2]}"
        self._table = self._source.columns((*_KEYS, "sample_id", "cluster", "boundary_ratio"))
        self.keys = [name for name in _KEYS if name in self._table.column_names]
        status = os.stat(path) if os.path.exists(path) else None
        version = "" if status is None else f"{status.st_size}:{status.st_mtime_ns}"
        self.columns = open_columns(key_of(path, column, version), self._parts, num_rows)

    @cached_property
    def fingerprint(self) -> str:
        """Of which samples are in which cluster."""
        return fingerprint_of(self.columns.ids_n, self.columns.clusters_n)

    def _parts(self) -> Iterator[Part]:
        table = self._table
        known = table.column("cluster") if "cluster" in table.column_names else None
        if known is None or not pa.types.is_integer(known.type):
            known = pa.chunked_array([pa.nulls(self._source.num_rows, pa.int64())])
        alone = (pc.max(known).as_py() if known.null_count < len(known) else -1) + 1
        clusters_n = known.cast(pa.int64()).fill_null(alone).to_numpy()
        ratios_n = np.zeros(len(clusters_n), np.float32)
        if "boundary_ratio" in table.column_names:
            ratios_n = table.column("boundary_ratio").fill_null(0).to_numpy().astype(np.float32)
        for start in range(0, len(clusters_n), PART_ROWS):
            part = slice(start, start + PART_ROWS)
            ids, names = self._named(start, len(clusters_n[part]))
            yield ids, clusters_n[part], ratios_n[part], names

    def _named(self, start: int, count: int) -> tuple[Rows, pa.Array | None]:
        """Ids of some samples, and where their pictures are."""
        rows = np.arange(start, start + count)
        if not self.keys:
            if "sample_id" in self._table.column_names:
                return self._table.column("sample_id").slice(start, count).to_numpy(), None
            return rows, None
        some = self._table.select(self.keys).slice(start, count).combine_chunks()
        return hashes(some, self.keys).view(np.int64), _names(some.to_batches()[0])

    def name(self, row: int) -> str:
        """As the table names it, else its id."""
        return super().name(row) if self.keys else f"sample {self.columns.ids_n[row]}"

    def rows_found(self, table: pa.Table) -> Rows:
        """By their rows in the table of vectors."""
        found: Rows = table.column("index").to_numpy()
        return np.where(found < len(self.columns), found, -1)

    def pictures(self, rows: Sequence[int]) -> Mapping[int, bytes]:
        """From where `conr_ray.curate` has found them."""
        return super().pictures(rows) if self.keys and "images" in self.told else {}

    def embedded_parts(self) -> tuple[int, Iterator[Embeddings]]:
        """The vectors; those that are broken are 0."""
        parts = (part for part, _ in self._source.blocks_with_problems())
        return self._source.contents().row_shape[0], parts


def _names(batch: Any) -> pa.Array:
    """Where images are: the path, or the file if there are several, and the row."""
    there = batch.schema.names
    if "path" in there:
        return batch.column("path")
    rows = pc.cast(batch.column("row"), pa.string())
    files = batch.column("file") if "file" in there else pa.array([""] * len(batch))
    return pc.binary_join_element_wise(files, rows, _BETWEEN)
