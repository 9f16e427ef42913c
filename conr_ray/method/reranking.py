"""Neighbours by cosine similarity and by context (paper section 3.2).

The one rule by which neighbours are ordered, everywhere: a row itself first, then by falling
similarity, equal similarities by rising row number. Similarities are sums in float64 that are
rounded to float32 before they are compared. So what is equal in the formula is equal here, and the
order depends neither on block sizes nor on the device or the number of workers.

Shapes: n rows, q of them queried, d width, k neighbours.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn.functional import normalize

# torch warns once in a process that CSR is in beta and that its indices go unchecked. This is when.
with warnings.catch_warnings(action="ignore"):
    torch.sparse_csr_tensor([0], [], [], (0, 0))

# Up to this many rows all similarities are held: fewer operations, and none that waits for a GPU.
_DENSE_ROWS = 1024
# Rows that are searched or scored at a time: bounds the _BLOCK x n matrix of similarities.
_BLOCK = 1024
# Candidates beyond k that the float32 search keeps for exact scoring.
_SLACK = 8


def contextual_neighbors(embeddings: Tensor, *, k1: int, k2: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best rows of every row by contextual similarity, in memory linear in n.

    A is the n x n binary matrix of each row's `k1` nearest rows by cosine (itself included) and S
    their similarities. Unless `k2` is 1, twice: A <- A + A^T, then
    A_i <- sum over the k2 nearest j of i of S_ij^2 A_j, then rows to unit length. The contextual
    similarity of i and j is A_i . A_j. With `k2` = 1 A stays binary, as published, and it is the
    number of neighbours that i and j share. Rows that share nothing have similarity 0 and fill up
    a list that would else be shorter than k.

    Args:
        embeddings: (n, d) floats of any length but 0; CPU or GPU.
        k1: size of a row's context, k1 <= n.
        k2: rows whose contexts are averaged, 1 <= k2 <= k1.
        k: rows returned, k <= n.

    Returns:
        Similarities (n, k) float32 and row numbers (n, k) int64, best first; ordered by the rule of
        this module, so the first is the row itself.

    Raises:
        ValueError: a bound above is broken, or an embedding is not finite or has length 0.
    """
    unit_nd = _checked(embeddings, k1=k1, k=k)
    if not 1 <= k2 <= k1:
        raise ValueError(f"k2={k2} must be between 1 and k1={k1}")
    return _contextual(unit_nd, k1, k2, k, slice(0, len(unit_nd)))


def euclidean_neighbors(embeddings: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest rows of every row by cosine, which on unit length is also by distance.

    Arguments, order, results and errors are those of `contextual_neighbors`.
    """
    unit_nd = _checked(embeddings, k=k)
    return _nearest(unit_nd, k, slice(0, len(unit_nd)))


def batch_neighbors(
    kind: str, pool_pd: Tensor, queries: slice, *, k1: int, k2: int, k: int
) -> Tensor:
    """Pool rows (q, k) in the neighbourhood of the queried pool rows.

    Args:
        kind: 'contextual' or 'euclidean' (which uses k alone).
        pool_pd: unit length, float32. Not checked, so that the device need not be waited for.
        queries: the rows of the pool whose neighbours are wanted.
        k1: see `contextual_neighbors`.
        k2: see `contextual_neighbors`.
        k: see `contextual_neighbors`.
    """
    if kind == "euclidean":
        return _nearest(pool_pd, k, queries)[1]
    return _contextual(pool_pd, k1, k2, k, queries)[1]


def _checked(embeddings: Tensor, **counts: int) -> Tensor:
    if embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be (n, d) floats, got {tuple(embeddings.shape)} {embeddings.dtype}"
        )
    for name, count in counts.items():
        if not 1 <= count <= len(embeddings):
            raise ValueError(f"{name}={count} must be between 1 and the {len(embeddings)} rows")
    lengths = embeddings.detach().double().norm(dim=1)
    bad = ~(torch.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise ValueError(f"embedding {int(bad.nonzero()[0])} is not finite or has length 0")
    return normalize(embeddings.detach().float())


def _contextual(unit_nd: Tensor, k1: int, k2: int, k: int, queries: slice) -> tuple[Tensor, Tensor]:
    num_rows = len(unit_nd)
    similarities_nk, neighbors_nk = _nearest(unit_nd, k1, slice(0, num_rows))
    weights_nk = similarities_nk[:, :k2].double().square()
    if num_rows <= _DENSE_ROWS:
        features_nn = _dense_features(neighbors_nk, weights_nk)
        scores_qn = (features_nn[queries] @ features_nn.T).float()
        rows_q = torch.arange(queries.start, queries.stop, device=unit_nd.device)
        return _best(scores_qn, _every_column(unit_nd), rows_q, k)
    return _best_products(_sparse_features(neighbors_nk, weights_nk), k, queries)


def _nearest(unit_nd: Tensor, k: int, queries: slice) -> tuple[Tensor, Tensor]:
    """Exact nearest rows of the queried ones: similarities and row numbers, (q, k) each."""
    rows_q = torch.arange(queries.start, queries.stop, device=unit_nd.device)
    with torch.autocast(unit_nd.device.type, enabled=False):
        if len(unit_nd) <= _DENSE_ROWS:
            unit_nd = unit_nd.double()
            exact_qn = (unit_nd[queries] @ unit_nd.T).float()
            return _best(exact_qn, _every_column(unit_nd), rows_q, k)
        blocks = [_nearest_block(unit_nd, k, rows_b) for rows_b in torch.split(rows_q, _BLOCK)]
    values, indices = zip(*blocks, strict=True)
    return torch.cat(values), torch.cat(indices)


def _nearest_block(unit_nd: Tensor, k: int, rows_b: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 matrix product proposes candidates, float64 sums decide between them."""
    num_rows, width = unit_nd.shape
    rough_bn = unit_nd[rows_b] @ unit_nd.T
    rough_bn.scatter_(1, rows_b[:, None], torch.inf)
    rough_bs, candidates_bs = rough_bn.topk(min(num_rows, k + _SLACK))
    exact_bs = _dot(unit_nd, rows_b[:, None], candidates_bs)
    values_bk, indices_bk = _best(exact_bs, candidates_bs, rows_b, k)
    # A float32 dot product of unit vectors is off by less than width * 2^-23. Where a row that was
    # not proposed may belong to the list (ties, as a rule), all rows are candidates.
    unsure_b = values_bk[:, -1] <= rough_bs[:, -1] + width * 2.0**-22
    for row in unsure_b.nonzero().flatten().tolist():
        every_1n = _every_column(unit_nd)
        exact_1n = _dot(unit_nd, rows_b[row, None, None], every_1n)
        values_1k, indices_1k = _best(exact_1n, every_1n, rows_b[row, None], k)
        values_bk[row], indices_bk[row] = values_1k[0], indices_1k[0]
    return values_bk, indices_bk


def _every_column(unit_nd: Tensor) -> Tensor:
    return torch.arange(len(unit_nd), device=unit_nd.device)[None]


def _dot(unit_nd: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Dot products of rows `left` with rows `right`: float64 sums rounded to float32."""
    return (unit_nd[left].double() * unit_nd[right].double()).sum(-1).float()


def _best(scores_bs: Tensor, columns_bs: Tensor, rows_b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row's candidates by the rule of this module: scores and columns, (b, k).

    Scores are float32; columns are distinct within a row and may be shared by all rows, (1, s).
    """
    columns_bs = columns_bs.expand_as(scores_bs)
    # One integer orders by score, then by column: the score's bits, made monotonic for negative
    # scores, above the column's complement. Adding 0 makes -0 equal to 0.
    bits_bs = (scores_bs + 0.0).view(torch.int32)
    bits_bs = bits_bs ^ ((bits_bs >> 31) & 0x7FFFFFFF)
    bits_bs = bits_bs.masked_fill(columns_bs == rows_b[:, None], torch.iinfo(torch.int32).max)
    order_bk = ((bits_bs.long() << 32) | (0xFFFFFFFF - columns_bs)).topk(k).indices
    return scores_bs.gather(1, order_bk), columns_bs.gather(1, order_bk)


def _dense_features(neighbors_nk: Tensor, weights_nk: Tensor) -> Tensor:
    """The matrix A, (n, n) float64; `weights_nk` are the squared similarities of the k2 nearest."""
    num_rows, k2 = weights_nk.shape
    features_nn = weights_nk.new_zeros(num_rows, num_rows).scatter_(1, neighbors_nk, 1.0)
    if k2 == 1:
        return features_nn
    spread_nn = torch.zeros_like(features_nn).scatter_(1, neighbors_nk[:, :k2], weights_nk)
    for _ in range(2):
        features_nn = normalize(spread_nn @ (features_nn + features_nn.T))
    return features_nn


def _sparse_features(neighbors_nk: Tensor, weights_nk: Tensor) -> Tensor:
    """`_dense_features` as a CSR matrix."""
    num_rows, k2 = weights_nk.shape
    features = _csr(neighbors_nk, torch.ones_like(neighbors_nk, dtype=torch.float64))
    if k2 == 1:
        return features
    spread = _csr(neighbors_nk[:, :k2], weights_nk)
    for _ in range(2):
        features = spread @ (features + _transposed(features))
        starts, values = features.crow_indices(), features.values()
        rows = torch.repeat_interleave(starts.diff())
        lengths_n = values.new_zeros(num_rows).index_add_(0, rows, values.square()).sqrt()
        features = torch.sparse_csr_tensor(
            starts, features.col_indices(), values / lengths_n[rows], features.shape
        )
    return features


def _csr(columns_nk: Tensor, values_nk: Tensor) -> Tensor:
    """CSR matrix (n, n) with `values_nk` at `columns_nk`."""
    num_rows, per_row = columns_nk.shape
    columns_nk, order_nk = columns_nk.sort(dim=1)
    starts = torch.arange(0, num_rows * per_row + 1, per_row, device=columns_nk.device)
    return torch.sparse_csr_tensor(
        starts, columns_nk.flatten(), values_nk.gather(1, order_nk).flatten(), (num_rows, num_rows)
    )


def _transposed(matrix: Tensor) -> Tensor:
    return matrix.transpose(0, 1).to_sparse_csr()


def _best_products(features: Tensor, k: int, queries: slice) -> tuple[Tensor, Tensor]:
    """The k best columns of features[queries] @ features^T, scored in blocks of rows."""
    num_rows, device = len(features), features.device
    transposed = _transposed(features)
    starts = features.crow_indices()
    parts = []
    for rows_b in torch.split(torch.arange(queries.start, queries.stop, device=device), _BLOCK):
        first, last = int(starts[rows_b[0]]), int(starts[rows_b[-1] + 1])
        block = torch.sparse_csr_tensor(
            starts[rows_b[0] : rows_b[-1] + 2] - first,
            features.col_indices()[first:last],
            features.values()[first:last],
            (len(rows_b), num_rows),
        )
        scores_bs, columns_bs = _padded(block @ transposed, k)
        parts.append(_best(scores_bs, columns_bs, rows_b, k))
    scores, columns = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(columns)


def _padded(products: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Candidates of a block's rows, (b, s): the non-zero products, and zeros where these are few.

    Behind the non-zero ones stand the first columns with score 0, or -1 where they are among the
    non-zero ones. Fewer than k non-zeros leave k of the first 2k columns.
    """
    block_rows, num_rows = products.shape
    counts_b = products.crow_indices().diff()
    rows = torch.repeat_interleave(counts_b)
    slots = torch.arange(len(rows), device=rows.device) - products.crow_indices()[rows]
    columns, values = products.col_indices(), products.values().float()
    width, num_fill = int(counts_b.max()), min(2 * k, num_rows)
    scores_bs = values.new_full((block_rows, width + num_fill), -1.0)
    # Padding has columns of its own, beyond the real ones.
    columns_bs = torch.arange(width + num_fill, device=rows.device) + num_rows
    columns_bs = columns_bs.repeat(block_rows, 1)
    columns_bs[:, width:] -= num_rows + width
    nonzero = values > 0
    scores_bs[rows[nonzero], slots[nonzero]] = values[nonzero]
    columns_bs[rows[nonzero], slots[nonzero]] = columns[nonzero]
    scores_bs[:, width:] = 0.0
    early = nonzero & (columns < num_fill)
    scores_bs[rows[early], width + columns[early]] = -1.0
    columns_bs[rows[early], width + columns[early]] += 2 * num_rows
    return scores_bs, columns_bs
