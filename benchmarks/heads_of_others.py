"""The clustering heads of TEMI and SCAN, as peers: written from their papers and settings.

TEMI  Adaloglou et al. 2023, weighted pointwise mutual information: beta 0.6, both temperatures 0.1,
      a teacher with momentum 0.996, AdamW, warm-up over a fifth of the steps, 50 Euclidean
      neighbours. Its head is a linear layer, or, `hidden`, that of its authors, with 512 hidden
      and 256 normalised features, which takes thirty times as long.
SCAN  Van Gansbeke et al. 2020, its first step: a linear layer, weight of the entropy 5, Adam, with
      20 (as on CIFAR) and 50 Euclidean neighbours. Without augmented views, as no peer has any.

Shapes: n rows, b of a batch, d width, h heads, c clusters, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize


@dataclass(frozen=True)
class Budget:
    """What a peer may use, and what it is to find."""

    steps: int
    batch: int
    heads: int
    clusters: int


def temi_losses(
    students: Sequence[Tensor], teachers: Sequence[Tensor], means_hc: Tensor, beta: float = 0.6
) -> Tensor:
    """Minus the weighted pointwise mutual information, for each head (h,).

    Args:
        students: probabilities (h, b, c) of the samples and of their neighbours, with gradient.
        teachers: likewise, without.
        means_hc: the teachers' mean probabilities.
        beta: its exponent; below 1 it keeps clusters from being of unequal size.
    """
    # A pair counts as much as all heads together believe that it shares a cluster.
    weights_b = (teachers[0] * teachers[1]).sum(2).mean(0)
    both = [
        ((students[side] * teachers[1 - side]) ** beta / means_hc[:, None]).sum(2).log()
        for side in (0, 1)
    ]
    return -(weights_b * (both[0] + both[1]) / 2).mean(1)


def scan_losses(samples_hbc: Tensor, neighbors_hbc: Tensor, weight: float = 5.0) -> Tensor:
    """Minus log of the chance to share a cluster, and minus the entropy of sizes, (h,)."""
    means_hc = samples_hbc.mean(1)
    entropies_h = -(means_hc * means_hc.clamp_min(1e-12).log()).sum(1)
    shared_hb = (samples_hbc * neighbors_hbc).sum(2).clamp_min(1e-12)
    return -shared_hb.log().mean(1) - weight * entropies_h


class TemiHeads(nn.Module):
    """Cosines with prototypes times learned factors, (b, d) to (h, b, c)."""

    def __init__(self, budget: Budget, width: int, *, hidden: bool) -> None:
        super().__init__()
        self.layers = nn.ParameterList()
        for wide in (512, 256) if hidden else ():
            weights_hde = torch.empty(budget.heads, width, wide)
            nn.init.trunc_normal_(weights_hde, std=0.02)
            self.layers.append(nn.Parameter(weights_hde))
            self.layers.append(nn.Parameter(torch.zeros(budget.heads, 1, wide)))
            width = wide
        self.prototypes_hcd = nn.Parameter(torch.randn(budget.heads, budget.clusters, width))
        self.factors_hc = nn.Parameter(torch.ones(budget.heads, budget.clusters))

    def forward(self, rows_bd: Tensor) -> Tensor:
        """(h, b, c)."""
        values_hbd = rows_bd.expand(len(self.prototypes_hcd), *rows_bd.shape)
        for index in range(0, len(self.layers), 2):
            values_hbd = torch.baddbmm(
                self.layers[index + 1],
                gelu(values_hbd) if index else values_hbd,
                self.layers[index],
            )
        directions_hdc = normalize(self.prototypes_hcd, dim=2).transpose(1, 2)
        cosines_hbc = torch.bmm(normalize(values_hbd, dim=2), directions_hdc)
        return cosines_hbc * self.factors_hc[:, None]


class ScanHeads(nn.Module):
    """Linear layers, (b, d) of unit length to (h, b, c)."""

    def __init__(self, budget: Budget, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, budget.heads * budget.clusters)
        self.num_heads, self.scale = budget.heads, math.sqrt(width)

    def forward(self, rows_bd: Tensor) -> Tensor:
        """(h, b, c)."""
        values: Tensor = self.layer(self.scale * rows_bd)
        return values.view(len(rows_bd), self.num_heads, -1).transpose(0, 1)


Learned = tuple[float, Tensor]
"""The loss of the best head over the last tenth of the steps, and its clusters (n,)."""

Learn = Callable[[Tensor, Tensor, Budget, float], Learned]
"""From vectors, neighbours, budget and learning rate."""


def learn_temi(
    unit_nd: Tensor, near_nk: Tensor, budget: Budget, rate: float, *, hidden: bool
) -> Learned:
    """Learn TEMI's heads; the teacher's clusters."""
    student = TemiHeads(budget, unit_nd.shape[1], hidden=hidden)
    teacher = deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=1e-4)
    means_hc = torch.full((budget.heads, budget.clusters), 1 / budget.clusters)
    losses_sh = []
    for step, pair in enumerate(_pairs(near_nk, budget)):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / (budget.steps / 5))
        students = [(student(unit_nd[rows]) / 0.1).softmax(2) for rows in pair]
        teachers = [(teacher(unit_nd[rows]) / 0.1).softmax(2) for rows in pair]
        means_hc = 0.9 * means_hc + 0.1 * (teachers[0].mean(1) + teachers[1].mean(1)) / 2
        losses_h = temi_losses(students, teachers, means_hc)
        _step(optimizer, losses_h)
        with torch.no_grad():
            pairs = zip(teacher.parameters(), student.parameters(), strict=True)
            for old, new in pairs:
                old.lerp_(new, 1 - 0.996)
        losses_sh.append(losses_h.detach())
    return _best(teacher, unit_nd, losses_sh)


def learn_scan(unit_nd: Tensor, near_nk: Tensor, budget: Budget, rate: float) -> Learned:
    """Learn SCAN's heads."""
    heads = ScanHeads(budget, unit_nd.shape[1])
    optimizer = torch.optim.Adam(heads.parameters(), lr=rate, weight_decay=1e-4)
    losses_sh = []
    for pair in _pairs(near_nk, budget):
        first, second = (heads(unit_nd[rows]).softmax(2) for rows in pair)
        losses_h = scan_losses(first, second)
        _step(optimizer, losses_h)
        losses_sh.append(losses_h.detach())
    return _best(heads, unit_nd, losses_sh)


def _pairs(near_nk: Tensor, budget: Budget) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of each step's samples, and one neighbour of each; every epoch is in a new order."""
    num_rows, num_near = near_nk.shape
    order_n, used = torch.randperm(num_rows), 0
    for _ in range(budget.steps):
        if used + budget.batch > num_rows:
            order_n, used = torch.randperm(num_rows), 0
        rows_b = order_n[used : used + budget.batch]
        used += budget.batch
        yield rows_b, near_nk[rows_b, torch.randint(num_near, (len(rows_b),))]


def _step(optimizer: torch.optim.Optimizer, losses_h: Tensor) -> None:
    optimizer.zero_grad()
    losses_h.sum().backward()  # type: ignore[no-untyped-call]
    optimizer.step()


@torch.no_grad()
def _best(heads: nn.Module, unit_nd: Tensor, losses_sh: list[Tensor]) -> Learned:
    means_h = torch.stack(losses_sh[-max(1, len(losses_sh) // 10) :]).mean(0)
    best = int(means_h.argmin())
    parts = [heads(rows_bd)[best].argmax(1) for rows_bd in torch.split(unit_nd, 2048)]
    return float(means_h[best]), torch.cat(parts)
