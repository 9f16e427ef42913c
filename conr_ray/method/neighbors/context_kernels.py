"""Contextual features and scores as sparse rows, compiled for CPUs.

A sparse matrix is (starts, columns, values): row i holds the entries from starts[i] to
starts[i + 1], unordered, every column once. Columns are unsigned, which spares the compiled code a
check of their sign. `near` is (p, k1) row numbers, the row itself first, -1 if there is none.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conr_ray.method.compiled import compiled, over_threads
from conr_ray.method.neighbors.search_kernels import EMPTY, insert, rank_key, similarity_of

Array = Any
Sparse = tuple[Array, Array, Array]


@compiled
def visiting_order(near: Array) -> Array:
    """Rows in depth-first order of their neighbours, so that adjacent rows share neighbours."""
    num_rows, k1 = near.shape
    order = np.empty(num_rows, np.int64)
    seen = np.zeros(num_rows, np.bool_)
    stack = np.empty(num_rows * k1 + 1, np.int64)
    count = 0
    for root in range(num_rows):
        stack[0] = root
        depth = 1
        while depth:
            depth -= 1
            i = stack[depth]
            if seen[i]:
                continue
            seen[i] = True
            order[count] = i
            count += 1
            for t in range(k1 - 1, 0, -1):
                j = near[i, t]
                if j >= 0 and not seen[j]:
                    stack[depth] = j
                    depth += 1
    return order


@compiled
def transposed(near: Array, weights: Array) -> Sparse:
    """Transpose of the matrix with weights[i, t] at (i, near[i, t]); zero weights are left out."""
    num_rows, num_near = weights.shape
    starts = np.zeros(num_rows + 1, np.uint64)
    for i in range(num_rows):
        for t in range(num_near):
            if near[i, t] >= 0 and weights[i, t] > 0:
                starts[near[i, t] + 1] += np.uint64(1)
    for j in range(num_rows):
        starts[j + 1] += starts[j]
    places = starts[:-1].copy()
    columns = np.empty(starts[num_rows], np.uint32)
    values = np.empty(starts[num_rows], np.float64)
    for i in range(num_rows):
        for t in range(num_near):
            j = near[i, t]
            if j >= 0 and weights[i, t] > 0:
                columns[places[j]] = i
                values[places[j]] = weights[i, t]
                places[j] += np.uint64(1)
    return starts, columns, values


@compiled
def transposed_sparse(matrix: Sparse) -> Sparse:
    """Transpose of a square sparse matrix."""
    starts, columns, values = matrix
    num_rows = len(starts) - 1
    new_starts = np.zeros(num_rows + 1, np.uint64)
    for e in range(len(columns)):
        new_starts[columns[e] + np.uint64(1)] += np.uint64(1)
    for j in range(num_rows):
        new_starts[j + 1] += new_starts[j]
    places = new_starts[:-1].copy()
    new_columns = np.empty(len(columns), np.uint32)
    new_values = np.empty(len(values), np.float64)
    for i in range(num_rows):
        for e in range(starts[i], starts[i + 1]):
            place = places[columns[e]]
            new_columns[place] = i
            new_values[place] = values[e]
            places[columns[e]] = place + np.uint64(1)
    return new_starts, new_columns, new_values


@compiled
def _count_sum(first: int, last: int, left: Sparse, right: Sparse, counts: Array) -> None:
    mark = np.full(len(counts), -1, np.int64)
    for i in range(first, last):
        for e in range(left[0][i], left[0][i + 1]):
            mark[left[1][e]] = i
        counts[i] = left[0][i + 1] - left[0][i]
        for e in range(right[0][i], right[0][i + 1]):
            if mark[right[1][e]] != i:
                counts[i] += 1


@compiled
def _fill_sum(first: int, last: int, left: Sparse, right: Sparse, total: Sparse) -> None:
    places = np.zeros(len(total[0]), np.uint64)
    for i in range(first, last):
        start = total[0][i]
        place = start
        for e in range(left[0][i], left[0][i + 1]):
            total[1][place] = left[1][e]
            total[2][place] = left[2][e]
            places[left[1][e]] = place
            place += np.uint64(1)
        for e in range(right[0][i], right[0][i + 1]):
            column = right[1][e]
            known = places[column]
            if start <= known < place and total[1][known] == column:
                total[2][known] += right[2][e]
            else:
                total[1][place] = column
                total[2][place] = right[2][e]
                place += np.uint64(1)


def added(left: Sparse, right: Sparse) -> Sparse:
    """Sum of two sparse matrices."""
    counts = np.empty(len(left[0]) - 1, np.int64)
    over_threads(_count_sum, len(counts), left, right, counts)
    total = _room(counts)
    over_threads(_fill_sum, len(counts), left, right, total)
    return total


@compiled
def _count_spread(
    first: int, last: int, rows: Array, near: Array, weights: Array, matrix: Sparse, counts: Array
) -> None:
    starts, columns, _ = matrix
    mark = np.full(len(starts), -1, np.int64)
    for r in range(first, last):
        i, count = rows[r], 0
        for t in range(weights.shape[1]):
            if weights[i, t] > 0:
                for e in range(starts[near[i, t]], starts[near[i, t] + 1]):
                    if mark[columns[e]] != r:
                        mark[columns[e]] = r
                        count += 1
        counts[r] = count


@compiled
def _fill_spread(
    first: int,
    last: int,
    rows: Array,
    near: Array,
    weights: Array,
    matrix: Sparse,
    spread: Sparse,
    scales: Array,
) -> None:
    starts, columns, values = matrix
    sums = np.zeros(len(starts), np.float64)
    for r in range(first, last):
        i, start = rows[r], spread[0][r]
        place = start
        for t in range(weights.shape[1]):
            weight = weights[i, t]
            if weight > 0:
                for e in range(starts[near[i, t]], starts[near[i, t] + 1]):
                    column = columns[e]
                    if sums[column] == 0.0:
                        spread[1][place] = column
                        place += np.uint64(1)
                    sums[column] += weight * values[e]
        square = 0.0
        for e in range(start, place):
            square += sums[spread[1][e]] ** 2
        scales[r] = 1 / np.sqrt(square) if square > 0 else 0.0
        for e in range(start, place):
            spread[2][e] = sums[spread[1][e]] * scales[r]
            sums[spread[1][e]] = 0.0


@compiled
def _scale_spread(
    first: int, last: int, near: Array, weights: Array, matrix: Sparse, scales: Array
) -> None:
    starts, columns, values = matrix
    sums = np.zeros(len(starts), np.float64)
    touched = np.empty(len(starts) + 1, np.uint32)
    for i in range(first, last):
        count = np.uint64(0)
        for t in range(weights.shape[1]):
            weight = weights[i, t]
            if weight > 0:
                for e in range(starts[near[i, t]], starts[near[i, t] + 1]):
                    column = columns[e]
                    touched[count] = column
                    count += np.uint64(sums[column] == 0.0)
                    sums[column] += weight * values[e]
        square = 0.0
        for e in range(count):
            square += sums[touched[e]] ** 2
            sums[touched[e]] = 0.0
        scales[i] = 1 / np.sqrt(square) if square > 0 else 0.0


def spread(
    near: Array, weights: Array, matrix: Sparse, rows: Array | None = None
) -> tuple[Sparse, Array]:
    """Rows sum_t weights[i, t] matrix[near[i, t]], scaled to unit length, and the scale factors.

    Only the rows in `rows`, if given.
    """
    rows = np.arange(len(near)) if rows is None else rows
    counts = np.empty(len(rows), np.int64)
    over_threads(_count_spread, len(rows), rows, near, weights, matrix, counts)
    result, scales = _room(counts), np.empty(len(rows), np.float64)
    over_threads(_fill_spread, len(rows), rows, near, weights, matrix, result, scales)
    return result, scales


def spread_scales(near: Array, weights: Array, matrix: Sparse) -> Array:
    """The factors of `spread` for all rows, without its rows."""
    scales = np.empty(len(near), np.float64)
    over_threads(_scale_spread, len(near), near, weights, matrix, scales)
    return scales


def rows_of(matrix: Sparse, rows: Array) -> Sparse:
    """The rows `rows` of a sparse matrix."""
    starts, columns, values = matrix
    counts = (starts[rows + 1] - starts[rows]).astype(np.int64)
    result = _room(counts)
    offsets = np.repeat(starts[rows].astype(np.int64) - (np.cumsum(counts) - counts), counts)
    taken = offsets + np.arange(len(offsets))
    return result[0], columns[taken], values[taken]


def _room(counts: Array) -> Sparse:
    starts = np.zeros(len(counts) + 1, np.uint64)
    np.cumsum(counts, out=starts[1:], dtype=np.uint64)
    size = int(starts[-1])
    return starts, np.empty(size, np.uint32), np.empty(size, np.float64)


@compiled
def best_scores(
    first: int,
    last: int,
    features: Sparse,
    middle: Sparse,
    outer: Sparse,
    query_rows: Array,
    numbers: Array,
    keys: Array,
    own: Array,
) -> None:
    """Rank keys of the best of (features middle outer)[r] for queries r from `first` to `last`.

    The product is computed row by row and never stored. `numbers` are the row numbers put in keys;
    `own` receives each query's score with itself, at query_rows[r]. Scores that round to 0 are
    skipped.
    """
    num_rows = len(middle[0]) - 1
    sums = np.zeros(num_rows, np.float64)
    scores = np.zeros(num_rows, np.float64)
    touched = np.empty(num_rows + 1, np.uint32)
    scored = np.empty(num_rows + 1, np.uint32)
    width = keys.shape[1]
    for r in range(first, last):
        num_touched = np.uint64(0)
        for f in range(features[0][r], features[0][r + 1]):
            value, i = features[2][f], features[1][f]
            for e in range(middle[0][i], middle[0][i + np.uint64(1)]):
                j = middle[1][e]
                before = sums[j]
                touched[num_touched] = j
                num_touched += np.uint64(before == 0.0)
                sums[j] = before + value * middle[2][e]
        num_scored = np.uint64(0)
        for a in range(num_touched):
            j = touched[a]
            value = sums[j]
            sums[j] = 0.0
            for e in range(outer[0][j], outer[0][j + np.uint64(1)]):
                p = outer[1][e]
                before = scores[p]
                scored[num_scored] = p
                num_scored += np.uint64(before == 0.0)
                scores[p] = before + value * outer[2][e]
        entries, lowest = keys[r], 0.0
        own[r] = scores[query_rows[r]]
        for a in range(num_scored):
            p = scored[a]
            score = np.float32(scores[p])
            scores[p] = 0.0
            if score >= lowest and score > 0 and p != query_rows[r] and width:
                key = rank_key(score, numbers[p])
                if key > entries[width - 1]:
                    insert(entries, key)
                    if entries[width - 1] != EMPTY:
                        lowest = similarity_of(entries[width - 1])


@compiled
def fill_up(keys: Array, query_numbers: Array, live_numbers: Array) -> None:
    """Fill short lists with the first live rows not in them, at similarity 0."""
    width = keys.shape[1]
    for r in range(keys.shape[0]):
        entries, next_live = keys[r], 0
        count = 0
        while count < width and entries[count] != EMPTY:
            count += 1
        found = count
        while count < width and next_live < len(live_numbers):
            number = live_numbers[next_live]
            next_live += 1
            new = number != query_numbers[r]
            for t in range(found):
                new = new and 0xFFFFFFFF - (entries[t] & 0xFFFFFFFF) != number
            if new:
                entries[count] = rank_key(np.float32(0), number)
                count += 1
