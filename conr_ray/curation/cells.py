"""Nearest neighbours of many vectors in bounded memory and near-linear time.

Vectors are put into cells of about a thousand by spherical k-means of a sample. A vector's
neighbours are sought in its own cell and in the nearest others: all of them where there are few
vectors, so that the search is then exact. Vectors and lists lie in files, so that memory holds a
few cells and what the operating system can do without.

Shapes: n vectors, d width, c cells, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.neighbors.context_kernels import visiting_order

_CELL_ROWS = 1024
_SAMPLE_PER_CELL, _ITERATIONS = 40, 8
_BLOCK = 8192
_QUERIES = 256


@dataclass(frozen=True)
class Neighbors:
    """For each vector its k nearest others, best first; missing ones are -1 and -inf.

    Attributes:
        rows_nk: int32 (n, k), a file.
        similarities_nk: cosines, float32 (n, k), a file.
        order_n: all vectors, similar ones close together.
    """

    rows_nk: NDArray[np.int32]
    similarities_nk: NDArray[np.float32]
    order_n: NDArray[np.int64]


def nearest(
    vectors_nd: NDArray[np.float32], k: int, folder: Path, *, seed: int = 0, probes: int = 16
) -> Neighbors:
    """The nearest others of vectors of unit length (or 0), float32 (n, d), kept in `folder`.

    `probes` are the cells that are looked into; of 100,000 vectors, 16 are a sixth of all.
    """
    folder.mkdir(exist_ok=True)
    num_rows = len(vectors_nd)
    cells = _Cells.of(vectors_nd, folder, seed, probes)
    shape = num_rows, min(k, num_rows - 1)
    rows_nk = _file(folder / "neighbors.npy", np.int32, shape)
    similarities_nk = _file(folder / "similarities.npy", np.float32, shape)
    for cell in range(cells.num_cells):
        own = cells.rows(cell)
        if not len(own):
            continue
        near = cells.near[cell]
        others = np.concatenate([cells.rows(one) for one in near])
        pool_pd = torch.from_numpy(np.concatenate([cells.vectors(one) for one in near]))
        queries_qd = torch.from_numpy(np.array(cells.vectors(cell)))
        for start in range(0, len(own), _QUERIES):
            some = own[start : start + _QUERIES]
            found_qp = queries_qd[start : start + _QUERIES] @ pool_pd.T
            # The cell itself is first among the near ones.
            places = torch.arange(len(some))
            found_qp[places, places + start] = -torch.inf
            best = found_qp.topk(min(shape[1], found_qp.shape[1] - 1), dim=1)
            missing = shape[1] - best.values.shape[1]
            rows = others[best.indices.numpy()]
            rows_nk[some] = np.pad(rows, ((0, 0), (0, missing)), constant_values=-1)
            similarities_nk[some] = np.pad(
                best.values.numpy(), ((0, 0), (0, missing)), constant_values=-np.inf
            )
    visited = visiting_order(cells.near)
    order_n = np.concatenate([cells.rows(cell) for cell in visited.tolist()])
    return Neighbors(rows_nk, similarities_nk, order_n)


@dataclass(frozen=True)
class _Cells:
    """Vectors sorted by cell.

    Attributes:
        sorted_nd: in a file.
        order_n: the row of each.
        bounds: where cells begin, (c + 1,).
        near: for each cell the nearest ones, itself first.
    """

    sorted_nd: NDArray[np.float32]
    order_n: NDArray[np.int64]
    bounds: NDArray[np.int64]
    near: NDArray[np.int64]

    @property
    def num_cells(self) -> int:
        return len(self.bounds) - 1

    def rows(self, cell: int) -> NDArray[np.int64]:
        return self.order_n[self.bounds[cell] : self.bounds[cell + 1]]

    def vectors(self, cell: int) -> NDArray[np.float32]:
        return self.sorted_nd[self.bounds[cell] : self.bounds[cell + 1]]

    @classmethod
    def of(cls, vectors_nd: NDArray[np.float32], folder: Path, seed: int, probes: int) -> _Cells:
        num_rows, width = vectors_nd.shape
        num_cells = max(1, num_rows // _CELL_ROWS)
        cells_n = np.zeros(num_rows, np.int64)
        near = np.zeros((1, 1), np.int64)
        if num_cells > 1:
            sample = np.random.default_rng(seed).choice(
                num_rows, min(num_rows, _SAMPLE_PER_CELL * num_cells), replace=False
            )
            sample_sd = torch.from_numpy(vectors_nd[np.sort(sample)])
            # Vectors of length 0 have no direction.
            sample_sd = normalize(sample_sd + 1e-12)
            centers_cd = spherical_kmeans(
                sample_sd,
                len(sample_sd),
                num_cells,
                seed=seed,
                restarts=1,
                max_iterations=_ITERATIONS,
            ).centers_cd
            for start in range(0, num_rows, _BLOCK):
                part = torch.from_numpy(np.array(vectors_nd[start : start + _BLOCK]))
                cells_n[start : start + _BLOCK] = (part @ centers_cd.T).argmax(1).numpy()
            similar_cc = centers_cd @ centers_cd.T
            similar_cc.fill_diagonal_(torch.inf)
            near = similar_cc.topk(min(probes, num_cells), dim=1).indices.numpy()
        order_n = np.argsort(cells_n, kind="stable")
        bounds = np.searchsorted(cells_n[order_n], np.arange(num_cells + 1))
        sorted_nd = _file(folder / "cells.npy", np.float32, (num_rows, width))
        for start in range(0, num_rows, _BLOCK):
            sorted_nd[start : start + _BLOCK] = vectors_nd[order_n[start : start + _BLOCK]]
        return cls(sorted_nd, order_n, bounds, near)


def _file(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new array in a file."""
    array: NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    return array
