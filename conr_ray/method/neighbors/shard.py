"""The bank's rows that one worker keeps.

Slot i belongs to shard i modulo the number of shards, so that shards are always equally full.

Shapes: n rows of the global batch, b of this worker, m slots of the bank, l of them in this
worker's shard, r slots that are asked for, d width, k neighbours, s entries of a list.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from conr_ray.method.collectives import (
    all_gather_rows,
    all_gather_stack,
    all_reduce_sum,
    rank,
    share,
    world_size,
)
from conr_ray.method.neighbors.rank_keys import numbers_of


class Shard:
    """This worker's rows and their slots.

    Attributes:
        size: slots of the whole bank, m.
        num_shards: 1 if each worker keeps all rows.
        slots: those of this shard.
        rows_ld: the row in each of them.
    """

    def __init__(
        self, size: int, width: int, dtype: torch.dtype, device: torch.device, *, sharded: bool
    ) -> None:
        self.size = size
        self.num_shards, self._first = (world_size(), rank()) if sharded else (1, 0)
        self.slots = slice(self._first, None, self.num_shards)
        num_local = len(range(self._first, size, self.num_shards))
        # The last row takes what belongs to other shards.
        self._room = torch.zeros(num_local + 1, width, dtype=dtype, device=device)
        self.rows_ld = self._room[:num_local]

    def holds(self, slots: Tensor) -> Tensor:
        """Which slots belong to this shard, bool."""
        return slots % self.num_shards == self._first

    def put(self, slots_r: Tensor, rows_rd: Tensor) -> None:
        """Store the rows whose slots belong to this shard."""
        self._room[self._places(slots_r)] = rows_rd.to(self._room.dtype)

    def take(self, slots_r: Tensor) -> Tensor:
        """Rows of any shards, (r, d) float32, on all workers."""
        rows_rd = self._room[self._places(slots_r)].float()
        rows_rd = rows_rd.masked_fill(~self.holds(slots_r)[:, None], 0.0)
        return all_reduce_sum(rows_rd) if self.num_shards > 1 else rows_rd

    def _places(self, slots_r: Tensor) -> Tensor:
        """Row of each slot in this shard; of those in other shards, the spare one."""
        places_r = slots_r // self.num_shards
        return torch.where(self.holds(slots_r), places_r, len(self.rows_ld))

    def entries_of(
        self, keys_ms: Tensor, numbers_n: Tensor, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Slots and keys of the entries in this shard's lists that refer to one of `numbers_n`."""
        num_pool = batch_size + self.size
        new_p = torch.zeros(num_pool + 1, dtype=torch.bool, device=keys_ms.device)
        new_p[numbers_n] = True
        # The last place is for the number -1.
        new_p[-1] = False
        keys_ls = keys_ms[self.slots]
        rows_e, entries_e = new_p[numbers_of(keys_ls)].nonzero(as_tuple=True)
        return rows_e * self.num_shards + self._first, keys_ls[rows_e, entries_e]

    def sums(self, slots_bk: Tensor, batch_size: int) -> Tensor:
        """Sum over k of the rows in `slots_bk`, (b, d) float32; negative slots are skipped.

        Each worker passes its own part of the batch; rows are summed by their holders.
        """
        spread = self.num_shards > 1
        slots_nk = all_gather_rows(slots_bk, batch_size) if spread else slots_bk
        local_nk = (slots_nk >= 0) & self.holds(slots_nk)
        sums_nd = masked_sums(self.rows_ld, slots_nk // self.num_shards, local_nk)
        return all_reduce_sum(sums_nd)[share(batch_size)] if spread else sums_nd

    def joined(self) -> Tensor:
        """The rows of all shards, (m, d)."""
        rows_md = self.rows_ld.new_zeros(self.size, self.rows_ld.shape[1])
        num_most = -(-self.size // self.num_shards)
        padded_ld = rows_md.new_zeros(num_most, rows_md.shape[1])
        padded_ld[: len(self.rows_ld)] = self.rows_ld
        parts = all_gather_stack(padded_ld) if self.num_shards > 1 else padded_ld[None]
        for shard, part_ld in enumerate(parts):
            shard_rows = rows_md[shard :: self.num_shards]
            shard_rows.copy_(part_ld[: len(shard_rows)])
        return rows_md

    def load(self, rows_md: Tensor) -> None:
        """Store this shard's part of all rows."""
        self.rows_ld.copy_(rows_md[self.slots])


def masked_sums(rows_xd: Tensor, indices_nk: Tensor, chosen_nk: Tensor) -> Tensor:
    """Sum over k of the rows at `indices_nk` where they are chosen, (n, d) float32."""
    if not len(rows_xd):
        return torch.zeros(len(indices_nk), rows_xd.shape[1], device=rows_xd.device)
    indices_nk = indices_nk.masked_fill(~chosen_nk, 0)
    if rows_xd.dtype != torch.float32:
        if indices_nk.numel() < len(rows_xd):
            rows_xd = rows_xd[indices_nk.flatten()]
            indices_nk = torch.arange(len(rows_xd), device=rows_xd.device).view_as(indices_nk)
        rows_xd = rows_xd.float()
    return embedding_bag(indices_nk, rows_xd, mode="sum", per_sample_weights=chosen_nk.float())
