"""A person's edits for samples that nobody has seen: by the centres of what was merged and split.

Shapes: b samples, c clusters before the edits, k centres after, d embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from conr_ray.edits.log import EditLog
from conr_ray.method.stages.boundary import distance_ratio


@dataclass(frozen=True, eq=False)
class EditedClusters:
    """The clusters of a run as a person has changed them.

    Samples that a person has moved on their own say nothing of others. A merge holds for all
    samples of its clusters, a split by the nearer of its two centres.

    Attributes:
        log: the steps.
        centers_cd: the boundary centres of the clusters before them.
        numbers_c: the numbers of these clusters.
        scaled: from a split's means to boundary centres.
    """

    log: EditLog
    centers_cd: Tensor
    numbers_c: Tensor
    scaled: Callable[[Tensor], Tensor]

    @property
    def names(self) -> dict[int, str]:
        """Names by cluster."""
        return self.log.names()

    def clusters(self, embeddings_bd: Tensor, clusters_b: Tensor) -> Tensor:
        """The clusters of samples, int64 (b,), from those that they would have without edits."""
        found_b = clusters_b.clone()
        for step in self.log.active:
            if step.kind == "merge":
                merged = torch.tensor(step.clusters, device=found_b.device)
                found_b[torch.isin(found_b, merged)] = step.target
            elif step.kind == "split" and step.centers_2d is not None:
                inside_b = found_b == step.clusters[0]
                means_2d = torch.from_numpy(step.centers_2d).to(embeddings_bd)
                unit_2d = torch.nn.functional.normalize(means_2d)
                goes_b = (embeddings_bd @ unit_2d.T).argmax(1) == 1
                found_b[inside_b & goes_b] = step.target
        return found_b

    @cached_property
    def _leaves(self) -> tuple[Tensor, Tensor]:
        """All centres (k, d), and the cluster of each (k,)."""
        centers = list(self.centers_cd)
        clusters = self.numbers_c.tolist()
        for step in self.log.active:
            if step.kind == "merge":
                clusters = [step.target if one in step.clusters else one for one in clusters]
            elif step.kind == "split" and step.centers_2d is not None:
                kept = [i for i, one in enumerate(clusters) if one != step.clusters[0]]
                means_2d = torch.from_numpy(step.centers_2d).to(self.centers_cd)
                centers = [*(centers[i] for i in kept), *self.scaled(means_2d)]
                clusters = [*(clusters[i] for i in kept), step.clusters[0], step.target]
        device = self.centers_cd.device
        return torch.stack(centers), torch.tensor(clusters, device=device)

    def distances(self, embeddings_bd: Tensor, clusters_b: Tensor) -> tuple[Tensor, Tensor]:
        """To the nearest centre of the own cluster, and to the nearest of another, (b,) each."""
        centers_kd, clusters_k = self._leaves
        distances_bk = torch.cdist(
            embeddings_bd, centers_kd, compute_mode="donot_use_mm_for_euclid_dist"
        )
        own_bk = clusters_b[:, None] == clusters_k[None]
        own_b = distances_bk.masked_fill(~own_bk, torch.inf).amin(1)
        return own_b, distances_bk.masked_fill(own_bk, torch.inf).amin(1)

    def ratios(self, own_b: Tensor, other_b: Tensor) -> Tensor:
        """The boundary ratios of `distances`; 0 where all is one cluster."""
        return torch.where(other_b.isinf(), 0.0, distance_ratio(own_b, other_b))
