"""Cache of the 2-D map of a run's snapshot, since computing one takes seconds.

snapshot/map.parquet   sample_id, x, y; the schema's metadata identify its input
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conr_ray.engine.snapshot import Snapshot
from conr_ray.errors import StorageError, UserError
from conr_ray.storage.files import Folder
from conr_ray.tracking import embedding_map

logger = logging.getLogger(__name__)

Positions = npt.NDArray[np.float32]
_FILE, _KEY = "snapshot/map.parquet", b"drawn_from"


def map_positions(directory: Folder, snapshot: Snapshot, *, draw: bool) -> Positions | None:
    """Where each sample of the run's snapshot lies, (m, 2).

    None if it is not cached and `draw` is false. A computed map is cached if the directory is
    writable.
    """
    key = _drawn_from(snapshot)
    kept = _kept(directory, key)
    if kept is not None or not draw:
        return kept
    positions = embedding_map.map_2d(snapshot.embeddings)
    table = pa.table(
        {
            "sample_id": snapshot.samples["sample_id"],
            "x": positions[:, 0],
            "y": positions[:, 1],
        }
    )
    try:
        directory.write_table(_FILE, table.replace_schema_metadata({_KEY: key}))
    except StorageError as error:
        logger.info("cannot cache %s: %s", _FILE, error)
    return positions


def _kept(directory: Folder, key: bytes) -> Positions | None:
    try:
        table = directory.read_table(_FILE, ("x", "y"))
    except UserError:
        return None
    if table is None or (table.schema.metadata or {}).get(_KEY) != key:
        return None
    columns = [table[name].to_numpy() for name in ("x", "y")]
    return np.stack(columns, axis=1).astype(np.float32)


def _drawn_from(snapshot: Snapshot) -> bytes:
    """A key that is equal for equal samples, embeddings and code."""
    digest = hashlib.sha256(Path(embedding_map.__file__).read_bytes())
    digest.update(str(snapshot.epoch).encode())
    digest.update(snapshot.samples["sample_id"].to_numpy().tobytes())
    digest.update(np.ascontiguousarray(snapshot.embeddings).tobytes())
    return digest.hexdigest().encode()
