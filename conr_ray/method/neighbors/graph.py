"""The maintained neighbour graph of the bank's rows.

Shapes: m slots of the bank, r slots that are searched for, s entries of a list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conr_ray.method.neighbors.exchange import best_lists
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, Side, compare
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
        self.lists.keys_as[gone_m] = EMPTY
        self.lists.floors_a[gone_m] = EMPTY
        batch_n = torch.zeros(self._batch_size, dtype=torch.bool, device=gone_m.device)
        self.lists.drop(torch.cat([batch_n, gone_m]))

    def put(self, slots_r: Tensor, keys_rs: Tensor) -> None:
        """Store the lists of enqueued rows."""
        self.lists.keys_as[slots_r] = keys_rs
        self.lists.raise_floors()

    def search_short(self, num_needed: int, numbers_m: Tensor, shard: Shard) -> None:
        """Remake the lists that may no longer hold all needed neighbours.

        Args:
            num_needed: entries that each list must hold.
            numbers_m: row number in the pool of each slot, -1 where it is free.
            shard: this worker's rows.
        """
        if not self.width or num_needed < 1:
            return
        short_m = (numbers_m >= 0) & (self.lists.keys_as[:, num_needed - 1] == EMPTY)
        slots_r = short_m.nonzero().flatten()
        if not len(slots_r):
            return
        self.num_searched_anew += len(slots_r)
        lists_r = NeighborLists.empty(len(slots_r), self.width, numbers_m.device)
        compare(
            Side(shard.take(slots_r), numbers_m[slots_r], lists_r),
            Side(shard.rows_ld, numbers_m[shard.slots].contiguous()),
        )
        keys_rs = best_lists([lists_r.keys_as])[0] if shard.num_shards > 1 else lists_r.keys_as
        self.lists.keys_as[slots_r] = keys_rs
        self.lists.floors_a[slots_r] = keys_rs[:, -1]
