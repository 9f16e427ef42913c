"""The group stage over all data: each sample with one of its neighbours at a time.

Where embeddings change slowly or not at all, neighbours among all samples are found once an epoch,
or once a run, instead of in each batch: the loss and the boundary filter of CoNR (paper section 3),
with one neighbour at a time, as SCAN trains its clusters (Van Gansbeke et al. 2020).

Shapes: b rows of this worker, n rows of the global batch, m samples of the data set, d width, k
neighbours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from conr_ray.method import keyed_random
from conr_ray.method.clustering.metrics import neighbor_matches
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.frameworks.base import Framework, Outputs, Step
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.neighbors.links import Links
from conr_ray.method.stages.base import Figures, Stage, with_scatter
from conr_ray.method.stages.boundary import boundary_ratio, kept_mask


class PairStage(Stage):
    """Pulls each view of a pair of neighbours toward the other one.

    The first sample of a pair is one of the batch, the second one of its k neighbours, itself
    included, drawn anew in every step. The boundary filter looks at the first one.

    Attributes:
        neighbors_mk: neighbours of all samples, int32 ids; None until they are found.
    """

    name = "group"
    mild_views = True

    def __init__(
        self,
        kind: str,
        weight: float = 1.0,
        classes: Tensor | None = None,
        clusters_until: int | None = None,
        links: Links | None = None,
        *,
        per_cluster: bool = False,
    ) -> None:
        """Use neighbours in the whole data set.

        Args:
            kind: of the neighbours, 'contextual' or 'euclidean'.
            weight: factor on the loss.
            classes: true class of every sample by its id, -1 where unknown, for `neighbor_purity`.
            clusters_until: epoch from which neither the boundary filter nor the order of samples
                reads clusters; None if there is none.
            links: a person's word on neighbours.
            per_cluster: whether the boundary filter keeps a share of each cluster.
        """
        self._kind, self._weight, self._classes = kind, weight, classes
        self._clusters_until, self._links = clusters_until, links
        self._per_cluster = per_cluster
        self.neighbors_mk: Tensor | None = None

    def find(self, near: DataNeighbors) -> None:
        """Find the neighbours of all samples."""
        rows_mk = near.all_rows(self._kind)
        if self._links is not None:
            ids_m1 = torch.arange(len(rows_mk), device=rows_mk.device)[:, None]
            found_mk = self._links.to(rows_mk.device).heeded(rows_mk, ids_m1[:, 0], ids_m1[:, 0])
            # What is left out counts as the sample itself, as a partner that tells nothing.
            rows_mk = torch.where(found_mk < 0, ids_m1, found_mk)
        self.neighbors_mk = rows_mk.int()

    def paired(self, step: Step) -> Step:
        """`step` with one neighbour of each sample, drawn by its key."""
        assert self.neighbors_mk is not None
        ids_n = step.sample_ids_n
        positions_n = torch.arange(len(ids_n), device=ids_n.device)
        drawn_n1 = keyed_random.uniform(fold(step.key, "neighbour"), positions_n, 1)
        rows_nk = self.neighbors_mk[ids_n.to(self.neighbors_mk.device)]
        columns_n1 = (drawn_n1 * rows_nk.shape[1]).long().to(rows_nk.device)
        return replace(step, partner_ids_n=rows_nk.gather(1, columns_n1).squeeze(1).long())

    def needs_clusters(self, framework: Framework[Any], epoch: int) -> bool:
        """For the boundary filter and the order of samples, and if the framework does."""
        read = self._clusters_until is None or epoch < self._clusters_until
        return read or framework.needs_clusters(epoch)

    def loss(
        self, framework: Framework[Any], outputs: Outputs, step: Step
    ) -> tuple[Tensor, Figures]:
        """The mean of both directions, and figures as shares.

        Figures: `neighbor_purity` (if classes are given) and `kept`.
        """
        local = share(step.num_global)
        kept_b = self._kept(outputs, step)[local]
        losses = [
            framework.pull(queries_bd, keys_bd, step, kept_b)
            for queries_bd, keys_bd in zip(outputs.queries, reversed(outputs.keys), strict=True)
        ]
        figures = {"kept": torch.stack([kept_b.sum(), torch.ones_like(kept_b).sum()])}
        if self._classes is not None:
            assert step.partner_ids_n is not None
            pairs_n2 = torch.stack([step.sample_ids_n, step.partner_ids_n], 1)
            pairs_b2 = pairs_n2[local].to(self._classes.device)
            labels_b2 = self._classes[pairs_b2]
            # A sample that is its own partner tells nothing.
            labels_b2[:, 1].masked_fill_(pairs_b2[:, 0] == pairs_b2[:, 1], -1)
            figures["neighbor_purity"] = neighbor_matches(labels_b2, labels_b2[:, 0])
        loss = self._weight * torch.stack(losses).mean()
        return with_scatter(loss, framework, outputs, step), figures

    @torch.no_grad()
    def _kept(self, outputs: Outputs, step: Step) -> Tensor:
        """Whether the boundary filter keeps each pair of the global batch, (n,) bool."""
        if step.fraction == 1:
            return torch.ones_like(step.sample_ids_n, dtype=torch.bool)
        assert step.pseudo_labels_n is not None and step.centers_cd is not None
        own_bd = (outputs.embeddings or outputs.keys)[0].detach()
        pool_nd = all_gather_rows(own_bd, step.num_global)
        ratios_n = boundary_ratio(pool_nd, step.pseudo_labels_n, step.centers_cd)
        return kept_mask(
            ratios_n, step.fraction, step.pseudo_labels_n if self._per_cluster else None
        )
