"""MoCo v2 (He et al. 2020, Chen et al. 2020): contrast with a queue of earlier keys.

The queue is independent of the memory bank. The queue holds the keys of the last steps in order,
possibly several per sample, in both stages and on every worker: negatives need neither sample ids
nor neighbours. The bank holds one key per sample, is split over the workers, and starts with the
group stage.

Deviates from the papers: both views are queries in turn (as in MoCo v3), and batch normalisation
over the global batch replaces shuffled batch normalisation.

Shapes: q keys in the queue; others as in `base`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.fields import Count, Mark, Positive, Section
from conr_ray.method.collectives import all_gather_rows
from conr_ray.method.frameworks import base
from conr_ray.method.frameworks.base import Outputs, ParamGroup, Step
from conr_ray.method.networks import Backbone, Encoder, TargetNetwork


class Config(Section):
    """MoCo v2: a queue of keys as negatives, and a target network that follows the online one."""

    momentum: Annotated[float, Field(ge=0, lt=1), Mark(changeable=True)] = Field(
        0.999, description="of the target network"
    )
    temperature: Annotated[Positive, Mark(changeable=True)] = Field(
        0.2, description="divisor of the cosines"
    )
    queue_size: Count = Field(4096, description="keys of earlier steps used as negatives")


class Framework(base.TargetFramework[Config]):
    """Online encoder without predictor, its moving average, and the queue."""

    queue_qd: Tensor
    queue_place: Tensor

    def __init__(
        self, config: Config, backbone: Backbone, hidden_dim: int, embedding_dim: int
    ) -> None:
        super().__init__(config, backbone, hidden_dim, embedding_dim)
        self.encoder = Encoder(backbone, hidden_dim, embedding_dim)
        self.target = TargetNetwork(self.encoder)
        queue_qd = normalize(torch.randn(config.queue_size, embedding_dim))
        self.register_buffer("queue_qd", queue_qd)
        self.register_buffer("queue_place", torch.zeros((), dtype=torch.int64))

    def param_groups(self) -> list[ParamGroup]:
        """The encoder."""
        return [ParamGroup("encoder", list(self.encoder.parameters()))]

    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Online embeddings as queries, target embeddings as keys."""
        queries = tuple(normalize(self.encoder(view).float()) for view in views)
        return Outputs(queries, self.target.keys(views))

    def pull(
        self, queries_bd: Tensor, keys_bd: Tensor, step: Step, kept_b: Tensor | None = None
    ) -> Tensor:
        """InfoNCE with the key as positive and the queue as negatives."""
        positive_b = (queries_bd * keys_bd).sum(1) / self.config.temperature
        negative_bq = queries_bd @ self.queue_qd.T / self.config.temperature
        losses_b = torch.cat([positive_b[:, None], negative_bq], 1).logsumexp(1) - positive_b
        return (losses_b if kept_b is None else losses_b * kept_b).sum() / step.num_global

    @torch.no_grad()
    def after_step(self, outputs: Outputs, step: Step) -> Mapping[str, float]:
        """Update the target; the keys of the second view replace the oldest in the queue."""
        self.target.follow(self.encoder, self.config.momentum)
        size = self.config.queue_size
        keys_nd = all_gather_rows(outputs.keys[1], step.num_global)[-size:]
        places_n = torch.arange(len(keys_nd), device=keys_nd.device) + self.queue_place
        self.queue_qd[places_n % size] = keys_nd
        self.queue_place += len(keys_nd)
        return {"momentum": self.config.momentum}
