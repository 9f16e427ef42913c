"""ProPos (Huang et al. 2022): BYOL with positive sampling and prototype scattering.

Shapes: c clusters; others as in `base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.fields import Mark, NonNegative, Positive, Whole
from conr_ray.method import keyed_random
from conr_ray.method.collectives import differentiable_sum, world_size
from conr_ray.method.frameworks import byol
from conr_ray.method.frameworks.base import Outputs, Step


class Config(byol.Config):
    """ProPos: BYOL's fields, and those of its two losses."""

    noise: Annotated[NonNegative, Mark(changeable=True)] = Field(
        0.001, description="standard deviation of the noise added to the predictor's inputs"
    )
    scattering_weight: Annotated[NonNegative, Mark(changeable=True)] = Field(
        0.1, description="weight of the prototype scattering loss"
    )
    scattering_temperature: Annotated[Positive, Mark(changeable=True)] = Field(
        0.5, description="divisor of the cosines between prototypes"
    )
    scattering_start: Annotated[Whole, Mark(changeable=True)] = Field(
        50, description="first epoch with the prototype scattering loss"
    )


class Framework(byol.Framework):
    """BYOL's networks; predictions start near an embedding instead of at it."""

    config: Config

    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Predictions from embeddings with noise as queries, target embeddings as keys."""
        embeddings = [self.encoder(view).float() for view in views]
        queries = tuple(
            normalize(self.predictor(self._sampled(e, view, step)).float())
            for view, e in enumerate(embeddings)
        )
        keys = self.target.keys(views)
        return Outputs(queries, keys, tuple(normalize(e) for e in embeddings))

    def _sampled(self, embeddings_bd: Tensor, view: int, step: Step) -> Tensor:
        """A positive sample near each embedding (paper eq. 3)."""
        key = keyed_random.fold(step.key, "positive", view)
        noise_bd = keyed_random.normal(key, step.positions_b, embeddings_bd.shape[1])
        return embeddings_bd + self.config.noise * noise_bd

    def needs_clusters(self, epoch: int) -> bool:
        """From `scattering_start` on."""
        return bool(self.config.scattering_weight) and epoch >= self.config.scattering_start

    def scatter(self, outputs: Outputs, step: Step) -> Tensor | None:
        """Prototype scattering (paper eq. 5), the mean of both directions."""
        if not self.needs_clusters(step.epoch):
            return None
        assert step.pseudo_labels_n is not None and step.centers_cd is not None
        labels_b, num_clusters = step.pseudo_labels_n[step.positions_b], len(step.centers_cd)
        online = [_prototypes(e, labels_b, num_clusters) for e in outputs.embeddings]
        target = [_prototypes(k, labels_b, num_clusters) for k in outputs.keys]
        present_c = torch.zeros(num_clusters, dtype=torch.bool, device=labels_b.device)
        present_c[step.pseudo_labels_n] = True
        losses = [
            scattering_loss(online[i], target[1 - i], present_c, self.config.scattering_temperature)
            for i in range(2)
        ]
        # Every worker has the whole loss, and the parts must sum to it.
        return self.config.scattering_weight * (losses[0] + losses[1]) / 2 / world_size()


def _prototypes(rows_bd: Tensor, labels_b: Tensor, num_clusters: int) -> Tensor:
    """The direction of the sum of each cluster's rows over all workers, (c, d)."""
    sums_cd = rows_bd.new_zeros(num_clusters, rows_bd.shape[1]).index_add(0, labels_b, rows_bd)
    return normalize(differentiable_sum(sums_cd))


def scattering_loss(
    online_cd: Tensor, target_cd: Tensor, present_c: Tensor, temperature: float
) -> Tensor:
    """Contrastive loss of each prototype, its target against the others, mean over clusters.

    For each: -log(e^(own . target / t) / (e^(own . target / t) + sum over others e^(own . other /
    t))). Clusters without a row in the batch are left out.
    """
    logits_cc = online_cd @ online_cd.T / temperature
    own_c = (online_cd * target_cd).sum(1) / temperature
    diagonal_cc = torch.eye(len(own_c), dtype=torch.bool, device=own_c.device)
    logits_cc = torch.where(diagonal_cc, own_c[:, None], logits_cc)
    logits_cc = logits_cc.masked_fill(~present_c, -torch.inf)
    # The row of an absent cluster has no finite diagonal entry; the mean leaves it out.
    losses_c = logits_cc.logsumexp(1) - own_c
    return torch.where(present_c, losses_c, 0.0).sum() / present_c.sum()
