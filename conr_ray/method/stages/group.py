"""The group stage: neighbours, kept rows and loss (paper section 3).

Change the objective here; the loop calls `GroupStage.loss` once a step.

Shapes: b rows of this worker, n rows of the global batch, c clusters, d width, k neighbours.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from conr_ray.method.clustering.metrics import neighbor_matches
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.frameworks.base import Framework, Outputs, Step
from conr_ray.method.neighbors.bank import MemoryBank, Neighbors
from conr_ray.method.neighbors.links import Links
from conr_ray.method.phases import phase
from conr_ray.method.stages.base import Figures, Stage, with_scatter
from conr_ray.method.stages.boundary import boundary_ratio, kept_mask


class GroupStage(Stage):
    """Pulls the query of each view toward keys of the other view's neighbours."""

    name = "group"
    mild_views = True

    def __init__(
        self,
        bank: MemoryBank,
        weight: float = 1.0,
        classes: Tensor | None = None,
        links: Links | None = None,
        *,
        per_cluster: bool = False,
    ) -> None:
        """Use a neighbour pool.

        Args:
            bank: the pool, which finds the neighbours and enqueues each batch.
            weight: factor on the loss.
            classes: true class of every sample by its id, -1 where unknown, for `neighbor_purity`.
            links: a person's word on neighbours.
            per_cluster: whether the boundary filter keeps a share of each cluster.
        """
        self.bank, self.weight, self.classes, self.links = bank, weight, classes, links
        self._per_cluster = per_cluster

    def needs_clusters(self, framework: Framework[Any], epoch: int) -> bool:
        """Always, for the boundary filter."""
        return True

    def loss(
        self, framework: Framework[Any], outputs: Outputs, step: Step
    ) -> tuple[Tensor, Figures]:
        """The mean of both directions, and figures as shares.

        Figures: `neighbor_purity` (if classes are given), `bank_share` (of the neighbours without
        the row itself), `neighbor_age` (steps, of those from the bank), `kept` and,
        on CPUs, `discovery_time_s` (per step: the whole counts steps).
        """
        assert step.pseudo_labels_n is not None and step.centers_cd is not None
        local = share(step.num_global)
        # Direction i: the queries of view i, the keys of the other one.
        pools = [all_gather_rows(keys_bd, step.num_global) for keys_bd in reversed(outputs.keys)]
        started = time.perf_counter()
        with phase("neighbours"):
            found = self.bank.find(pools, step.sample_ids_n, self.links)
        elapsed_s = time.perf_counter() - started
        losses, kept = [], []
        among_n = step.pseudo_labels_n if self._per_cluster else None
        for queries_bd, pool_nd, neighbors in zip(outputs.queries, pools, found, strict=True):
            with torch.no_grad():
                ratios_n = boundary_ratio(pool_nd, step.pseudo_labels_n, step.centers_cd)
                kept.append(kept_mask(ratios_n, step.fraction, among_n)[local])
            losses.append(framework.pull(queries_bd, neighbors.mean_keys_bd, step, kept[-1]))
        figures = _figures(found[0], step.sample_ids_n[local], self.classes)
        figures["kept"] = torch.stack([kept[0].sum(), torch.ones_like(kept[0]).sum()])
        if kept[0].device.type == "cpu":
            # Elsewhere it would be the time to launch the search.
            one = torch.ones((), dtype=torch.float64)
            figures["discovery_time_s"] = torch.stack([one * elapsed_s, one])
        loss = self.weight * torch.stack(losses).mean()
        return with_scatter(loss, framework, outputs, step), figures


def _figures(neighbors: Neighbors, sample_ids_b: Tensor, classes: Tensor | None) -> Figures:
    """Figures of the neighbours of one direction, as shares."""
    others_bk, ages_bk = neighbors.sample_ids_bk[:, 1:] >= 0, neighbors.ages_bk[:, 1:]
    from_bank = (ages_bk > 0).sum()
    figures = {
        "bank_share": torch.stack([from_bank, others_bk.sum()]),
        "neighbor_age": torch.stack([ages_bk.sum(), from_bank]),
    }
    if classes is not None:
        ids_bk = neighbors.sample_ids_bk
        labels_bk = classes[ids_bk.clamp_min(0)].masked_fill(ids_bk < 0, -1)
        figures["neighbor_purity"] = neighbor_matches(labels_bk, classes[sample_ids_b])
    return figures
