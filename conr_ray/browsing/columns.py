"""The columns of what is browsed, in files that are memory-mapped.

FOLDER/ids.npy        int64, a number for each sample that tells it from the others
FOLDER/clusters.npy   int64
FOLDER/ratios.npy     float32, boundary ratios
FOLDER/names.arrow    texts, if samples have paths; memory-mapped too
FOLDER/meta.json      written last: what it was made of, and how many rows

They are made once, part by part, whatever the number of samples; a part is at most `_PART_ROWS`.

Shapes: n samples.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conr_ray.data.cache import PRIVATE, Hold, default_cache_dir
from conr_ray.errors import UserError, one_line
from conr_ray.storage import disk

_COLUMNS = {"ids": np.int64, "clusters": np.int64, "ratios": np.float32}
_FORMAT = 1

Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], pa.Array | None]
"""Ids, clusters, ratios and names of some samples, in their order."""


@dataclass(frozen=True, eq=False)
class Columns:
    """What is known of each sample.

    Attributes:
        folder: with these files, and others that are made once of the same samples.
        ids_n: a number for each sample that tells it from the others.
        clusters_n: its cluster before a person's edits.
        ratios_n: its boundary ratio.
        names: its path, if samples have one.
    """

    folder: Path
    ids_n: np.memmap[Any, np.dtype[np.int64]]
    clusters_n: npt.NDArray[np.int64]
    ratios_n: npt.NDArray[np.float32]
    names: pa.ChunkedArray | None

    def __len__(self) -> int:
        return len(self.ids_n)


def open_columns(key: str, parts: Callable[[], Iterator[Part]], num_rows: int) -> Columns:
    """The columns of `num_rows` samples, made of `parts` unless they are there.

    Args:
        key: hexadecimal, which tells these samples and clusters from all others.
        parts: reads them.
        num_rows: of all parts.

    Raises:
        UserError: the cache cannot be written, or the samples cannot be read.
    """
    folder = default_cache_dir() / "browse" / key
    hold = Hold(folder)
    try:
        if not _whole(folder, num_rows):
            _make(folder, parts(), num_rows)
        found = _opened(folder)
    except OSError as error:
        hold.release()
        raise UserError(
            f"the cache {folder.parent} cannot hold what is browsed ({one_line(error)}): set "
            "CONR_RAY_CACHE to a writable folder with space"
        ) from None
    except BaseException:
        hold.release()
        raise
    hold.while_open(found.ids_n)
    return found


def _whole(folder: Path, num_rows: int) -> bool:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return bool(meta == {"format": _FORMAT, "num_rows": num_rows})
    except (OSError, ValueError):
        return False


def _make(folder: Path, parts: Iterator[Part], num_rows: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    disk.make_folders(folder, PRIVATE)
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num_rows,))
        for name, dtype in _COLUMNS.items()
    }
    writer: Any = None
    done = 0
    for ids, clusters, ratios, names in parts:
        inside = slice(done, done + len(ids))
        for name, column in zip(_COLUMNS, (ids, clusters, ratios), strict=True):
            files[name][inside] = column
        if names is not None:
            batch = pa.record_batch([names.cast(pa.string())], ["name"])
            if writer is None:
                writer = pa.ipc.new_file(str(folder / "names.arrow"), batch.schema)
            writer.write_batch(batch)
        done += len(ids)
    if writer is not None:
        writer.close()
    for column in files.values():
        column.flush()
    meta = {"format": _FORMAT, "num_rows": done}
    disk.write_file(folder / "meta.json", json.dumps(meta).encode())


def _opened(folder: Path) -> Columns:
    found = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in _COLUMNS]
    names = None
    if (folder / "names.arrow").exists():
        source = pa.memory_map(str(folder / "names.arrow"))
        names = pa.ipc.open_file(source).read_all().column("name")
    return Columns(folder, found[0], found[1], found[2], names)
