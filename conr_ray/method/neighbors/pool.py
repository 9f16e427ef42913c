"""The search in the neighbour pool, and its results.

Shapes: n rows of the global batch, b of this worker, m slots of the bank, d width, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from conr_ray.method.neighbors.exchange import best_lists, entries_of_others
from conr_ray.method.neighbors.neighbor_lists import (
    NeighborLists,
    Side,
    best_of,
    compare_all,
    compare_within,
    settle,
)
from conr_ray.method.neighbors.shard import Shard


@dataclass(frozen=True)
class Neighborhood:
    """How the neighbours of a row are found (paper section 3.2).

    Attributes:
        kind: 'contextual', or 'euclidean', which uses k alone.
        k1: neighbours that form a row's context.
        k2: neighbours over which contexts are averaged, at most k1.
        k: neighbours that are found, including the row itself.
        probes: cells that are searched in all data (`contextual_neighbors`); None searches exactly.
    """

    kind: str
    k1: int
    k2: int
    k: int
    probes: int | None = None

    @property
    def graph_width(self) -> int:
        """Entries of a bank row's list: its context, and as many spare ones for rows that leave."""
        return 2 * self.k1 if self.kind == "contextual" and self.k1 > 1 else 0


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of this worker's rows.

    Attributes:
        numbers_bk: row numbers in the pool, best first, the row itself before all others; -1 if the
            pool has fewer than k rows.
        sample_ids_bk: ids of their samples, -1 if there is none.
        ages_bk: steps since they were enqueued, 0 for rows of the batch.
        mean_keys_bd: mean of their keys.
    """

    numbers_bk: Tensor
    sample_ids_bk: Tensor
    ages_bk: Tensor
    mean_keys_bd: Tensor


@dataclass(frozen=True)
class Search:
    """Keys of a batch that are compared with the bank and with one another.

    `lists_n` are the keys' own lists, `lists_m` those of the bank's rows; rows with number -1
    are left out.
    """

    keys_nd: Tensor
    numbers_n: Tensor
    lists_n: NeighborLists
    numbers_m: Tensor
    lists_m: NeighborLists

    @property
    def batch(self) -> Side:
        """The keys, with their lists."""
        return Side(self.keys_nd, self.numbers_n, self.lists_n)

    def bank(self, shard: Shard) -> Side:
        """The rows of a shard, with their lists; no copy if it holds all."""
        lists = NeighborLists(
            self.lists_m.keys_as[shard.slots].contiguous(),
            self.lists_m.floors_a[shard.slots].contiguous(),
        )
        return Side(shard.rows_ld, self.numbers_m[shard.slots].contiguous(), lists)


def run_searches(searches: Sequence[Search], shard: Shard, *counts: Tensor) -> list[int]:
    """Compare the keys of each search with the bank's rows and with one another.

    Returns:
        `counts`, (), read in the one wait for the device that the searches may need.
    """
    doubts, in_batch = [], []
    for search in searches:
        num_rows, width = search.lists_n.keys_as.shape
        lists = NeighborLists.empty(num_rows, width, search.keys_nd.device)
        in_batch.append(lists)
        if width:
            doubts += compare_within(replace(search.batch, lists=lists))
    rights = [search.bank(shard) for search in searches] if shard.size else []
    if shard.size:
        for search, lists in zip(searches, in_batch, strict=True):
            # From the bank, only rows better than those of the batch matter.
            lists.raise_floors()
            search.lists_n.floors_a.copy_(lists.floors_a)
        doubts += compare_all([search.batch for search in searches], rights)
    read = settle(doubts, *counts)
    if shard.size and shard.num_shards > 1:
        for search, right in zip(searches, rights, strict=True):
            assert right.lists is not None
            search.lists_m.keys_as[shard.slots] = right.lists.keys_as
        _exchange(searches, shard)
    for search, lists in zip(searches, in_batch, strict=True):
        search.lists_n.keys_as.copy_(best_of(search.lists_n.keys_as, lists.keys_as))
    return read


def _exchange(searches: Sequence[Search], shard: Shard) -> None:
    """Send all workers what each one has found in its shard.

    For the keys, this is the best entries of all lists; for the bank's rows, the new entries.
    """
    if not any(search.lists_n.keys_as.shape[1] for search in searches):
        return
    best = best_lists([search.lists_n.keys_as for search in searches])
    for search, keys_ns in zip(searches, best, strict=True):
        search.lists_n.keys_as.copy_(keys_ns)
    found = [
        shard.entries_of(search.lists_m.keys_as, search.numbers_n, len(search.keys_nd))
        for search in searches
    ]
    for search, (slots_e, keys_e) in zip(searches, entries_of_others(found, shard), strict=True):
        search.lists_m.insert(slots_e, keys_e)
