"""One direction of the group stage: keys to neighbours, kept rows and loss (paper section 3).

Change the objective here; the loop calls `GroupStage` once for each direction.

Shapes: b rows of this worker, n rows of the global batch, c clusters, d width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from conr_ray.method.boundary import boundary_ratio, kept_mask
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.losses import group_loss
from conr_ray.method.metrics import neighbor_matches
from conr_ray.method.reranking import batch_neighbors


@dataclass(frozen=True)
class GroupStage:
    """How neighbours are chosen and weighted; the fields are those of the config."""

    kind: str
    k1: int
    k2: int
    k: int
    weight: float = 1.0

    def __call__(
        self,
        predictions_bd: Tensor,
        keys_bd: Tensor,
        *,
        pseudo_labels_n: Tensor,
        centers_cd: Tensor,
        fraction: float,
        classes_n: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This worker's part of the global mean loss, and figures to track.

        Args:
            predictions_bd: of one view, unit length, with gradient.
            keys_bd: of the other view, unit length, without gradient.
            pseudo_labels_n: cluster of each row of the global batch.
            centers_cd: cluster centres, unit length.
            fraction: share of the global batch that is kept.
            classes_n: true classes, -1 where unknown, for `neighbor_purity` only.

        Returns:
            The loss, to be summed over the workers, and figures as shares: two counts each, part
            and whole, to be summed over the workers too. `neighbor_purity` where
            classes are given.
        """
        num_global = len(pseudo_labels_n)
        local = share(num_global)
        # The neighbour pool. A memory bank adds its rows behind those of the batch.
        pool_pd = all_gather_rows(keys_bd, num_global)
        with torch.no_grad():
            ratios_n = boundary_ratio(pool_pd[:num_global], pseudo_labels_n, centers_cd)
            kept_n = kept_mask(ratios_n, fraction)
            neighbors_bk = batch_neighbors(
                self.kind, pool_pd, local, k1=self.k1, k2=self.k2, k=self.k
            )
        loss = group_loss(predictions_bd, pool_pd, neighbors_bk, kept_n[local], num_global)
        figures = {}
        if classes_n is not None:
            figures["neighbor_purity"] = neighbor_matches(neighbors_bk, classes_n[local], classes_n)
        return self.weight * loss, figures
