"""Loops over blocks of similarities and over neighbour lists, compiled for CPUs.

A neighbour list is a row of rank keys (`rank_keys`), best first, padded with EMPTY; its row's floor
is the lowest key that it accepts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from conr_ray.method.compiled import compiled, compiled_any_order
from conr_ray.method.neighbors.rank_keys import EMPTY as _EMPTY

Array = Any
EMPTY = np.int64(_EMPTY)
# Similarities that are compared in bulk before single ones are examined.
_CHUNK = 64


@compiled_any_order
def dot(left: Array, right: Array) -> Any:
    """Dot product of two vectors: a float64 sum, rounded to float32."""
    total = 0.0
    for t in range(left.shape[0]):
        total += np.float64(left[t]) * np.float64(right[t])
    return np.float32(total)


@compiled
def own_products(first: int, last: int, rows: Array, products: Array) -> None:
    """`dot` of each row from `first` to `last` with itself."""
    for i in range(first, last):
        products[i] = dot(rows[i], rows[i])


@compiled
def rank_key(similarity: Any, number: Any) -> Any:
    """`rank_keys.rank_keys` of one float32 and one row number."""
    bits = np.int64(np.float32(similarity + np.float32(0)).view(np.int32))
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return (bits << 32) | (0xFFFFFFFF - number)


@compiled
def similarity_of(key: Any) -> Any:
    """`rank_keys.similarities_of` of one key."""
    if key == EMPTY:
        return np.float32(-np.inf)
    bits = key >> 32
    if bits < 0:
        bits ^= 0x7FFFFFFF
    return np.int32(bits).view(np.float32)


@compiled
def insert(entries: Array, key: Any) -> None:
    """Insert a key above the last entry into a descending list, which drops its last entry."""
    place = entries.shape[0] - 1
    while place > 0 and entries[place - 1] < key:
        entries[place] = entries[place - 1]
        place -= 1
    entries[place] = key


@compiled
def _limit(similarity: Any, bits: Array) -> Any:
    """The lowest entry of `bits` that may stand for at least this similarity.

    Non-negative floats are ordered like their bits. Negative similarities, which rarely limit a
    list, let everything pass.
    """
    similarity = np.float32(similarity)
    if not similarity > 0:
        return bits.dtype.type(-(1 << (8 * bits.itemsize - 1)))
    return bits.dtype.type(np.int64(similarity.view(np.int32)) >> (32 - 8 * bits.itemsize))


@compiled
def _similarity(entry: Any, bits: Array) -> Any:
    """The similarity that an entry of `bits` stands for; -inf where it is negative."""
    if entry < 0:
        return np.float32(-np.inf)
    return np.int32(np.int64(entry) << (32 - 8 * bits.itemsize)).view(np.float32)


@compiled
def offer_columns(
    first: int,
    last: int,
    bits: Array,
    left: Array,
    right: Array,
    left_numbers: Array,
    right_numbers: Array,
    lists: Array,
    floors: Array,
    margin: Any,
) -> None:
    """Offer the right rows to the lists of the left rows from `first` to `last`.

    `bits`, left x right, are those of similarities with an error below `margin`, float32 or
    bfloat16; whatever may belong to a list is computed exactly. Rows with number -1 are skipped on
    both sides.
    """
    width = lists.shape[1]
    best = np.empty(width, bits.dtype)
    for i in range(first, last):
        if left_numbers[i] < 0:
            continue
        entries, vector = lists[i], left[i]
        threshold = similarity_of(max(floors[i], entries[width - 1])) - margin
        if entries[width - 1] == EMPTY:
            # Rows that are surely not among the best of this block are not among the best at all.
            best[:] = _limit(threshold, bits)
            for j in range(bits.shape[1]):
                usable = right_numbers[j] >= 0 and right_numbers[j] != left_numbers[i]
                if bits[i, j] > best[width - 1] and usable:
                    insert(best, bits[i, j])
            worst = _similarity(best[width - 1], bits)
            threshold = max(threshold, worst - np.float32(2) * margin)
        limit = _limit(threshold, bits)
        for start in range(0, bits.shape[1], _CHUNK):
            chunk = bits[i, start : start + _CHUNK]
            hits = np.int32(0)
            for t in range(len(chunk)):
                hits += np.int32(chunk[t] >= limit)
            if hits == 0:
                continue
            for t in range(len(chunk)):
                number = right_numbers[start + t]
                if chunk[t] >= limit and number >= 0 and number != left_numbers[i]:
                    key = rank_key(dot(vector, right[start + t]), number)
                    if key > entries[width - 1] and key >= floors[i]:
                        insert(entries, key)
                        lowest = similarity_of(max(floors[i], entries[width - 1]))
                        limit = max(limit, _limit(lowest - margin, bits))


@compiled
def offer_rows(
    first: int,
    last: int,
    bits: Array,
    left: Array,
    right: Array,
    left_numbers: Array,
    right_numbers: Array,
    lists: Array,
    floors: Array,
    margin: Any,
) -> None:
    """Offer the left rows to the lists of the right rows from `first` to `last`."""
    width = lists.shape[1]
    limits = np.empty(last - first, bits.dtype)
    for j in range(first, last):
        lowest = similarity_of(max(floors[j], lists[j, width - 1]))
        limits[j - first] = _limit(lowest - margin, bits)
    for i in range(bits.shape[0]):
        if left_numbers[i] < 0:
            continue
        vector = left[i]
        for start in range(first, last, _CHUNK):
            stop = min(last, start + _CHUNK)
            chunk, chunk_limits = bits[i, start:stop], limits[start - first : stop - first]
            hits = np.int32(0)
            for t in range(len(chunk)):
                hits += np.int32(chunk[t] >= chunk_limits[t])
            if hits == 0:
                continue
            for t in range(len(chunk)):
                number = right_numbers[start + t]
                if chunk[t] >= chunk_limits[t] and number >= 0 and number != left_numbers[i]:
                    entries = lists[start + t]
                    key = rank_key(dot(vector, right[start + t]), left_numbers[i])
                    if key > entries[width - 1] and key >= floors[start + t]:
                        insert(entries, key)
                        lowest = similarity_of(max(floors[start + t], entries[width - 1]))
                        chunk_limits[t] = _limit(lowest - margin, bits)


@compiled
def insert_all(rows: Array, keys: Array, lists: Array, floors: Array) -> None:
    """Insert `keys[e]` into the list of row `rows[e]` where it is good enough."""
    width = lists.shape[1]
    for e in range(len(rows)):
        entries = lists[rows[e]]
        if keys[e] > entries[width - 1] and keys[e] >= floors[rows[e]]:
            insert(entries, keys[e])


@compiled
def drop(first: int, last: int, lists: Array, gone: Array) -> None:
    """Remove the rows marked in `gone`, by number, from the lists from `first` to `last`."""
    width = lists.shape[1]
    for i in range(first, last):
        entries = lists[i]
        kept = 0
        for t in range(width):
            key = entries[t]
            if key == EMPTY:
                break
            if not gone[0xFFFFFFFF - (key & 0xFFFFFFFF)]:
                entries[kept] = key
                kept += 1
        for t in range(kept, width):
            if entries[t] == EMPTY:
                break
            entries[t] = EMPTY
