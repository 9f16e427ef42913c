"""What lies below a folder of new samples: images and Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from conr_ray.data.decoding import batched
from conr_ray.data.sources.files import FoundFile, Location
from conr_ray.data.sources.picture_files import PictureFiles, ending_of
from conr_ray.data.sources.walk import Walk

_ROWS = 4096
PARQUET = frozenset({"parquet", "pq"})


class Listing:
    """The images and Parquet files below a folder, hidden ones left out; in the same order always.

    A folder of this machine is walked through each time, a store is asked once: a table then holds
    what it has said, some 60 bytes a file. Pickled without the table.
    """

    def __init__(self, location: Location) -> None:
        """Of the folder `location`; nothing is listed yet."""
        self.location = location
        self._pictures = PictureFiles(Walk(location), PARQUET)
        self._table: pa.Table | None = None

    @property
    def left_out(self) -> Mapping[str, int]:
        """What else the last listing has found, and how many of each kind."""
        return self._pictures.left_out

    @property
    def why_left_out(self) -> Mapping[str, str]:
        """For some of these kinds, the reason."""
        return self._pictures.why_left_out

    def __iter__(self) -> Iterator[FoundFile]:
        if self.location.is_local:
            yield from self._pictures
            return
        if self._table is None:
            self._table = self._listed()
        for batch in self._table.to_batches(_ROWS):
            for name, size, mtime_ns in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                yield FoundFile(os.fsdecode(name), size, mtime_ns)

    def _listed(self) -> pa.Table:
        schema = pa.schema({"name": pa.binary(), "size": pa.int64(), "mtime_ns": pa.int64()})
        parts = [
            pa.RecordBatch.from_pylist(
                [
                    {"name": os.fsencode(f.name), "size": f.size, "mtime_ns": f.mtime_ns}
                    for f in files
                ],
                schema,
            )
            for files in batched(self._pictures, _ROWS)
        ]
        return pa.Table.from_batches(parts, schema)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}


def is_parquet(name: str) -> bool:
    """Whether a file is Parquet by its ending."""
    return ending_of(name) in PARQUET
