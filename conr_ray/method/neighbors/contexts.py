"""Contextual similarity from neighbour lists (paper section 3.2), in sparse rows.

With N the k1 nearest rows of each row, itself included, A their binary matrix, and W the squared
similarities of the k2 nearest: B = A + A^T; F = W B, rows scaled to unit length; B = F + F^T;
F = W B, scaled likewise. The contextual similarity is F F^T. Since F is D W B for a diagonal D, and
B is symmetric, the scores of a row f of F are f B W^T D: two sparse products with short rows
instead of one with long ones. With k2 = 1, F is A, and the scores are f A^T.

Shapes: p rows of the pool, q of them queried, s entries of a list, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from conr_ray.method import compiled
from conr_ray.method.neighbors import context_kernels as kernels
from conr_ray.method.neighbors.padded_sparse import PaddedMatrix, Spread
from conr_ray.method.neighbors.rank_keys import EMPTY, numbers_of, rank_keys, similarities_of

# Up to this many rows, other devices use dense features: fewer operations, no host sync.
_DENSE_ROWS = 1024
# Maximum number of elements of a dense block of scores on other devices.
_BLOCK_ELEMENTS = 2**27
# Other devices first reckon with this many times the entries of rows that are neighbours of k1.
_ROOM = 4
# Similarities below this count as 0, so that no product of weights underflows.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class Pool:
    """Rows and their nearest others.

    Attributes:
        lists_ps: rank keys of the k1 - 1 nearest others of each row, best first.
        own_p: dot product of each row with itself, float32.
        live_p: bool; rows that take part.
    """

    lists_ps: Tensor
    own_p: Tensor
    live_p: Tensor

    def contexts(self, k2: int) -> _Contexts:
        """The rows' contexts, and the weights of the k2 nearest."""
        rows_p = torch.arange(len(self.lists_ps), device=self.lists_ps.device)
        own_p1 = torch.where(self.live_p, rows_p, -1)[:, None]
        near_pk = torch.cat([own_p1, numbers_of(self.lists_ps)], 1)
        others_pk = similarities_of(self.lists_ps[:, : k2 - 1])
        similarities_pk = torch.cat([self.own_p[:, None], others_pk], 1)
        present_pk = (near_pk[:, :k2] >= 0) & (similarities_pk.abs() >= _SMALLEST)
        weights_pk = torch.where(present_pk, similarities_pk.double().square(), 0.0)
        return _Contexts(near_pk, weights_pk, self.live_p)


@dataclass(frozen=True)
class _Contexts:
    """Row numbers (p, k1), the row first, -1 if there is none; weights (p, k2), 0 likewise."""

    near_pk: Tensor
    weights_pk: Tensor
    live_p: Tensor


def contextual_lists(
    pools: Sequence[Pool],
    queries_q: Tensor,
    *,
    k2: int,
    width: int,
    order_p: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """The `width` best others of each queried row by contextual similarity, for each pool.

    Rows that share nothing with a query have similarity 0 and fill up its list; if fewer than
    `width` others are live, it is padded with EMPTY.

    Args:
        pools: of the same size.
        queries_q: the queried rows, live in all pools.
        k2: rows whose contexts are averaged, 1 <= k2 <= k1.
        width: entries of the lists that are returned.
        order_p: all rows, similar ones close together, for speed.

    Returns:
        Rank keys (q, width) and the contextual similarity of each query with itself, float32 (q,).
    """
    contexts = [pool.contexts(k2) for pool in pools]
    if compiled.serves(queries_q.device):
        return [_compiled_lists(near, queries_q, width, order_p) for near in contexts]
    if len(pools[0].live_p) > _DENSE_ROWS:
        return _blockwise_lists(contexts, queries_q, width)
    scores = [_dense_scores(near.near_pk, near.weights_pk, queries_q) for near in contexts]
    return [
        _best_columns(scores_qp, near.live_p, queries_q, width)
        for scores_qp, near in zip(scores, contexts, strict=True)
    ]


def _compiled_lists(
    contexts: _Contexts, queries_q: Tensor, width: int, order_p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For CPUs: compiled loops over rows, in an order that reuses the cache."""
    near_pk, weights_pk, live_p = contexts.near_pk, contexts.weights_pk, contexts.live_p
    near, queries, k2 = near_pk.numpy().astype(np.int32), queries_q.numpy(), weights_pk.shape[1]
    order = kernels.visiting_order(near) if order_p is None else order_p.numpy()
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    near = np.where(near >= 0, places[near], -1).astype(np.int32)[order]
    weights = weights_pk.numpy()[order]
    by_place = np.argsort(places[queries])
    query_rows = places[queries][by_place]

    ones = np.ones(near.shape)
    rows_back = kernels.transposed(near, ones)
    rows = kernels.transposed_sparse(rows_back)
    if k2 == 1:
        single = np.ones((len(near), 1))
        middle, outer = kernels.transposed(near[:, :1].copy(), single), rows_back
        features = kernels.rows_of(rows, query_rows)
    else:
        middle = kernels.added(rows, rows_back)
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
    contexts: Sequence[_Contexts], queries_q: Tensor, width: int
) -> list[tuple[Tensor, Tensor]]:
    """For other devices: products of sparse matrices with dense blocks of queries."""
    found = []
    for near, matrix in zip(contexts, _symmetric_matrices(contexts), strict=True):
        parts = []
        for queries_b in torch.split(queries_q, max(1, _BLOCK_ELEMENTS // len(near.live_p))):
            scores_bp = _block_scores(near, matrix, queries_b).T.float()
            parts.append(_best_columns(scores_bp, near.live_p, queries_b, width))
        keys, own = zip(*parts, strict=True)
        found.append((torch.cat(keys), torch.cat(own)))
    return found


def _block_scores(
    near: _Contexts, matrix: tuple[PaddedMatrix, Tensor] | None, queries_b: Tensor
) -> Tensor:
    """Contextual similarities (p, b) of a block of queries.

    `matrix` is B with the factors that give the rows of W B unit length, or None if k2 is 1.
    """
    if matrix is None:
        ones_pk = (near.near_pk >= 0).double()
        return _gathered(near.near_pk, ones_pk, _columns(near.near_pk, ones_pk, queries_b))
    both, scales_p = matrix
    near_pk = near.near_pk[:, : near.weights_pk.shape[1]]
    features_pb = both.times(_columns(near_pk, near.weights_pk, queries_b)) * scales_p[queries_b]
    return _gathered(near_pk, near.weights_pk, both.times(features_pb)) * scales_p[:, None]


def _columns(near_pk: Tensor, values_pk: Tensor, rows_b: Tensor) -> Tensor:
    """Transpose (p, b) of the chosen rows of the matrix with `values_pk` at `near_pk`."""
    empty_bp = values_pk.new_zeros(len(rows_b), len(near_pk))
    chosen = near_pk[rows_b].clamp_min(0), values_pk[rows_b]
    return empty_bp.scatter_add(1, *chosen).T.contiguous()


def _gathered(near_pk: Tensor, values_pk: Tensor, dense_pb: Tensor) -> Tensor:
    """Product (p, b) of the matrix with `values_pk` at `near_pk` and a dense one."""
    near_pk = near_pk.clamp_min(0)
    return embedding_bag(near_pk, dense_pb, mode="sum", per_sample_weights=values_pk)


def _symmetric_matrices(
    contexts: Sequence[_Contexts],
) -> Sequence[tuple[PaddedMatrix, Tensor] | None]:
    """The second B of each pool, and the factors of the rows of W B; None where k2 is 1.

    All sizes are read in one wait for the device, unless some rows are neighbours of very many.
    """
    k2 = contexts[0].weights_pk.shape[1]
    if k2 == 1:
        return [None] * len(contexts)

    def spread(matrices: Sequence[PaddedMatrix]) -> list[Spread]:
        """W (M + M^T) of each pool."""
        return [
            Spread(near.near_pk[:, :k2], near.weights_pk, matrix.plus_transpose())
            for near, matrix in zip(contexts, matrices, strict=True)
        ]

    first = spread([_neighbor_matrix(near.near_pk) for near in contexts])
    rooms = [_ROOM * k2 * near.near_pk.numel() for near in contexts]
    while True:
        features = [each.product(room).unit_rows() for each, room in zip(first, rooms, strict=True)]
        second = spread(features)
        counts = [each.size() for each in [*first, *second]]
        counts += [each.matrix.starts[-1] for each in second]
        needed, sizes, used = torch.stack(counts).view(3, -1).tolist()
        if all(size <= room for size, room in zip(needed, rooms, strict=True)):
            break
        # Some rows are neighbours of very many.
        rooms = needed
    return [
        (each.matrix.trimmed(num_entries), each.product(size).scales())
        for each, size, num_entries in zip(second, sizes, used, strict=True)
    ]


def _neighbor_matrix(near_pk: Tensor) -> PaddedMatrix:
    """The binary matrix of each row's neighbours."""
    num_rows, k1 = near_pk.shape
    rows_p1 = torch.arange(num_rows, device=near_pk.device)[:, None]
    rows_pk = torch.where(near_pk >= 0, rows_p1, num_rows)
    ones_e = torch.ones(num_rows * k1, dtype=torch.float64, device=near_pk.device)
    return PaddedMatrix.summed(num_rows, rows_pk.flatten(), near_pk.flatten(), ones_e)
