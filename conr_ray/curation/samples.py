"""What is curated: vectors, and what is known of their samples.

Vectors are centred, turned to their principal directions and at unit length, in a file that is
memory-mapped: as many bytes of memory are needed for a million rows as for a thousand, but for the
few that are kept of each row.

Shapes: n samples, d width, w width of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.sources.vectors import VectorsSource, vectors_in
from conr_ray.errors import UserError

WIDTH = 256
"""Principal directions that are kept: all of narrower vectors."""

_KEYS = ("path", "file", "row", "sample_id")
# Rows that the directions are computed of, and those that are projected at a time.
_SAMPLE, _BLOCK = 8192, 4096
_LEAST_ROWS = 3

Blocks = Callable[[], Iterator[tuple[NDArray[np.float32], list[str | None]]]]
"""Vectors (b, w) in order, and what is wrong with each."""


@dataclass(frozen=True)
class Samples:
    """Samples to be curated.

    Attributes:
        vectors_nd: float32, unit length; 0 for those that are broken.
        lengths_n: float32, how long they were after the mean was taken from them.
        variances_d: of vectors of those lengths, along each direction.
        keys: table with the columns that name a sample, such as path or row.
        clusters_n: cluster of each, int64; None if not known.
        broken: what is wrong with a row's vector.
    """

    vectors_nd: NDArray[np.float32]
    lengths_n: NDArray[np.float32]
    variances_d: NDArray[np.float32]
    keys: pa.Table
    clusters_n: NDArray[np.int64] | None = None
    broken: dict[int, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return len(self.vectors_nd)


def of_table(path: str, column: str, folder: Path) -> Samples:
    """The samples of a Parquet file of vectors, local or in a bucket.

    Its columns path, file and row name a sample, without them its row; cluster is its cluster.

    Raises:
        UserError: there is no such column or file, there are fewer than three rows, or all vectors
            are equal.
    """
    source = VectorsSource(
        DataConfig(source="vectors", path=path, vector_column=column, label_column=None)
    )
    source.check_column()
    kept = source.columns(("cluster", *_KEYS))
    clusters = kept.column("cluster") if "cluster" in kept.column_names else None
    keys = kept.select([name for name in kept.column_names if name != "cluster"])
    if not keys.num_columns:
        keys = pa.table({"row": pa.array(np.arange(source.num_rows), pa.int64())})
    clusters_n = None
    if clusters is not None and pa.types.is_integer(clusters.type):
        clusters_n = clusters.cast(pa.int64()).fill_null(-1).to_numpy()
    return made(source.blocks_with_problems, source.num_rows, keys, clusters_n, folder, path)


def of_array(
    vectors_nw: NDArray[Any],
    keys: pa.Table,
    clusters_n: NDArray[np.int64] | None,
    folder: Path,
    name: str,
) -> Samples:
    """The samples of an array of floats, which may be memory-mapped; errors as `of_table`."""

    def blocks() -> Iterator[tuple[NDArray[np.float32], list[str | None]]]:
        for start in range(0, len(vectors_nw), _BLOCK):
            part = np.asarray(vectors_nw[start : start + _BLOCK], np.float32)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
            yield vectors_in(lists, part.shape[1])

    return made(blocks, len(vectors_nw), keys, clusters_n, folder, name)


def made(
    blocks: Blocks,
    num_rows: int,
    keys: pa.Table,
    clusters_n: NDArray[np.int64] | None,
    folder: Path,
    name: str,
) -> Samples:
    """Samples from blocks of vectors, which are read twice; see `of_table`."""
    if num_rows < _LEAST_ROWS:
        raise UserError(
            f"{name}: has {num_rows} rows, and nothing can be told of fewer than {_LEAST_ROWS}: "
            "give more"
        )
    mean_w, directions_wd, variances_d, broken = _directions(blocks, num_rows, name)
    lengths_n = np.empty(num_rows, np.float32)
    shape = num_rows, directions_wd.shape[1]
    vectors_nd = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, shape)
    start = 0
    for part, _ in blocks():
        turned = (_unit(part) - mean_w) @ directions_wd
        lengths_n[start : start + len(part)] = np.linalg.norm(turned, axis=1)
        vectors_nd[start : start + len(part)] = _unit(turned)
        start += len(part)
    for row in broken:
        vectors_nd[row] = 0
    return Samples(vectors_nd, lengths_n, variances_d, keys, clusters_n, broken)


def _directions(
    blocks: Blocks, num_rows: int, name: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], dict[int, str]]:
    """Mean, principal directions and variances of a sample; what is wrong with rows of all."""
    every = max(1, num_rows // _SAMPLE)
    broken: dict[int, str] = {}
    start, count = 0, 0
    sums: NDArray[np.float32] | None = None
    products: NDArray[np.float32] | None = None
    first: NDArray[np.float32] | None = None
    differs = False
    for part, problems in blocks():
        sound = np.ones(len(part), bool)
        zero = ~part.any(1)
        for place in np.flatnonzero(zero | np.array([p is not None for p in problems])).tolist():
            broken[start + place] = problems[place] or "has length 0"
            sound[place] = False
        if sound.any():
            first = part[sound][0] if first is None else first
            differs = differs or bool((part[sound] != first).any())
        chosen = np.zeros(len(part), bool)
        chosen[-start % every :: every] = True
        some = _unit(part[sound & chosen])
        sums = some.sum(0) if sums is None else sums + some.sum(0)
        products = some.T @ some if products is None else products + some.T @ some
        count += len(some)
        start += len(part)
    if first is None:
        at, reason = next(iter(broken.items()))
        raise UserError(f"{name}: no row has a vector (row {at} {reason}): give sound ones")
    if not differs:
        raise UserError(
            f"{name}: all vectors are equal, nothing can be told apart: give those of a model that "
            "tells the samples apart"
        )
    assert sums is not None and products is not None
    mean_w = sums / max(1, count)
    variance = products / max(1, count) - np.outer(mean_w, mean_w)
    variances, directions = np.linalg.eigh(variance)
    directions = np.ascontiguousarray(directions[:, ::-1][:, :WIDTH], np.float32)
    variances = variances[::-1][:WIDTH].astype(np.float32)
    return mean_w.astype(np.float32), directions, variances, broken


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    # Long and short ones are brought near 1 first, so that no square overflows.
    rows = rows / np.maximum(np.abs(rows).max(1, keepdims=True, initial=0), 1e-30)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit
