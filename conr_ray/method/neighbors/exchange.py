"""Exchange of neighbour-list entries between the workers of a sharded bank.

Shapes: a rows, s entries of a list, e entries of many lists.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from conr_ray.method.collectives import all_gather_stack, all_gather_varying
from conr_ray.method.neighbors.shard import Shard


def best_lists(lists: Sequence[Tensor]) -> list[Tensor]:
    """The best keys of all workers' lists of the same rows; each of `lists` is (a, s)."""
    widths = [keys_as.shape[1] for keys_as in lists]
    by_worker = torch.split(all_gather_stack(torch.cat(list(lists), 1)), widths, dim=2)
    return [
        parts.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values[:, :width]
        for parts, width in zip(by_worker, widths, strict=True)
    ]


def entries_of_others(
    found: Sequence[tuple[Tensor, Tensor]], shard: Shard
) -> list[tuple[Tensor, Tensor]]:
    """For each search, the entries found by the other workers: slots (e,) and keys (e,).

    Args:
        found: what this worker has found, in the same form.
        shard: of this worker.
    """
    device = shard.rows_ld.device
    places = torch.arange(len(found), device=device).repeat_interleave(
        torch.tensor([len(slots_e) for slots_e, _ in found], device=device)
    )
    slots, keys = (torch.cat(parts) for parts in zip(*found, strict=True))
    places, slots, keys = all_gather_varying(torch.stack([places, slots, keys], 1)).unbind(1)
    foreign = ~shard.holds(slots)
    chosen = [foreign & (places == place) for place in range(len(found))]
    return [(slots[chosen_e], keys[chosen_e]) for chosen_e in chosen]
