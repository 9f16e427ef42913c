"""What a person has said of samples, as must-links and cannot-links of neighbours.

Shapes: n samples, b of some lists, p rows of a pool, k neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Links:
    """A person's word on samples.

    Attributes:
        groups_n: int64, which samples belong together: equal numbers, from 0; -1 without a word.
        fixed_n: bool, whether the word is of the sample itself, not of all of its cluster.
        junk_n: bool, samples that count for nothing; none of them has a group.
    """

    groups_n: Tensor
    fixed_n: Tensor
    junk_n: Tensor

    @cached_property
    def num_groups(self) -> int:
        """Groups of samples that belong together."""
        return int(self.groups_n.max()) + 1

    @cached_property
    def num_junk(self) -> int:
        """Samples that count for nothing."""
        return int(self.junk_n.sum())

    def to(self, device: torch.device) -> Links:
        """The same on a device."""
        return Links(*(one.to(device) for one in (self.groups_n, self.fixed_n, self.junk_n)))

    def excluded(self, ids_b: Tensor, ids_bk: Tensor) -> Tensor:
        """Which pairs must not be neighbours, bool (b, k): of ids, -1 for none.

        Those with junk, and those of two groups, if the person's word is of one of the two
        themselves: what is said of all of a cluster alone does not part its members from others'.
        """
        known_bk = ids_bk >= 0
        others_bk = ids_bk.clamp_min(0)
        groups_bk, groups_b1 = self.groups_n[others_bk], self.groups_n[ids_b][:, None]
        apart_bk = (groups_bk >= 0) & (groups_b1 >= 0) & (groups_bk != groups_b1)
        apart_bk &= self.fixed_n[others_bk] | self.fixed_n[ids_b][:, None]
        return known_bk & (apart_bk | self.junk_n[others_bk])

    def heeded(self, numbers_bk: Tensor, ids_b: Tensor, ids_p: Tensor) -> Tensor:
        """Lists of neighbours without those that must not be any, and with those that must.

        The latter half of the list of a sample of a group is given to others of its group, spread
        evenly over those in the pool; with fewer, to each of them once. Entries that stay empty
        are -1.

        Args:
            numbers_bk: rows of the pool, the sample itself first, -1 for none.
            ids_b: the samples whose lists they are.
            ids_p: the sample of each row of the pool, -1 for none.
        """
        width = numbers_bk.shape[1]
        found_bk = torch.where(numbers_bk >= 0, ids_p[numbers_bk.clamp_min(0)], -1)
        kept_bk = numbers_bk.masked_fill(self.excluded(ids_b, found_bk), -1)
        # The sample itself stays its own neighbour, junk or not.
        kept_bk[:, 0] = numbers_bk[:, 0]
        half = width // 2
        groups_p = torch.where(ids_p >= 0, self.groups_n[ids_p.clamp_min(0)], -1)
        members = torch.argsort(groups_p, stable=True)
        starts_g = torch.searchsorted(
            groups_p[members], torch.arange(self.num_groups + 2, device=ids_p.device)
        )
        groups_b = self.groups_n[ids_b]
        first_b = starts_g[groups_b.clamp_min(0)]
        count_b = starts_g[groups_b.clamp_min(0) + 1] - first_b
        ranks_p = torch.empty_like(members).scatter_(
            0, members, torch.arange(len(members), device=members.device)
        )
        # From the sample itself on, in steps that leave none out and come to none twice.
        others_b1 = (count_b - 1)[:, None]
        turns_h = torch.arange(half, device=ids_p.device)
        steps_b1 = (others_b1 // max(1, half)).clamp_min(1)
        own_b1 = (ranks_p[numbers_bk[:, 0]] - first_b)[:, None]
        places_bh = (own_b1 + 1 + turns_h * steps_b1) % count_b.clamp_min(1)[:, None]
        chosen_bh = members[(first_b[:, None] + places_bh).clamp_max(len(members) - 1)]
        given_bh = chosen_bh.masked_fill(turns_h >= others_b1, -1)
        # A sample alone in its group keeps what was found.
        linked_b1 = (groups_b[:, None] >= 0) & (others_b1 > 0)
        late_bh = torch.where(linked_b1, given_bh, kept_bk[:, width - half :])
        early_bk = kept_bk[:, : width - half]
        twice_bh = (late_bh[:, :, None] == early_bk[:, None, :]).any(2)
        return torch.cat([early_bk, late_bh.masked_fill(twice_bh, -1)], 1)
