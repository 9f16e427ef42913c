"""The neighbour pool: the global batch and, behind it, a memory bank of recent target embeddings.

The bank holds the newest copy of the `size` samples that were seen last. Its rows are dealt out to
the workers; embeddings stay where they are. What every worker knows are the samples' ids, their
age, and the bank's *graph*: for each row the best of the others, as an exact prefix of their order.
The graph is maintained: a step compares its new keys with the bank's rows and leaves the rest as it
is. The neighbours are those of a re-ranking of the whole pool from scratch.

Numbers of the pool's rows, by which ties are broken: 0 to n - 1 are the rows of the batch, n + i
is the bank's slot i. A new row takes the lowest free slot, in the order of the batch. Slot i
belongs to shard i modulo the number of shards, so that shards are equally full at any time.

Shapes: n rows of the global batch, b of this worker, m slots of the bank, l of them in this
worker's shard, p = n + m rows of the pool, d width, k neighbours, s entries of a list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from conr_ray.method.collectives import (
    all_gather_rows,
    all_gather_stack,
    all_gather_varying,
    all_reduce_sum,
    rank,
    share,
    world_size,
)
from conr_ray.method.neighbors.contexts import contextual_lists
from conr_ray.method.neighbors.neighbor_lists import (
    NeighborLists,
    Side,
    best_of,
    compare,
    compare_all,
    compare_within,
)
from conr_ray.method.neighbors.rank_keys import EMPTY, dot, numbers_of


@dataclass(frozen=True)
class Neighborhood:
    """How the neighbours of a row are found (paper section 3.2).

    Attributes:
        kind: 'contextual', or 'euclidean', which uses k alone.
        k1: neighbours that make a row's context.
        k2: neighbours over which contexts are averaged, at most k1.
        k: neighbours that are found, the row itself included.
    """

    kind: str
    k1: int
    k2: int
    k: int

    @property
    def graph_width(self) -> int:
        """Entries of a bank row's list: its context, and as many again for those that leave."""
        return 2 * self.k1 if self.kind == "contextual" and self.k1 > 1 else 0


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of this worker's rows.

    Attributes:
        numbers_bk: row numbers in the pool, best first, the row itself before all others; -1 where
            the pool has fewer than k rows.
        sample_ids_bk: ids of their samples, -1 where there is none.
        ages_bk: steps since they were enqueued, 0 for rows of the batch.
        mean_keys_bd: mean of their keys.
    """

    numbers_bk: Tensor
    sample_ids_bk: Tensor
    ages_bk: Tensor
    mean_keys_bd: Tensor


@dataclass(frozen=True)
class _Search:
    """Keys of a batch that are compared with the bank and with one another.

    `lists_n` are the keys' own lists, `lists_m` those of the bank's rows; what has the number -1
    takes no part.
    """

    keys_nd: Tensor
    numbers_n: Tensor
    lists_n: NeighborLists
    numbers_m: Tensor
    lists_m: NeighborLists


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
            size: rows it holds at most, m; 0 leaves the batch alone as the pool.
            width: of the embeddings, d.
            batch_size: rows of the global batch, n.
            neighborhood: how neighbours are found.
            dtype: of the rows, float32 or bfloat16.
            device: of the rows and of all work on them.
            sharded: deal the rows out; else each worker keeps all and does all the work, which
                exchanges nothing.
        """
        self.size, self.batch_size, self.neighborhood = size, batch_size, neighborhood
        self._device = device or torch.device("cpu")
        self._num_shards, self._first = (world_size(), rank()) if sharded else (1, 0)
        self._shard = slice(self._first, None, self._num_shards)
        num_local = len(range(self._first, size, self._num_shards))
        self._rows_ld = torch.zeros(num_local, width, dtype=dtype, device=self._device)
        self._ids_m = torch.full((size,), -1, device=self._device)
        # When each row was enqueued: the step, and its place in that step's batch.
        self._steps_m, self._places_m = torch.zeros_like(self._ids_m), torch.zeros_like(self._ids_m)
        self._own_m = torch.zeros(size, device=self._device)
        self._graph = NeighborLists.empty(size, neighborhood.graph_width, self._device)
        self._step = 0
        self.num_searched_anew = 0

    def __len__(self) -> int:
        """Rows in the bank."""
        return int((self._ids_m >= 0).sum())

    @property
    def sample_ids_m(self) -> Tensor:
        """Sample in each slot, -1 where it is free."""
        return self._ids_m

    @torch.no_grad()
    def find(self, directions: Sequence[Tensor], sample_ids_n: Tensor) -> list[Neighbors]:
        """The neighbours of the batch in the pool, for the keys of each view; then enqueue.

        The pool of a direction are its keys and the bank's rows but those of the batch's samples,
        which are older copies. Enqueued is one row for each sample, the mean of its keys to unit
        length. While the pool has fewer than k1 or k rows, all of them are taken. Components of
        keys that are not finite count as 0.

        Args:
            directions: keys (n, d) of unit length of all workers, for each view.
            sample_ids_n: ids of the batch's samples, from 0, all different.
        """
        keys = [keys_nd.float().nan_to_num(0.0, 0.0, 0.0) for keys_nd in directions]
        if not self.size:
            searches = [self._direction(keys_nd) for keys_nd in keys]
            self._run(searches)
            return [self._neighbors(search, sample_ids_n) for search in searches]
        self._remove((self._ids_m >= 0) & torch.isin(self._ids_m, sample_ids_n))
        self._search_short_lists()
        searches = [self._direction(keys_nd) for keys_nd in keys]
        slots_n, leaving_m = self._choose_slots()
        rows_nd = normalize(torch.stack(keys).sum(0)).to(self._rows_ld.dtype).float()
        enqueued = self._enqueuing(rows_nd, slots_n, leaving_m)
        self._run([*searches, enqueued] if self._graph.keys_as.shape[1] else searches)
        found = [self._neighbors(search, sample_ids_n) for search in searches]
        self._ids_m[leaving_m] = -1
        self._enqueue(enqueued, slots_n, sample_ids_n)
        return found

    def _numbers_m(self) -> Tensor:
        """Row number in the pool of each slot, -1 where it is free."""
        slots_m = torch.arange(self.size, device=self._device)
        return torch.where(self._ids_m >= 0, self.batch_size + slots_m, -1)

    def _direction(self, keys_nd: Tensor) -> _Search:
        """The search for the neighbours of keys, and of the bank's rows among them, for now."""
        num_batch, near = self.batch_size, self.neighborhood
        numbers_n = torch.arange(num_batch, device=self._device)
        if near.kind == "euclidean":
            lists_n = NeighborLists.empty(num_batch, near.k - 1, self._device)
            lists_m = NeighborLists.empty(self.size, 0, self._device)
        else:
            lists_n = NeighborLists.empty(num_batch, near.k1 - 1, self._device)
            lists_m = NeighborLists.empty(self.size, near.k1 - 1, self._device)
            lists_m.keys_as.copy_(self._graph.keys_as[:, : near.k1 - 1])
        return _Search(keys_nd, numbers_n, lists_n, self._numbers_m(), lists_m)

    def _enqueuing(self, rows_nd: Tensor, slots_n: Tensor, leaving_m: Tensor) -> _Search:
        """The search that puts the rows that are enqueued into the graph."""
        self._drop_from_graph(leaving_m)
        numbers_n = torch.where(slots_n >= 0, self.batch_size + slots_n, -1)
        numbers_m = self._numbers_m().masked_fill(leaving_m, -1)
        width = self._graph.keys_as.shape[1]
        lists_n = NeighborLists.empty(self.batch_size, width, self._device)
        return _Search(rows_nd, numbers_n, lists_n, numbers_m, self._graph)

    def _run(self, searches: Sequence[_Search]) -> None:
        """Compare the keys of each search with the bank's rows and with one another."""
        for search in searches:
            if search.lists_n.keys_as.shape[1]:
                compare_within(Side(search.keys_nd, search.numbers_n, search.lists_n))
        if not self.size:
            return
        in_batch = [search.lists_n.keys_as.clone() for search in searches]
        for search in searches:
            # Of the bank only what is better than the batch is of interest.
            search.lists_n.raise_floors()
            search.lists_n.keys_as.fill_(EMPTY)
        self._compare_with_shard(searches)
        if self._num_shards > 1:
            self._exchange(searches)
        for search, keys_ns in zip(searches, in_batch, strict=True):
            search.lists_n.keys_as.copy_(best_of(search.lists_n.keys_as, keys_ns))

    def _compare_with_shard(self, searches: Sequence[_Search]) -> None:
        lefts = [Side(search.keys_nd, search.numbers_n, search.lists_n) for search in searches]
        rights = [self._shard_of(search) for search in searches]
        compare_all(lefts, rights)
        if self._num_shards > 1:
            for search, right in zip(searches, rights, strict=True):
                assert right.lists is not None
                search.lists_m.keys_as[self._shard] = right.lists.keys_as

    def _shard_of(self, search: _Search) -> Side:
        """This worker's rows, with their lists: without a copy where it holds all."""
        lists = NeighborLists(
            search.lists_m.keys_as[self._shard].contiguous(),
            search.lists_m.floors_a[self._shard].contiguous(),
        )
        return Side(self._rows_ld, search.numbers_m[self._shard].contiguous(), lists)

    def _exchange(self, searches: Sequence[_Search]) -> None:
        """Give all workers what each one has found in its shard.

        For the keys, that are lists of which the best entries count; for the bank's rows, the
        entries that are new.
        """
        widths = [search.lists_n.keys_as.shape[1] for search in searches]
        joined = torch.cat([search.lists_n.keys_as for search in searches], 1)
        if not joined.shape[1]:
            return
        by_worker = torch.split(all_gather_stack(joined), widths, dim=2)
        for search, lists in zip(searches, by_worker, strict=True):
            ranked = lists.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values
            search.lists_n.keys_as.copy_(ranked[:, : lists.shape[2]])
        found = [self._new_entries(search) for search in searches]
        places = torch.arange(len(found), device=self._device).repeat_interleave(
            torch.tensor([len(slots_e) for slots_e, _ in found], device=self._device)
        )
        slots, keys = (torch.cat(parts) for parts in zip(*found, strict=True))
        places, slots, keys = all_gather_varying(torch.stack([places, slots, keys], 1)).unbind(1)
        foreign = slots % self._num_shards != self._first
        for place, search in enumerate(searches):
            chosen = foreign & (places == place)
            search.lists_m.insert(slots[chosen], keys[chosen])

    def _new_entries(self, search: _Search) -> tuple[Tensor, Tensor]:
        """Slots and keys of the entries that a search has put into the lists of this shard."""
        new_p = torch.zeros(self.batch_size + self.size + 1, dtype=torch.bool, device=self._device)
        new_p[search.numbers_n] = True
        # Here stands what has the number -1.
        new_p[-1] = False
        keys_ls = search.lists_m.keys_as[self._shard]
        rows_e, entries_e = new_p[numbers_of(keys_ls)].nonzero(as_tuple=True)
        return rows_e * self._num_shards + self._first, keys_ls[rows_e, entries_e]

    def _numbers_bk(self, search: _Search) -> Tensor:
        """Row numbers of the neighbours of this worker's rows, (b, k)."""
        near, local = self.neighborhood, share(self.batch_size)
        rows_b = search.numbers_n[local]
        if near.kind == "euclidean":
            keys_bk = search.lists_n.keys_as[local]
        else:
            own_n, live_n = dot(search.keys_nd, search.keys_nd), search.numbers_n >= 0
            keys_bk, _ = contextual_lists(
                torch.cat([search.lists_n.keys_as, search.lists_m.keys_as]),
                torch.cat([own_n, self._own_m]),
                torch.cat([live_n, search.numbers_m >= 0]),
                rows_b,
                k2=near.k2,
                width=near.k - 1,
            )
        return torch.cat([rows_b[:, None], numbers_of(keys_bk)], 1)

    def _neighbors(self, search: _Search, ids_n: Tensor) -> Neighbors:
        """The neighbours that a search has found, with what is known of them now."""
        numbers_bk = self._numbers_bk(search)
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
        """Sum of the keys of each row's neighbours; rows of the bank are summed where they are."""
        in_batch_bk = (numbers_bk >= 0) & (numbers_bk < self.batch_size)
        sums_bd = _masked_sums(keys_nd, numbers_bk, in_batch_bk)
        if not self.size:
            return sums_bd
        spread = self._num_shards > 1
        numbers_nk = all_gather_rows(numbers_bk, self.batch_size) if spread else numbers_bk
        slots_nk = numbers_nk - self.batch_size
        local_nk = (slots_nk >= 0) & (slots_nk % self._num_shards == self._first)
        sums_nd = _masked_sums(self._rows_ld, slots_nk // self._num_shards, local_nk)
        if spread:
            sums_nd = all_reduce_sum(sums_nd)[share(self.batch_size)]
        return sums_bd + sums_nd

    def _remove(self, gone_m: Tensor) -> None:
        self._drop_from_graph(gone_m)
        self._ids_m[gone_m] = -1

    def _drop_from_graph(self, gone_m: Tensor) -> None:
        self._graph.keys_as[gone_m] = EMPTY
        self._graph.floors_a[gone_m] = EMPTY
        batch_n = torch.zeros(self.batch_size, dtype=torch.bool, device=self._device)
        self._graph.drop(torch.cat([batch_n, gone_m]))

    def _search_short_lists(self) -> None:
        """Search for the neighbours of rows whose list may no longer hold all that are needed."""
        needed = min(self.neighborhood.k1 - 1, len(self) - 1)
        if not self._graph.keys_as.shape[1] or needed < 1:
            return
        short_m = (self._ids_m >= 0) & (self._graph.keys_as[:, needed - 1] == EMPTY)
        slots_r = short_m.nonzero().flatten()
        if not len(slots_r):
            return
        self.num_searched_anew += len(slots_r)
        rows_rd = self._rows_ld.new_zeros((len(slots_r), self._rows_ld.shape[1])).float()
        mine_r = slots_r % self._num_shards == self._first
        rows_rd[mine_r] = self._rows_ld[slots_r[mine_r] // self._num_shards].float()
        if self._num_shards > 1:
            rows_rd = all_reduce_sum(rows_rd)
        lists_r = NeighborLists.empty(len(slots_r), self._graph.keys_as.shape[1], self._device)
        numbers_m = self._numbers_m()
        compare(
            Side(rows_rd, numbers_m[slots_r], lists_r),
            Side(self._rows_ld, numbers_m[self._shard].contiguous()),
        )
        if self._num_shards > 1:
            ranked = all_gather_stack(lists_r.keys_as).transpose(0, 1).flatten(1)
            ranked = ranked.sort(dim=1, descending=True).values
            lists_r.keys_as.copy_(ranked[:, : lists_r.keys_as.shape[1]])
        self._graph.keys_as[slots_r] = lists_r.keys_as
        self._graph.floors_a[slots_r] = lists_r.keys_as[:, -1]

    def _choose_slots(self) -> tuple[Tensor, Tensor]:
        """Slot of each row of the batch, -1 where it is not kept; and which slots are cleared."""
        num_kept = min(self.batch_size, self.size)
        leaving_m = torch.zeros(self.size, dtype=torch.bool, device=self._device)
        num_leaving = num_kept - (self.size - len(self))
        if num_leaving > 0:
            order_m = self._steps_m * self.batch_size + self._places_m
            order_m = order_m.masked_fill(self._ids_m < 0, torch.iinfo(torch.int64).max)
            leaving_m[order_m.topk(num_leaving, largest=False).indices] = True
        open_slots = ((self._ids_m < 0) | leaving_m).nonzero().flatten()
        slots_n = torch.full((self.batch_size,), -1, device=self._device)
        slots_n[self.batch_size - num_kept :] = open_slots[:num_kept]
        return slots_n, leaving_m

    def _enqueue(self, search: _Search, slots_n: Tensor, ids_n: Tensor) -> None:
        """Put the rows of a search into their slots, and their lists into the graph."""
        places_r = (slots_n >= 0).nonzero().flatten()
        slots_r, rows_rd = slots_n[places_r], search.keys_nd[places_r]
        self._ids_m[slots_r] = ids_n[places_r]
        self._steps_m[slots_r] = self._step
        self._places_m[slots_r] = places_r
        self._own_m[slots_r] = dot(rows_rd, rows_rd)
        mine_r = slots_r % self._num_shards == self._first
        kept_rd = rows_rd[mine_r].to(self._rows_ld.dtype)
        self._rows_ld[slots_r[mine_r] // self._num_shards] = kept_rd
        self._graph.keys_as[slots_r] = search.lists_n.keys_as[places_r]
        self._graph.raise_floors()
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything in the bank, rows of all workers joined: for a checkpoint."""
        rows_md = self._rows_ld.new_zeros(self.size, self._rows_ld.shape[1])
        num_most = -(-self.size // self._num_shards)
        padded_ld = rows_md.new_zeros(num_most, rows_md.shape[1])
        padded_ld[: len(self._rows_ld)] = self._rows_ld
        parts = all_gather_stack(padded_ld) if self._num_shards > 1 else padded_ld[None]
        for shard, part_ld in enumerate(parts):
            shard_rows = rows_md[shard :: self._num_shards]
            shard_rows.copy_(part_ld[: len(shard_rows)])
        return {
            "rows": rows_md,
            "sample_ids": self._ids_m,
            "steps": self._steps_m,
            "places": self._places_m,
            "own_products": self._own_m,
            "graph": self._graph.keys_as,
            "floors": self._graph.floors_a,
            "step": self._step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the pool of `state`, on whatever number of workers it was made.

        One that was still empty may be of any bank, so that runs which differ in theirs can go on
        from the same checkpoint. One with another k1 leaves the graph to be searched anew.
        """
        if not (state["sample_ids"] >= 0).any():
            return
        self._rows_ld.copy_(state["rows"][self._shard])
        self._ids_m.copy_(state["sample_ids"])
        self._steps_m.copy_(state["steps"])
        self._places_m.copy_(state["places"])
        self._own_m.copy_(state["own_products"])
        if state["graph"].shape == self._graph.keys_as.shape:
            self._graph.keys_as.copy_(state["graph"])
            self._graph.floors_a.copy_(state["floors"])
        self._step = state["step"]


def _masked_sums(rows_xd: Tensor, indices_nk: Tensor, chosen_nk: Tensor) -> Tensor:
    """Sum over k of the rows at `indices_nk` where they are chosen, (n, d) float32."""
    if not len(rows_xd):
        return torch.zeros(len(indices_nk), rows_xd.shape[1], device=rows_xd.device)
    indices_nk = indices_nk.masked_fill(~chosen_nk, 0)
    if rows_xd.dtype != torch.float32:
        used, places = torch.unique(indices_nk, return_inverse=True)
        rows_xd, indices_nk = rows_xd[used].float(), places
    return embedding_bag(indices_nk, rows_xd, mode="sum", per_sample_weights=chosen_nk.float())
