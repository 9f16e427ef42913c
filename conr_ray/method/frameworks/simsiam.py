"""SimSiam (Chen and He 2021): a predictor and stop-gradient, no target network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

from conr_ray.fields import Mark, Positive, Section
from conr_ray.method.frameworks import base
from conr_ray.method.frameworks.base import Outputs, ParamGroup, Step, alignment_loss
from conr_ray.method.networks import Backbone, Encoder, head


class Config(Section):
    """SimSiam: keys are the encoder's own embeddings, without gradient."""

    predictor_lr_factor: Annotated[Positive, Mark(changeable=True)] = Field(
        1.0, description="factor on the predictor's lr, in both stages"
    )


class Framework(base.Framework[Config]):
    """Encoder and a predictor whose hidden layer is a quarter as wide as the embedding.

    Deviates from the paper: the projector has two layers, not three, and the predictor's learning
    rate follows the same cosine as the encoder's.
    """

    def __init__(
        self, config: Config, backbone: Backbone, hidden_dim: int, embedding_dim: int
    ) -> None:
        super().__init__(config, backbone, hidden_dim, embedding_dim)
        self.encoder = Encoder(backbone, hidden_dim, embedding_dim)
        # Without it, embeddings can collapse to a point (paper section 4.4).
        self.encoder.projector.append(nn.BatchNorm1d(embedding_dim, affine=False))
        self.predictor = head(embedding_dim, max(1, embedding_dim // 4), embedding_dim)

    def param_groups(self) -> list[ParamGroup]:
        """Encoder and predictor."""
        factor = self.config.predictor_lr_factor
        predictor = ParamGroup("predictor", list(self.predictor.parameters()), factor, factor)
        return [ParamGroup("encoder", list(self.encoder.parameters())), predictor]

    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Predictions as queries, embeddings without gradient as keys."""
        embeddings = [self.encoder(view) for view in views]
        queries = tuple(normalize(self.predictor(e).float()) for e in embeddings)
        return Outputs(queries, tuple(normalize(e.detach().float()) for e in embeddings))

    def pull(
        self, queries_bd: Tensor, keys_bd: Tensor, step: Step, kept_b: Tensor | None = None
    ) -> Tensor:
        """-2 cos(prediction, key)."""
        return alignment_loss(queries_bd, keys_bd, step.num_global, kept_b)

    @property
    def embedding_encoder(self) -> Encoder:
        """The encoder."""
        return self.encoder
