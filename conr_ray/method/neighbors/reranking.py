"""Neighbours by cosine similarity and by context (paper section 3.2).

For embeddings from any model. A row itself comes first among its neighbours, the others in the
order of `rank_keys`.

Shapes: n rows, b of them this worker's, d width, k neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method import compiled
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.neighbors import search_kernels
from conr_ray.method.neighbors.cells import lists_by_cells
from conr_ray.method.neighbors.contexts import Pool, contextual_lists
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, nearest_lists
from conr_ray.method.neighbors.rank_keys import dot, numbers_of, similarities_of

# Rows held in float64 at a time.
_BLOCK = 65536
_ROWS_PER_PIVOT, _PIVOTS_PER_PIVOT = 150, 12
# Largest values of rows whose squares and lengths float32 can hold.
_TINY, _HUGE = 1e-12, 1e15

Embeddings = Tensor | npt.NDArray[np.floating[Any]]


def contextual_neighbors(
    embeddings: Embeddings,
    *,
    k1: int,
    k2: int,
    k: int,
    num_rows: int | None = None,
    queries_q: Tensor | None = None,
    probes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best rows of every row by contextual similarity, in memory linear in n.

    The re-ranking of CoNR (paper section 3.2).

    A is the n x n binary matrix of each row's `k1` nearest rows by cosine (itself included) and S
    their similarities. Unless `k2` is 1, twice: A <- A + A^T, then
    A_i <- sum over the k2 nearest j of i of S_ij^2 A_j, scaled to unit length. The contextual
    similarity of i and j is A_i . A_j. With `k2` = 1, A stays binary, as published, and it is the
    number of neighbours that i and j share. Rows that share nothing have similarity 0 and fill up
    lists that would otherwise be shorter than k.

    The k1 nearest rows are found by exact search, in time O(n^2 d); the rest is near-linear. With
    `probes` it is an approximate one, in time O(n^1.5 d probes).

    Args:
        embeddings: (n, d) floats of any non-zero length: a tensor, on a CPU or GPU, or an array.
        k1: size of a row's context, k1 <= n.
        k2: rows whose contexts are averaged, 1 <= k2 <= k1.
        k: rows returned, k <= n.
        num_rows: n, if the rows are split over the workers of a process group. `embeddings` are
            then this worker's `collectives.share` of them, (b, d), and so are the results.
            Each worker holds all n embeddings for the search, and does its share of the work.
        queries_q: int64 (q,), row numbers; neighbours are found of these alone, on each worker of
            all of them.
        probes: search approximately: rows are split into 2 sqrt(n) cells, and each is compared with
            those of the `probes` cells next to its own. None searches exactly.

    Returns:
        Similarities, float32 (n, k), and row numbers, int64 (n, k), best first, the row itself
        before all others; (q, k) with `queries_q`.

    Raises:
        ValueError: a bound above is violated, or an embedding is not finite or has length 0.
        TypeError: `embeddings` are neither a tensor nor an array.
    """
    unit_nd, local = _checked(embeddings, num_rows, k1=k1, k=k)
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2={k2} must be between 1 and k1={k1}")
    lists, order_n = _nearest(unit_nd, k1 - 1, local, probes, spread=num_rows is not None)
    rows_b = _queried(queries_q, local, unit_nd.device)
    live_n = torch.ones(len(unit_nd), dtype=torch.bool, device=unit_nd.device)
    pool = Pool(lists.keys_as, _own_products(unit_nd), live_n)
    ((keys_bk, own_b),) = contextual_lists([pool], rows_b, k2=k2, width=k - 1, order_p=order_n)
    return _with_self(keys_bk, own_b, rows_b)


def euclidean_neighbors(
    embeddings: Embeddings,
    *,
    k: int,
    num_rows: int | None = None,
    queries_q: Tensor | None = None,
    probes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The k nearest rows of every row by cosine, equivalent to distance at unit length.

    Arguments, order, results and errors are those of `contextual_neighbors`.
    """
    unit_nd, local = _checked(embeddings, num_rows, k=k)
    lists, _ = _nearest(unit_nd, k - 1, local, probes, spread=num_rows is not None)
    keys_nk = lists.keys_as
    rows_b = _queried(queries_q, local, unit_nd.device)
    return _with_self(keys_nk[rows_b], _own_products(unit_nd[rows_b]), rows_b)


def _nearest(
    unit_nd: Tensor, width: int, local: slice, probes: int | None, *, spread: bool
) -> tuple[NeighborLists, Tensor | None]:
    """Lists of all rows, and all rows with similar ones close together, if that is known."""
    if probes is not None and probes < 1:
        raise ValueError(f"probes={probes} must be at least 1")
    if probes is not None:
        return lists_by_cells(unit_nd, width, probes, spread=spread)
    order_n = _similar_together(unit_nd)
    return nearest_lists(unit_nd, width, local if spread else None, order_n), order_n


def _queried(queries_q: Tensor | None, local: slice, device: torch.device) -> Tensor:
    """The rows whose neighbours this worker finds."""
    if queries_q is None:
        return torch.arange(local.start, local.stop, device=device)
    return queries_q.to(device)


def _similar_together(unit_nd: Tensor) -> Tensor | None:
    """All rows, sorted by nearest pivot, and pivots by theirs; takes 1% of the search's time.

    None on devices other than CPUs, which gain nothing by it.
    """
    if not compiled.serves(unit_nd.device):
        return None
    pivots_xd = unit_nd[::_ROWS_PER_PIVOT]
    parts = torch.split(unit_nd, _BLOCK // 32)
    nearest_n = torch.cat([(part @ pivots_xd.T).argmax(1) for part in parts])
    nearest_x = (pivots_xd @ pivots_xd[::_PIVOTS_PER_PIVOT].T).argmax(1)
    return (nearest_x[nearest_n] * len(pivots_xd) + nearest_n).argsort(stable=True)


def _own_products(rows_nd: Tensor) -> Tensor:
    """Dot product of each row with itself, (n,) float32."""
    if compiled.serves(rows_nd.device):
        products_n = torch.empty(len(rows_nd))
        arrays = rows_nd.numpy(), products_n.numpy()
        compiled.over_threads(search_kernels.own_products, len(rows_nd), *arrays)
        return products_n
    return torch.cat([dot(part, part) for part in torch.split(rows_nd, _BLOCK)])


def _with_self(keys_bk: Tensor, own_b: Tensor, rows_b: Tensor) -> tuple[Tensor, Tensor]:
    similarities_bk = torch.cat([own_b[:, None], similarities_of(keys_bk)], 1)
    return similarities_bk, torch.cat([rows_b[:, None], numbers_of(keys_bk)], 1)


def _checked(embeddings: Embeddings, num_rows: int | None, **counts: int) -> tuple[Tensor, slice]:
    """All rows at unit length, and the slice of them that this worker handles."""
    embeddings = _as_tensor(embeddings)
    total = len(embeddings) if num_rows is None else num_rows
    local = slice(0, total) if num_rows is None else share(total)
    if local.stop - local.start != len(embeddings):
        raise ValueError(
            f"{len(embeddings)} embeddings are not this worker's {local.stop - local.start} of "
            f"num_rows={total}"
        )
    for name, count in counts.items():
        if not 1 <= count <= total:
            raise ValueError(f"{name}={count} must be between 1 and the {total} rows")
    rows_nd = embeddings.detach()
    if num_rows is not None:
        rows_nd = all_gather_rows(rows_nd, total)
    return _at_unit_length(rows_nd), local


def _as_tensor(embeddings: Embeddings) -> Tensor:
    """A matrix of floats; an array is copied, since torch takes neither every view nor order."""
    if isinstance(embeddings, np.ndarray) and embeddings.dtype.kind == "f":
        width = min(embeddings.itemsize, 8)
        embeddings = torch.from_numpy(np.array(embeddings, dtype=f"f{width}", order="C"))
    if not isinstance(embeddings, Tensor | np.ndarray):
        raise TypeError(
            f"embeddings must be a tensor or a NumPy array, got {type(embeddings).__name__}"
        )
    floats = isinstance(embeddings, Tensor) and embeddings.is_floating_point()
    if not floats or embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ValueError(
            f"embeddings must be (n, d) floats, got {tuple(embeddings.shape)} {embeddings.dtype}"
        )
    assert isinstance(embeddings, Tensor)
    return embeddings


def _at_unit_length(rows_nd: Tensor) -> Tensor:
    """The rows in float32; those so short or long that their squares vanish or overflow as well."""
    largest_n1 = torch.linalg.vector_norm(rows_nd, torch.inf, dim=1, keepdim=True)
    bad_n = ~(torch.isfinite(largest_n1) & (largest_n1 > 0)).squeeze(1)
    if bad_n.any():
        raise ValueError(f"embedding {int(bad_n.nonzero()[0])} is not finite or has length 0")
    extreme_n1 = (largest_n1 < _TINY) | (largest_n1 > _HUGE)
    if extreme_n1.any():
        rows_nd = torch.where(extreme_n1, rows_nd.double() / largest_n1.double(), rows_nd)
    return normalize(rows_nd.float())
