"""Exact nearest-neighbour lists, built and maintained by offering rows to one another.

Shapes: a and b rows, d width, s entries of a list.

On a CPU, compiled loops read each block of similarities once for both sides. On other devices,
torch operations do the same, one side at a time, and wait for the device at most once: rows for
which rough products do not decide are doubts, whose number is read when all blocks are through.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from conr_ray.method import compiled
from conr_ray.method.collectives import all_gather_rows
from conr_ray.method.neighbors import search_kernels
from conr_ray.method.neighbors.rank_keys import EMPTY, dot, numbers_of, rank_keys, similarities_of
from conr_ray.method.neighbors.rough_products import (
    RoughRows,
    full_precision,
    room_for,
    rough_products,
)

# Rows per side of a block of similarities; on a CPU, the block must fit in the cache.
_CPU_BLOCK = (512, 1024)
_DEVICE_BLOCK = (1024, 65536)
# Up to this many rows a side, other devices compute all products exactly: no host sync.
_EXACT_ROWS = 1024
# Candidates beyond the list's width that the torch search scores exactly.
_SLACK = 8
# Pairs that other devices score exactly at a time; each takes some 40 bytes.
_EXACT_PAIRS = 2**24


@dataclass(frozen=True)
class NeighborLists:
    """For each of `a` rows, the best of the rows offered to it.

    Attributes:
        keys_as: rank keys, best first, padded with EMPTY. Contiguous.
        floors_a: the lowest key that each list accepts. Every row ever offered with a key of at
            least the floor is in the list, unless it was dropped.
    """

    keys_as: Tensor
    floors_a: Tensor

    @classmethod
    def empty(cls, num_rows: int, width: int, device: torch.device) -> NeighborLists:
        """Empty lists that accept everything."""
        keys_as = torch.full((num_rows, width), EMPTY, device=device)
        return cls(keys_as, torch.full((num_rows,), EMPTY, device=device))

    def __getitem__(self, rows: slice) -> NeighborLists:
        return NeighborLists(self.keys_as[rows], self.floors_a[rows])

    def drop(self, gone_p: Tensor) -> None:
        """Remove the rows marked in `gone_p`, by their number, from all lists."""
        if compiled.serves(self.keys_as.device):
            arrays = self.keys_as.numpy(), gone_p.numpy()
            compiled.over_threads(search_kernels.drop, len(self.keys_as), *arrays)
            return
        numbers_as = numbers_of(self.keys_as)
        kept_as = self.keys_as.masked_fill(gone_p[numbers_as] & (numbers_as >= 0), EMPTY)
        self.keys_as.copy_(kept_as.sort(dim=1, descending=True).values)

    def insert(self, rows_e: Tensor, keys_e: Tensor) -> None:
        """Insert the key `keys_e[e]` into the list of row `rows_e[e]`, where it is good enough."""
        if not len(rows_e):
            return
        if compiled.serves(self.keys_as.device):
            arrays = [x.numpy() for x in (rows_e, keys_e, self.keys_as, self.floors_a)]
            search_kernels.insert_all(*arrays)
            return
        keys_e = keys_e.masked_fill(keys_e < self.floors_a[rows_e], EMPTY)
        rows_e, order_e = rows_e.sort()
        rows_r, counts_r = torch.unique_consecutive(rows_e, return_counts=True)
        row_e = torch.repeat_interleave(counts_r)
        column_e = torch.arange(len(rows_e), device=rows_e.device)
        column_e -= (counts_r.cumsum(0) - counts_r)[row_e]
        new_rc = keys_e.new_full((len(rows_r), int(counts_r.max())), EMPTY)
        new_rc[row_e, column_e] = keys_e[order_e]
        self.keys_as[rows_r] = best_of(self.keys_as[rows_r], new_rc)

    def raise_floors(self) -> None:
        """Make full lists refuse keys below their last entry, even after a later drop."""
        if self.keys_as.shape[1]:
            torch.maximum(self.floors_a, self.keys_as[:, -1], out=self.floors_a)


@dataclass(frozen=True)
class Side:
    """Rows that are compared.

    Attributes:
        rows_ad: unit length, any float.
        numbers_a: row number of each, int64; -1 takes no part.
        lists: their lists, or None if they are only offered to the other side.
    """

    rows_ad: Tensor
    numbers_a: Tensor
    lists: NeighborLists | None = None

    def __getitem__(self, rows: slice) -> Side:
        lists = None if self.lists is None else self.lists[rows]
        return Side(self.rows_ad[rows], self.numbers_a[rows], lists)


@dataclass(frozen=True)
class _Block:
    """Some rows of a side, prepared for comparison."""

    rows: RoughRows
    side: Side


@dataclass(frozen=True)
class Doubt:
    """Rows whose lists may lack rows that were offered: rough products could not tell.

    Attributes:
        unsure_a: which of the takers.
        takers: with their lists.
        offered: rows that must be scored exactly for those takers.
    """

    unsure_a: Tensor
    takers: Side
    offered: Side


def compare(left: Side, right: Side) -> None:
    """Offer all rows of each side to the lists of the other; no row is offered to itself."""
    settle(compare_all([left], [right]))


def compare_all(lefts: Sequence[Side], rights: Sequence[Side]) -> list[Doubt]:
    """`compare` each left side with its right side, up to doubts that the caller must settle.

    All right sides have the same rows.
    """
    device = rights[0].rows_ad.device
    left_size, right_size = _block_sizes(device)
    doubts: list[Doubt] = []
    with full_precision(device):
        room = room_for(left_size * right_size, device)
        left_blocks = [[_block(left[p]) for p in _parts(left, left_size)] for left in lefts]
        for part in _parts(rights[0], right_size):
            rows = RoughRows.of(rights[0].rows_ad[part])
            for blocks, right in zip(left_blocks, rights, strict=True):
                for block in blocks:
                    doubts += _compare_blocks(block, _Block(rows, right[part]), room)
    return doubts


def compare_within(side: Side) -> list[Doubt]:
    """Offer all rows of a side to one another, up to doubts that the caller must settle.

    On a CPU, each block of similarities is computed once, and there are no doubts.
    """
    device = side.rows_ad.device
    if not compiled.serves(device):
        return compare_all([side], [replace(side, lists=None)])
    size = _CPU_BLOCK[1]
    with full_precision(device):
        room = room_for(size * size, device)
        blocks = [_block(side[part]) for part in _parts(side, size)]
        # First, so that few rows of other blocks are good enough where similar ones are together.
        for block in blocks:
            _compare_blocks(block, replace(block, side=replace(block.side, lists=None)), room)
        for place, left in enumerate(blocks):
            for right in blocks[place + 1 :]:
                _compare_blocks(left, right, room)
    return []


def compare_groups(
    side: Side, sizes: Sequence[int], pairs: Sequence[Sequence[int]], mine: slice
) -> None:
    """Offer the rows of each pair of groups to one another; a group may be paired with itself.

    Args:
        side: rows sorted by group, with lists.
        sizes: rows of each group.
        pairs: of groups, each once.
        mine: rows whose lists are filled.
    """
    groups, first = [], 0
    for size in sizes:
        groups.append([_block(piece) for piece in _pieces(side, first, first + size, mine)])
        first += size
    with full_precision(side.rows_ad.device):
        room = room_for(_CPU_BLOCK[1] ** 2, side.rows_ad.device)
        doubts = [
            doubt
            for one, other in pairs
            for left, right in _block_pairs(groups[one], groups[other])
            for doubt in _compare_blocks(left, right, room)
        ]
    settle(doubts)


def _pieces(side: Side, first: int, last: int, mine: slice) -> Iterator[Side]:
    """Rows of a side in parts that are wholly `mine`, or not at all and then without lists."""
    edges = {*range(first, last, _CPU_BLOCK[1]), last}
    edges |= {edge for edge in (mine.start, mine.stop) if first < edge < last}
    for start, stop in pairwise(sorted(edges)):
        piece = side[start:stop]
        yield piece if mine.start <= start < mine.stop else replace(piece, lists=None)


def _block_pairs(
    ones: Sequence[_Block], others: Sequence[_Block]
) -> Iterator[tuple[_Block, _Block]]:
    """Each pair of blocks that offer rows to lists, once; a block with itself fills its lists."""
    for place, left in enumerate(ones):
        for right in others[place if ones is others else 0 :]:
            if left is right:
                right = replace(right, side=replace(right.side, lists=None))
            if left.side.lists is not None or right.side.lists is not None:
                yield left, right


def settle(doubts: Sequence[Doubt], *others: Tensor) -> list[int]:
    """Complete the lists of all doubts, and read `others`, counts (), in the same wait."""
    counts = [*(doubt.unsure_a.sum() for doubt in doubts), *others]
    numbers = torch.stack(counts).tolist() if counts else []
    for doubt, number in zip(doubts, numbers, strict=False):
        if number:
            _offer_exactly(doubt.takers, first_marked(doubt.unsure_a, number), doubt.offered)
    return numbers[len(doubts) :]


def offer(takers: Side, offered: Side) -> None:
    """Offer rows to the lists of few others, without waiting for the device."""
    if compiled.serves(takers.rows_ad.device):
        compare(takers, replace(offered, lists=None))
        return
    every_a = torch.arange(len(takers.numbers_a), device=takers.numbers_a.device)
    for part in _parts(offered, _DEVICE_BLOCK[1]):
        _offer_exactly(takers, every_a, offered[part])


def first_marked(marked_a: Tensor, number: int) -> Tensor:
    """The first `number` places that are true, of as many or more, without a wait."""
    places_a = torch.arange(len(marked_a), device=marked_a.device)
    return torch.where(marked_a, places_a, len(marked_a)).sort().values[:number]


def _parts(side: Side, size: int) -> Iterator[slice]:
    for start in range(0, len(side.rows_ad), size):
        yield slice(start, start + size)


def _block(side: Side) -> _Block:
    return _Block(RoughRows.of(side.rows_ad), side)


def nearest_lists(
    unit_nd: Tensor, width: int, local: slice | None = None, order_n: Tensor | None = None
) -> NeighborLists:
    """The `width` nearest others of every row by cosine, found exactly.

    Time is O(n^2 d), memory O(n width) besides the input.

    Args:
        unit_nd: all rows, unit length, float32.
        width: entries of a list.
        local: if all workers of a process group call this, the rows that this one searches for:
            its `collectives.share`. The lists are then gathered.
        order_n: all rows, similar ones close together, for speed where one worker searches.
    """
    num_rows, device = len(unit_nd), unit_nd.device
    lists = NeighborLists.empty(num_rows, width, device)
    if not width:
        return lists
    numbers_n = torch.arange(num_rows, device=device)
    if local is None:
        if order_n is None:
            settle(compare_within(Side(unit_nd, numbers_n, lists)))
        else:
            settle(compare_within(Side(unit_nd[order_n], order_n, lists)))
            lists.keys_as[order_n] = lists.keys_as.clone()
        return lists
    part = lists[local]
    compare(Side(unit_nd[local], numbers_n[local], part), Side(unit_nd, numbers_n))
    return NeighborLists(all_gather_rows(part.keys_as, num_rows), lists.floors_a)


def _block_sizes(device: torch.device) -> tuple[int, int]:
    """Rows of the left and of the right side of a block of similarities."""
    return _CPU_BLOCK if compiled.serves(device) else _DEVICE_BLOCK


def _compare_blocks(left: _Block, right: _Block, room: Tensor) -> list[Doubt]:
    """Offer the rows of each block to the lists of the other."""
    on_host = compiled.serves(room.device)
    sides = [(left.side, right.side), (right.side, left.side)]
    if not on_host and max(len(left.side.numbers_a), len(right.side.numbers_a)) <= _EXACT_ROWS:
        for takers, offered in sides:
            every_a = torch.arange(len(takers.numbers_a), device=room.device)
            _offer_exactly(takers, every_a, offered)
        return []
    rough_ab, margin = rough_products(left.rows, right.rows, room)
    if not on_host:
        rough_ab = rough_ab.float()
        doubts = [
            _offer_columns(rough, *both, margin)
            for rough, both in zip((rough_ab, rough_ab.T), sides, strict=True)
        ]
        return [doubt for doubt in doubts if doubt is not None]
    # The loops compare bits, since numpy has no bfloat16.
    bits_ab = rough_ab.view(torch.int16 if rough_ab.dtype == torch.bfloat16 else torch.int32)
    numbers = left.side.numbers_a, right.side.numbers_a
    arrays = [x.numpy() for x in (bits_ab, left.rows.exact_ad, right.rows.exact_ad, *numbers)]
    for lists, loop in (
        (left.side.lists, search_kernels.offer_columns),
        (right.side.lists, search_kernels.offer_rows),
    ):
        if lists is not None and lists.keys_as.shape[1]:
            keys, floors = lists.keys_as.numpy(), lists.floors_a.numpy()
            compiled.over_threads(loop, len(keys), *arrays, keys, floors, np.float32(margin))
    return []


def _offer_columns(rough_ab: Tensor, takers: Side, offered: Side, margin: float) -> Doubt | None:
    """Offer one side to the lists of the other: rough products propose, exact ones decide."""
    lists = takers.lists
    if lists is None or not lists.keys_as.shape[1]:
        return None
    num_candidates = min(rough_ab.shape[1], lists.keys_as.shape[1] + _SLACK)
    refused_ab = _not_offered(takers.numbers_a, offered.numbers_a)
    rough_as, columns_as = rough_ab.masked_fill(refused_ab, -torch.inf).topk(num_candidates)
    exact_as = dot(takers.rows_ad[:, None], offered.rows_ad[columns_as])
    keys_as = rank_keys(exact_as, offered.numbers_a[columns_as])
    refused_as = (rough_as == -torch.inf) | (keys_as < lists.floors_a[:, None])
    lists.keys_as.copy_(best_of(lists.keys_as, keys_as.masked_fill(refused_as, EMPTY)))
    if num_candidates == rough_ab.shape[1]:
        return None
    # A row that was not proposed may belong to the list: mostly ties, or a tight cluster.
    lowest_a = similarities_of(torch.maximum(lists.keys_as[:, -1], lists.floors_a))
    last_a = rough_as[:, -1]
    unsure_a = (lowest_a <= last_a + margin) & (last_a > -torch.inf)
    return Doubt(unsure_a, takers, offered)


def _offer_exactly(takers: Side, rows_r: Tensor, offered: Side) -> None:
    """Offer one side to the lists of some rows of the other by the similarities of all pairs."""
    lists = takers.lists
    if lists is None or not lists.keys_as.shape[1]:
        return
    offered_bd = offered.rows_ad.double()
    num_found = min(lists.keys_as.shape[1], len(offered_bd))
    for rows in torch.split(rows_r, max(1, _EXACT_PAIRS // max(1, len(offered_bd)))):
        exact_rb = (takers.rows_ad[rows].double() @ offered_bd.T).float()
        keys_rb = rank_keys(exact_rb, offered.numbers_a)
        refused_rb = _not_offered(takers.numbers_a[rows], offered.numbers_a)
        refused_rb |= keys_rb < lists.floors_a[rows, None]
        found_rs = keys_rb.masked_fill_(refused_rb, EMPTY).topk(num_found).values
        lists.keys_as[rows] = best_different(lists.keys_as[rows], found_rs)


def _not_offered(takers_a: Tensor, offered_b: Tensor) -> Tensor:
    """Pairs (a, b) of a row with itself, or with a row that takes no part, by their numbers."""
    same_ab = takers_a[:, None] == offered_b
    return same_ab | (offered_b < 0) | (takers_a < 0)[:, None]


def best_of(left_as: Tensor, right_at: Tensor) -> Tensor:
    """The best keys of two lists of each row, as many as the left ones hold."""
    both = torch.cat([left_as, right_at], 1).sort(dim=1, descending=True).values
    return both[:, : left_as.shape[1]]


def best_different(left_as: Tensor, right_at: Tensor) -> Tensor:
    """`best_of` lists that may have keys in common; no list holds one twice."""
    both = torch.cat([left_as, right_at], 1).sort(dim=1, descending=True).values
    again = both[:, 1:] == both[:, :-1]
    both[:, 1:] = both[:, 1:].masked_fill(again, EMPTY)
    return both.sort(dim=1, descending=True).values[:, : left_as.shape[1]]
