"""Clustering heads: clusters that samples share with their neighbours, as one linear layer.

Each of several heads has a prototype for every cluster, and gives a sample probabilities by its
cosines with them. A head learns to tell as much as it can about the neighbour of a sample: its loss
is minus the mutual information of both clusters, as in IIC (Ji et al. 2019), with the entropy of
the clusters' sizes weighted as in SCAN (Van Gansbeke et al. 2020), and the target's probabilities
for the neighbour as in TEMI (Adaloglou et al. 2023). That wants clusters of about equal sizes; the
other loss, the normalised cut, does not. The head with the smallest loss is the one that clusters:
no label is read.

The temperature falls while training: soft heads find the coarse order of the clusters, sharp ones
where they end.

Shapes: h heads, c clusters; others as in `base`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from conr_ray.fields import Count, Mark, Positive, Section
from conr_ray.method.clustering.pair_losses import (
    cut_loss,
    information_loss,
    joint_probabilities,
)
from conr_ray.method.collectives import world_size
from conr_ray.method.frameworks import base
from conr_ray.method.frameworks.base import Outputs, ParamGroup, Step
from conr_ray.method.networks import Backbone, Encoder, Identity, TargetNetwork

# Share of the newest step in the mean loss by which heads are compared.
_NEWEST = 0.02
# Share of the run after which the temperature stays.
_COOLED = 0.7


class Config(Section):
    """Clustering heads: clusters that samples share with their neighbours."""

    objective: Literal["information", "cut"] = Field(
        "information",
        description="mutual information of the clusters of neighbours, or their normalised cut, "
        "which lets clusters differ in size",
    )
    num_heads: Count = Field(16, description="heads, of which the one with the least loss counts")
    temperature: Annotated[tuple[Positive, Positive], Mark(changeable=True)] = Field(
        (0.1, 0.04), description="of the heads' cosines: at the start, and from 70% of the run on"
    )
    balance: Annotated[Annotated[float, Field(ge=1)], Mark(changeable=True)] = Field(
        2.0,
        description="of information: weight of the entropy of the clusters' sizes; more makes them "
        "more equal",
    )
    momentum: Annotated[Annotated[float, Field(ge=0, lt=1)], Mark(changeable=True)] = Field(
        0.9, description="of the target's heads and encoder"
    )


class Framework(base.TargetFramework[Config]):
    """The backbone with prototypes; a moving average of both gives the targets.

    Embeddings are the backbone's features, centred: there is no projector. The centres of the
    clusters are the prototypes of the best head, so that a sample's cluster is its nearest centre.
    """

    prototypes: nn.Parameter
    target_prototypes: Tensor
    mean_losses: Tensor

    def __init__(
        self, config: Config, backbone: Backbone, hidden_dim: int, embedding_dim: int
    ) -> None:
        super().__init__(config, backbone, hidden_dim, embedding_dim)
        self.encoder = Encoder(backbone, 0, 0)
        if not isinstance(backbone, Identity):
            # Features that ReLU has left are far from 0, which cosines are taken from; vectors are
            # centred already.
            width = self.encoder.embedding_dim
            self.encoder.projector.append(nn.BatchNorm1d(width, affine=False))
        self.target = TargetNetwork(self.encoder)

    def for_clusters(self, num_clusters: int) -> None:
        """Draw the prototypes, (h, c, d)."""
        shape = self.config.num_heads, num_clusters, self.encoder.embedding_dim
        self.prototypes = nn.Parameter(normalize(torch.randn(shape), dim=2))
        self.register_buffer("target_prototypes", self.prototypes.detach().clone())
        self.register_buffer("mean_losses", torch.zeros(self.config.num_heads))

    def param_groups(self) -> list[ParamGroup]:
        """Encoder and heads.

        The loss is the mean over the heads; the factor makes the steps of each what they would be
        for it alone.
        """
        factor = float(self.config.num_heads)
        return [
            ParamGroup("encoder", list(self.encoder.parameters())),
            ParamGroup("heads", [self.prototypes], factor, factor),
        ]

    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Probabilities (b, h, c) as queries, those of the target as keys."""
        temperature = self._temperature(step)
        embeddings = tuple(normalize(self.encoder(view).float()) for view in views)
        queries = tuple(_probabilities(e, self.prototypes, temperature) for e in embeddings)
        with torch.no_grad():
            keys = tuple(
                _probabilities(key_bd, self.target_prototypes, temperature)
                for key_bd in self.target.keys(views)
            )
        return Outputs(queries, keys, embeddings)

    def pull(
        self, queries_bd: Tensor, keys_bd: Tensor, step: Step, kept_b: Tensor | None = None
    ) -> Tensor:
        """The objective of the clusters of pairs, the mean over the heads.

        Every worker has that of the global batch; the parts sum to it.
        """
        joint_hcc = joint_probabilities(queries_bd, keys_bd, kept_b)
        if self.config.objective == "cut":
            losses_h = cut_loss(joint_hcc)
        else:
            losses_h = information_loss(joint_hcc, self.config.balance)
        with torch.no_grad():
            # From 0, as a sum whose first terms weigh less; all heads have the same.
            self.mean_losses.lerp_(losses_h, _NEWEST)
        return losses_h.mean() / world_size()

    def after_step(self, outputs: Outputs, step: Step) -> Mapping[str, float]:
        """Move the target."""
        momentum = self.config.momentum
        self.target.follow(self.encoder, momentum)
        with torch.no_grad():
            self.target_prototypes.lerp_(self.prototypes, 1 - momentum)
        return {"temperature": self._temperature(step)}

    @property
    def cluster_centers(self) -> Tensor:
        """The target's prototypes of the head whose mean loss is smallest, (c, d), unit length."""
        best_chd = self.target_prototypes[self.mean_losses.argmin()]
        return normalize(best_chd, dim=1)

    def _temperature(self, step: Step) -> float:
        first, last = self.config.temperature
        progress = min(1.0, step.number / (_COOLED * step.num_steps))
        return float(first * (last / first) ** progress)


def _probabilities(embeddings_bd: Tensor, prototypes_hcd: Tensor, temperature: float) -> Tensor:
    num_heads, num_clusters, width = prototypes_hcd.shape
    # The temperature makes much of small differences.
    with torch.autocast(embeddings_bd.device.type, enabled=False):
        rows_kd = normalize(prototypes_hcd, dim=2).reshape(-1, width)
        cosines_bhc = (embeddings_bd @ rows_kd.T).view(-1, num_heads, num_clusters)
    return (cosines_bhc / temperature).softmax(2)
