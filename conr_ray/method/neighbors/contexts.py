"""Contextual similarity from neighbour lists (paper section 3.2), in sparse rows.

With N the k1 nearest rows of each row, itself included, A their binary matrix, and W the squared
similarities of the k2 nearest: B = A + A^T; F = W B, rows scaled to unit length; B = F + F^T;
F = W B, scaled likewise. The contextual similarity is F F^T. Since F is D W B for a diagonal D, and
B is symmetric, the scores of a row f of F are f B W^T D: two sparse products with short rows
instead of one with long ones. With k2 = 1, F is A, and the scores are f A^T.

Shapes: p rows of the pool, q of them queried, s entries of a list, k neighbours.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method import compiled
from conr_ray.method.neighbors import context_kernels as kernels
from conr_ray.method.neighbors.rank_keys import EMPTY, numbers_of, rank_keys, similarities_of

# torch warns once per process that CSR is in beta: trigger that here, unseen.
with warnings.catch_warnings(action="ignore"):
    torch.sparse_csr_tensor([0], [], [], (0, 0), check_invariants=False)

# Up to this many rows, other devices use dense features: fewer operations, no host sync.
_DENSE_ROWS = 1024
# Maximum number of elements of a dense block of scores on other devices.
_BLOCK_ELEMENTS = 2**27
# Similarities below this count as 0, so that no product of weights underflows.
_SMALLEST = 1e-30


def contextual_lists(
    lists_ps: Tensor,
    own_p: Tensor,
    live_p: Tensor,
    queries_q: Tensor,
    *,
    k2: int,
    width: int,
    order_p: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The `width` best others of each queried row by contextual similarity.

    Rows that share nothing with a query have similarity 0 and fill up its list; if fewer than
    `width` others are live, it is padded with EMPTY.

    Args:
        lists_ps: rank keys of the k1 - 1 nearest others of each row, best first.
        own_p: dot product of each row with itself, float32.
        live_p: bool; rows that take part.
        queries_q: the queried rows, live.
        k2: rows whose contexts are averaged, 1 <= k2 <= k1.
        width: entries of the lists that are returned.
        order_p: all rows, similar ones close together, for speed.

    Returns:
        Rank keys (q, width) and the contextual similarity of each query with itself, float32 (q,).
    """
    rows_p = torch.arange(len(lists_ps), device=lists_ps.device)
    near_pk = torch.cat([torch.where(live_p, rows_p, -1)[:, None], numbers_of(lists_ps)], 1)
    similarities_pk = torch.cat([own_p[:, None], similarities_of(lists_ps[:, : k2 - 1])], 1)
    present_pk = (near_pk[:, :k2] >= 0) & (similarities_pk.abs() >= _SMALLEST)
    weights_pk = torch.where(present_pk, similarities_pk.double().square(), 0.0)
    if compiled.serves(lists_ps.device):
        return _compiled_lists(near_pk, weights_pk, live_p, queries_q, width, order_p)
    if len(lists_ps) <= _DENSE_ROWS:
        scores_qp = _dense_scores(near_pk, weights_pk, queries_q)
        return _best_columns(scores_qp, live_p, queries_q, width)
    return _blockwise_lists(near_pk, weights_pk, live_p, queries_q, width)


def _compiled_lists(
    near_pk: Tensor,
    weights_pk: Tensor,
    live_p: Tensor,
    queries_q: Tensor,
    width: int,
    order_p: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """For CPUs: compiled loops over rows, in an order that reuses the cache."""
    near, queries, k2 = near_pk.numpy().astype(np.int32), queries_q.numpy(), weights_pk.shape[1]
    order = kernels.visiting_order(near) if order_p is None else order_p.numpy()
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    near = np.where(near >= 0, places[near], -1).astype(np.int32)[order]
    weights = weights_pk.numpy()[order]
    by_place = np.argsort(places[queries])
    query_rows = places[queries][by_place]

    ones = np.ones(near.shape)
    contexts_back = kernels.transposed(near, ones)
    contexts = kernels.transposed_sparse(contexts_back)
    if k2 == 1:
        single = np.ones((len(near), 1))
        middle, outer = kernels.transposed(near[:, :1].copy(), single), contexts_back
        features = kernels.rows_of(contexts, query_rows)
    else:
        middle = kernels.added(contexts, contexts_back)
        features, _ = kernels.spread(near, weights, middle)
        middle = kernels.added(features, kernels.transposed_sparse(features))
        if len(query_rows) == len(near):
            features, scales = kernels.spread(near, weights, middle)
        else:
            features, _ = kernels.spread(near, weights, middle, query_rows)
            scales = kernels.spread_scales(near, weights, middle)
        outer = kernels.transposed(near[:, :k2].copy(), weights * scales[:, None])

    keys = np.full((len(queries), width), EMPTY)
    own = np.empty(len(queries), np.float32)
    factors = features, middle, outer
    compiled.over_threads(kernels.best_scores, len(queries), *factors, query_rows, order, keys, own)
    kernels.fill_up(keys, order[query_rows], live_p.nonzero().flatten().numpy())
    found, own_found = np.empty_like(keys), np.empty_like(own)
    found[by_place], own_found[by_place] = keys, own
    return torch.from_numpy(found), torch.from_numpy(own_found)


def _dense_scores(near_pk: Tensor, weights_pk: Tensor, queries_q: Tensor) -> Tensor:
    """Contextual similarities (q, p) float32 by the dense formulas."""
    num_rows, k2 = weights_pk.shape
    # Missing entries go to an additional column, which is cut off.
    near_pk = torch.where(near_pk >= 0, near_pk, num_rows)
    empty = weights_pk.new_zeros(num_rows, num_rows + 1)
    features_pp = empty.scatter(1, near_pk, 1.0)[:, :num_rows]
    if k2 > 1:
        spread_pp = empty.scatter(1, near_pk[:, :k2], weights_pk)[:, :num_rows]
        for _ in range(2):
            features_pp = normalize(spread_pp @ (features_pp + features_pp.T), eps=1e-300)
    return (features_pp[queries_q] @ features_pp.T).float()


def _best_columns(
    scores_qp: Tensor, live_p: Tensor, queries_q: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    rows_p = torch.arange(len(live_p), device=live_p.device)
    others_qp = live_p & (queries_q[:, None] != rows_p)
    keys_qp = rank_keys(scores_qp, rows_p).masked_fill(~others_qp, EMPTY)
    found_qs = keys_qp.topk(min(width, len(rows_p))).values
    padding = found_qs.new_full((len(found_qs), width - found_qs.shape[1]), EMPTY)
    own_q = scores_qp.gather(1, queries_q[:, None]).squeeze(1)
    return torch.cat([found_qs, padding], 1), own_q


def _blockwise_lists(
    near_pk: Tensor, weights_pk: Tensor, live_p: Tensor, queries_q: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """For other devices: sparse features, and their products with dense blocks of queries."""
    num_rows, k2 = weights_pk.shape
    with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call]
        features = _matrix(near_pk, (near_pk >= 0).double())
        if k2 > 1:
            for _ in range(2):
                features = _spread(near_pk, weights_pk, (features + features.T).coalesce())
    rows, columns = features.indices()
    values = features.values()
    compressed = features.to_sparse_csr()
    parts = []
    for queries_b in torch.split(queries_q, max(1, _BLOCK_ELEMENTS // num_rows)):
        place_p = torch.full_like(live_p, -1, dtype=torch.int64)
        place_p[queries_b] = torch.arange(len(queries_b), device=queries_b.device)
        chosen = place_p[rows] >= 0
        dense_pb = values.new_zeros(num_rows, len(queries_b))
        dense_pb[columns[chosen], place_p[rows[chosen]]] = values[chosen]
        scores_bp = (compressed @ dense_pb).T.float()
        parts.append(_best_columns(scores_bp, live_p, queries_b, width))
    found, own = zip(*parts, strict=True)
    return torch.cat(found), torch.cat(own)


def _matrix(columns_pk: Tensor, values_pk: Tensor) -> Tensor:
    """Sparse (p, p) matrix with `values_pk` at `columns_pk`, where they are not 0."""
    rows, entries = values_pk.nonzero(as_tuple=True)
    places = torch.stack([rows, columns_pk[rows, entries]])
    size = (len(values_pk), len(values_pk))
    return torch.sparse_coo_tensor(places, values_pk[rows, entries], size).coalesce()


def _spread(near_pk: Tensor, weights_pk: Tensor, matrix: Tensor) -> Tensor:
    """Rows sum_t weights[i, t] matrix[near[i, t]], scaled to unit length."""
    num_rows = len(near_pk)
    counts_p = torch.bincount(matrix.indices()[0], minlength=num_rows)
    starts_p = counts_p.cumsum(0) - counts_p
    rows, entries = weights_pk.nonzero(as_tuple=True)
    sources = near_pk[rows, entries]
    counts = counts_p[sources]
    parent = torch.repeat_interleave(counts)
    first = counts.cumsum(0) - counts
    taken = starts_p[sources][parent] + torch.arange(len(parent), device=rows.device)
    taken -= first[parent]
    places = torch.stack([rows[parent], matrix.indices()[1][taken]])
    values = matrix.values()[taken] * weights_pk[rows, entries][parent]
    total = torch.sparse_coo_tensor(places, values, (num_rows, num_rows)).coalesce()
    squares_p = values.new_zeros(num_rows)
    squares_p.index_add_(0, total.indices()[0], total.values().square())
    scaled = total.values() / squares_p.sqrt()[total.indices()[0]]
    return torch.sparse_coo_tensor(total.indices(), scaled, (num_rows, num_rows), is_coalesced=True)
