"""BYOL (Grill et al. 2020): predict the target network's embedding of another view.

CoNR's own framework (paper section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.fields import Mark, Positive, Section
from conr_ray.method.frameworks import base
from conr_ray.method.frameworks.base import Outputs, ParamGroup, Step, alignment_loss
from conr_ray.method.networks import Backbone, Encoder, TargetNetwork, make_predictor
from conr_ray.method.schedules import target_momentum


class Config(Section):
    """BYOL: a predictor, and a target network that follows the online one."""

    momentum: Annotated[float, Field(ge=0, lt=1), Mark(changeable=True)] = Field(
        0.996, description="of the target network at the first step; rises to 1 along a cosine"
    )
    predictor_lr_factor: Annotated[Positive, Mark(changeable=True)] = Field(
        10.0, description="factor on the predictor's lr in the instance stage"
    )
    group_stage_predictor_lr_factor: Annotated[Positive, Mark(stage="group", changeable=True)] = (
        Field(1.0, description="factor on the predictor's lr in the group stage")
    )


class Framework(base.TargetFramework[Config]):
    """Online encoder and predictor; the target is a moving average of the encoder."""

    def __init__(
        self, config: Config, backbone: Backbone, hidden_dim: int, embedding_dim: int
    ) -> None:
        super().__init__(config, backbone, hidden_dim, embedding_dim)
        self.encoder = Encoder(backbone, hidden_dim, embedding_dim)
        self.predictor = make_predictor(embedding_dim, hidden_dim)
        self.target = TargetNetwork(self.encoder)

    def param_groups(self) -> list[ParamGroup]:
        """Encoder and predictor."""
        factors = self.config.predictor_lr_factor, self.config.group_stage_predictor_lr_factor
        return [
            ParamGroup("encoder", list(self.encoder.parameters())),
            ParamGroup("predictor", list(self.predictor.parameters()), *factors),
        ]

    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Predictions as queries, target embeddings as keys."""
        queries = tuple(normalize(self.predictor(self.encoder(view)).float()) for view in views)
        return Outputs(queries, self.target.keys(views))

    def pull(
        self, queries_bd: Tensor, keys_bd: Tensor, step: Step, kept_b: Tensor | None = None
    ) -> Tensor:
        """-2 cos(prediction, key)."""
        return alignment_loss(queries_bd, keys_bd, step.num_global, kept_b)

    def after_step(self, outputs: Outputs, step: Step) -> Mapping[str, float]:
        """Move the target by `momentum`."""
        momentum = target_momentum(step.number, step.num_steps, self.config.momentum)
        self.target.follow(self.encoder, momentum)
        return {"momentum": momentum}
