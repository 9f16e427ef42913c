"""The neighbour pool: the global batch, then a memory bank of recent target embeddings.

The bank holds the newest embedding of each of the `size` samples seen last. Its rows are split
over the workers and never move. Every worker knows the samples' ids and ages, and the bank's
*graph*: for each row the nearest others, as an exact prefix of their ranking. The graph is
maintained: a step compares only its new keys with the bank's rows. The neighbours are exactly those
of re-ranking the whole pool from scratch.

Row numbers in the pool, which break ties: 0 to n - 1 are the rows of the batch, n + i is slot i of
the bank. A new row takes the lowest free slot, in the order of the batch. Slot i belongs to shard i
modulo the number of shards, so that shards are always equally full.

Shapes: n rows of the global batch, b of this worker, m slots of the bank, l of them in this
worker's shard, r rows that are enqueued, p = n + m rows of the pool, d width, k neighbours, s
entries of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.method.collectives import share
from conr_ray.method.neighbors.contexts import Pool, contextual_lists
from conr_ray.method.neighbors.graph import Graph
from conr_ray.method.neighbors.links import Links
from conr_ray.method.neighbors.neighbor_lists import NeighborLists, first_marked
from conr_ray.method.neighbors.pool import Neighborhood, Neighbors, Search, run_searches
from conr_ray.method.neighbors.rank_keys import dot, numbers_of
from conr_ray.method.neighbors.shard import Shard, masked_sums

__all__ = ["MemoryBank", "Neighborhood", "Neighbors"]


class MemoryBank:
    """Recent target embeddings with the graph of their neighbours.

    Every worker makes the same calls with the same arguments.
    """

    def __init__(
        self,
        size: int,
        width: int,
        batch_size: int,
        neighborhood: Neighborhood,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        sharded: bool = True,
    ) -> None:
        """An empty bank.

        Args:
            size: maximum number of rows, m; with 0, the pool is the batch alone.
            width: of the embeddings, d.
            batch_size: rows of the global batch, n.
            neighborhood: how neighbours are found.
            dtype: of the rows, float32 or bfloat16.
            device: of the rows and of all work on them.
            sharded: split the rows over the workers; otherwise each worker keeps all and does all
                the work, without communication.
        """
        self.size, self.batch_size, self.neighborhood = size, batch_size, neighborhood
        self._device = device or torch.device("cpu")
        self._shard = Shard(size, width, dtype, self._device, sharded=sharded)
        self._graph = Graph(size, neighborhood.graph_width, batch_size, self._device)
        self._ids_m = torch.full((size,), -1, device=self._device)
        # When each row was enqueued: the step, and its place in that step's batch.
        self._steps_m, self._places_m = torch.zeros_like(self._ids_m), torch.zeros_like(self._ids_m)
        self._own_m = torch.zeros(size, device=self._device)
        self._step = 0

    def __len__(self) -> int:
        """Rows in the bank."""
        return int((self._ids_m >= 0).sum())

    @property
    def sample_ids_m(self) -> Tensor:
        """Sample in each slot, -1 where it is free."""
        return self._ids_m

    @property
    def num_searched_anew(self) -> int:
        """Number of rows whose neighbours were searched from scratch so far."""
        return self._graph.num_searched_anew

    @torch.no_grad()
    def find(
        self, directions: Sequence[Tensor], sample_ids_n: Tensor, links: Links | None = None
    ) -> list[Neighbors]:
        """The neighbours of the batch in the pool, for the keys of each view; then enqueue.

        The pool of a direction is its keys and the bank's rows, except older rows of the batch's
        samples. One row per sample is enqueued, the mean of its keys, scaled to unit length. While
        the pool has fewer than k1 or k rows, all of them are used. Components of keys that are not
        finite count as 0.

        Args:
            directions: keys (n, d) of unit length of all workers, for each view.
            sample_ids_n: ids of the batch's samples, from 0, all different.
            links: a person's word on who are neighbours and who are not.
        """
        keys = [keys_nd.float().nan_to_num(0.0, 0.0, 0.0) for keys_nd in directions]
        if not self.size:
            searches = [self._direction(keys_nd) for keys_nd in keys]
            run_searches(searches, self._shard)
            return self._neighbors(searches, sample_ids_n, links)
        older_m = _members(self._ids_m, sample_ids_n)
        self._graph.drop(older_m)
        self._ids_m.masked_fill_(older_m, -1)
        searches = [self._direction(keys_nd) for keys_nd in keys]
        slots_r, leaving_m = self._choose_slots()
        rows_nd = normalize(torch.stack(keys).sum(0)).to(self._shard.rows_ld.dtype).float()
        enqueued = self._search(searches, rows_nd, slots_r, leaving_m)
        found = self._neighbors(searches, sample_ids_n, links)
        self._ids_m.masked_fill_(leaving_m, -1)
        self._enqueue(enqueued, slots_r, sample_ids_n)
        return found

    def _search(
        self, searches: Sequence[Search], rows_nd: Tensor, slots_r: Tensor, leaving_m: Tensor
    ) -> Search:
        """Run searches with the one that adds rows to the graph, which is returned."""
        numbers_m = self._numbers_m()
        # Of all rows that the searches know: some leave before others are enqueued.
        short_m = self._graph.short(self.neighborhood.k1 - 1, numbers_m >= 0)
        enqueued = self._enqueuing(rows_nd, slots_r, leaving_m)
        if not self._graph.width:
            run_searches(searches, self._shard)
            return enqueued
        (num_short,) = run_searches([*searches, enqueued], self._shard, short_m.sum())
        if num_short:
            short_r = first_marked(short_m, num_short)
            arguments = numbers_m, leaving_m, self._shard, searches, enqueued
            self._graph.search_anew(short_r, *arguments)
        return enqueued

    def _numbers_m(self) -> Tensor:
        """Row number in the pool of each slot, -1 where it is free."""
        slots_m = torch.arange(self.size, device=self._device)
        return torch.where(self._ids_m >= 0, self.batch_size + slots_m, -1)

    def _direction(self, keys_nd: Tensor) -> Search:
        """The search for the neighbours of keys, with temporary lists of the bank's rows."""
        num_batch, near = self.batch_size, self.neighborhood
        numbers_n = torch.arange(num_batch, device=self._device)
        if near.kind == "euclidean":
            lists_n = NeighborLists.empty(num_batch, near.k - 1, self._device)
            lists_m = NeighborLists.empty(self.size, 0, self._device)
        else:
            lists_n = NeighborLists.empty(num_batch, near.k1 - 1, self._device)
            lists_m = NeighborLists.empty(self.size, near.k1 - 1, self._device)
            lists_m.keys_as.copy_(self._graph.lists.keys_as[:, : near.k1 - 1])
        return Search(keys_nd, numbers_n, lists_n, self._numbers_m(), lists_m)

    def _enqueuing(self, rows_nd: Tensor, slots_r: Tensor, leaving_m: Tensor) -> Search:
        """The search that adds the enqueued rows to the graph."""
        self._graph.drop(leaving_m)
        numbers_n = torch.full((self.batch_size,), -1, device=self._device)
        numbers_n[-len(slots_r) :] = self.batch_size + slots_r
        numbers_m = self._numbers_m().masked_fill(leaving_m, -1)
        lists_n = NeighborLists.empty(self.batch_size, self._graph.width, self._device)
        return Search(rows_nd, numbers_n, lists_n, numbers_m, self._graph.lists)

    def _numbers(self, searches: Sequence[Search]) -> list[Tensor]:
        """Row numbers (b, k) of the neighbours of this worker's rows, for each search."""
        near, local = self.neighborhood, share(self.batch_size)
        rows_b = searches[0].numbers_n[local]
        if near.kind == "euclidean":
            lists = [search.lists_n.keys_as[local] for search in searches]
        else:
            pools = [self._pool(search) for search in searches]
            found = contextual_lists(pools, rows_b, k2=near.k2, width=near.k - 1)
            lists = [keys_bk for keys_bk, _ in found]
        return [torch.cat([rows_b[:, None], numbers_of(keys_bk)], 1) for keys_bk in lists]

    def _pool(self, search: Search) -> Pool:
        """The batch and the bank, with the lists that a search has made."""
        return Pool(
            torch.cat([search.lists_n.keys_as, search.lists_m.keys_as]),
            torch.cat([dot(search.keys_nd, search.keys_nd), self._own_m]),
            torch.cat([search.numbers_n >= 0, search.numbers_m >= 0]),
        )

    def _neighbors(
        self, searches: Sequence[Search], ids_n: Tensor, links: Links | None
    ) -> list[Neighbors]:
        """The neighbours found by each search, with their ids, ages and mean keys."""
        found = self._numbers(searches)
        if links is not None:
            ids_b, ids_p = ids_n[share(len(ids_n))], torch.cat([ids_n, self._ids_m])
            found = [links.heeded(numbers_bk, ids_b, ids_p) for numbers_bk in found]
        return [
            self._described(search, numbers_bk, ids_n)
            for search, numbers_bk in zip(searches, found, strict=True)
        ]

    def _described(self, search: Search, numbers_bk: Tensor, ids_n: Tensor) -> Neighbors:
        """The neighbours of one search from their row numbers."""
        slots_bk = numbers_bk - self.batch_size
        from_bank_bk, known_bk = slots_bk >= 0, numbers_bk >= 0
        ids_bk = ids_n[numbers_bk.clamp(0, self.batch_size - 1)].masked_fill(~known_bk, -1)
        ages_bk = torch.zeros_like(ids_bk)
        if self.size:
            slots_bk = slots_bk.clamp_min(0)
            ids_bk = torch.where(from_bank_bk, self._ids_m[slots_bk], ids_bk)
            ages_bk = torch.where(from_bank_bk, self._step - self._steps_m[slots_bk], 0)
        sums_bd = self._sums(search.keys_nd, numbers_bk)
        mean_keys_bd = sums_bd / known_bk.sum(1, keepdim=True)
        return Neighbors(numbers_bk, ids_bk, ages_bk, mean_keys_bd)

    def _sums(self, keys_nd: Tensor, numbers_bk: Tensor) -> Tensor:
        """Sum of the keys of each row's neighbours; bank rows are summed by their holders."""
        in_batch_bk = (numbers_bk >= 0) & (numbers_bk < self.batch_size)
        sums_bd = masked_sums(keys_nd, numbers_bk, in_batch_bk)
        if not self.size:
            return sums_bd
        return sums_bd + self._shard.sums(numbers_bk - self.batch_size, self.batch_size)

    def _choose_slots(self) -> tuple[Tensor, Tensor]:
        """The slots (r,) of the last rows of the batch; and which slots are cleared for them."""
        num_kept = min(self.batch_size, self.size)
        free_m = self._ids_m < 0
        order_m = self._steps_m * self.batch_size + self._places_m
        order_m = order_m.masked_fill(free_m, torch.iinfo(torch.int64).max)
        oldest_r = order_m.topk(num_kept, largest=False).indices
        # How many must leave is known to the device alone.
        leaves_r = torch.arange(num_kept, device=self._device) < num_kept - free_m.sum()
        leaving_m = torch.zeros_like(free_m).scatter(0, oldest_r, leaves_r)
        return first_marked(free_m | leaving_m, num_kept), leaving_m

    def _enqueue(self, search: Search, slots_r: Tensor, ids_n: Tensor) -> None:
        """Put the last rows of a search into their slots, and their lists into the graph."""
        first = self.batch_size - len(slots_r)
        rows_rd = search.keys_nd[first:]
        self._ids_m[slots_r] = ids_n[first:]
        self._steps_m.index_fill_(0, slots_r, self._step)
        self._places_m[slots_r] = torch.arange(first, self.batch_size, device=self._device)
        self._own_m[slots_r] = dot(rows_rd, rows_rd)
        self._shard.put(slots_r, rows_rd)
        self._graph.put(slots_r, search.lists_n.keys_as[first:])
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """The whole bank, with the rows of all workers, for a checkpoint."""
        return {
            "rows": self._shard.joined(),
            "sample_ids": self._ids_m,
            "steps": self._steps_m,
            "places": self._places_m,
            "own_products": self._own_m,
            "graph": self._graph.lists.keys_as,
            "floors": self._graph.lists.floors_a,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the bank of `state`, saved on any number of workers.

        An empty state fits any bank, so that runs with different banks can start from the same
        checkpoint. With another k1, the graph is searched from scratch.
        """
        if not (state["sample_ids"] >= 0).any():
            return
        self._shard.load(state["rows"])
        self._ids_m.copy_(state["sample_ids"])
        self._steps_m.copy_(state["steps"])
        self._places_m.copy_(state["places"])
        self._own_m.copy_(state["own_products"])
        if state["graph"].shape == self._graph.lists.keys_as.shape:
            self._graph.lists.keys_as.copy_(state["graph"])
            self._graph.lists.floors_a.copy_(state["floors"])
        self._step = state["step"]


def _members(ids_m: Tensor, ids_n: Tensor) -> Tensor:
    """Which of `ids_m` are among `ids_n`, bool (m,); `torch.isin` waits for the device."""
    sorted_n = ids_n.sort().values
    places_m = torch.searchsorted(sorted_n, ids_m).clamp_max(len(ids_n) - 1)
    return sorted_n[places_m] == ids_m
