"""The maintained neighbour graph of the bank's rows.

Shapes: m slots of the bank, r slots that are searched for, s entries of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from conr_ray.method.neighbors.exchange import best_lists
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, Side, best_different, offer
from conr_ray.method.neighbors.pool import Search
from conr_ray.method.neighbors.rank_keys import EMPTY
from conr_ray.method.neighbors.shard import Shard


class Graph:
    """For each row of the bank, the nearest others, as an exact prefix of their ranking.

    All workers hold the whole graph.

    Attributes:
        lists: the list of each slot, (m, s).
        num_searched_anew: number of lists made from scratch so far.
    """

    def __init__(self, size: int, width: int, batch_size: int, device: torch.device) -> None:
        self.lists = NeighborLists.empty(size, width, device)
        self.num_searched_anew = 0
        self._batch_size = batch_size

    @property
    def width(self) -> int:
        """Entries of a list, 0 where no graph is needed."""
        return self.lists.keys_as.shape[1]

    def drop(self, gone_m: Tensor) -> None:
        """Empty the lists of the marked slots, and remove their rows from all others."""
        self.lists.keys_as.masked_fill_(gone_m[:, None], EMPTY)
        self.lists.floors_a.masked_fill_(gone_m, EMPTY)
        self.lists.drop(self._by_number(gone_m))

    def put(self, slots_r: Tensor, keys_rs: Tensor) -> None:
        """Store the lists of enqueued rows."""
        self.lists.keys_as[slots_r] = keys_rs
        self.lists.raise_floors()

    def short(self, num_needed: int, live_m: Tensor) -> Tensor:
        """Live slots whose lists may lack one of the `num_needed` nearest others, bool (m,).

        Where the bank has fewer others than are needed, all of them are.
        """
        num_needed = min(num_needed, self.width)
        num_known_m = (self.lists.keys_as[:, :num_needed] != EMPTY).sum(1)
        return live_m & (num_known_m < (live_m.sum() - 1).clamp_max(num_needed))

    def search_anew(
        self,
        slots_r: Tensor,
        numbers_m: Tensor,
        leaving_m: Tensor,
        shard: Shard,
        searches: Sequence[Search],
        enqueued: Search,
    ) -> None:
        """Remake lists, and what searches have made of them.

        Args:
            slots_r: those whose lists are remade, live.
            numbers_m: row number in the pool of each slot, -1 where it is free.
            leaving_m: slots that are cleared after `searches` and before `enqueued`.
            shard: this worker's rows.
            searches: those with temporary lists of the bank's rows.
            enqueued: the search that adds rows to the graph.
        """
        self.num_searched_anew += len(slots_r)
        numbers_r, leaving_r = numbers_m[slots_r], leaving_m[slots_r]
        lists_r = NeighborLists.empty(len(slots_r), self.width, numbers_m.device)
        side = Side(shard.take(slots_r), numbers_r, lists_r)
        offer(side, Side(shard.rows_ld, numbers_m[shard.slots].contiguous()))
        if shard.num_shards > 1:
            lists_r.keys_as.copy_(best_lists([lists_r.keys_as])[0])
        for search in searches:
            keys_ms = search.lists_m.keys_as
            keys_ms[slots_r] = best_different(keys_ms[slots_r], lists_r.keys_as)
        lists_r.raise_floors()
        lists_r.drop(self._by_number(leaving_m))
        offer(replace(side, numbers_a=numbers_r.masked_fill(leaving_r, -1)), enqueued.batch)
        self.lists.keys_as[slots_r] = lists_r.keys_as.masked_fill(leaving_r[:, None], EMPTY)
        self.lists.floors_a[slots_r] = lists_r.floors_a.masked_fill(leaving_r, EMPTY)

    def _by_number(self, slots_m: Tensor) -> Tensor:
        """Marks of slots by row number in the pool, which begins with the batch."""
        return torch.cat([slots_m.new_zeros(self._batch_size), slots_m])
