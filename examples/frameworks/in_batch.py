"""A framework of our own: contrast with the batch (as in MoCo v3, Chen et al. 2021).

A query is to tell the key of its own sample from those of all other samples in the global batch.
The group stage gives the mean keys of neighbours instead of keys, and needs nothing else.

Shapes: b rows of this worker, n rows of the global batch, d width.
"""

from pydantic import Field
from torch.nn.functional import cross_entropy, normalize

from conr_ray.fields import Positive, Section
from conr_ray.method.collectives import all_gather_rows, share
from conr_ray.method.frameworks import base
from conr_ray.method.frameworks.base import Outputs, ParamGroup
from conr_ray.method.networks import Encoder, TargetNetwork, make_predictor


class Config(Section):
    """Contrast with the batch."""

    temperature: Positive = Field(0.3, description="cosines are divided by it")
    momentum: float = Field(0.95, ge=0, lt=1, description="of the target network")


class Framework(base.TargetFramework[Config]):
    """Online encoder and predictor; keys are those of a moving average of the encoder."""

    def __init__(self, config, backbone, hidden_dim, embedding_dim):
        super().__init__(config, backbone, hidden_dim, embedding_dim)
        self.encoder = Encoder(backbone, hidden_dim, embedding_dim)
        self.predictor = make_predictor(embedding_dim, hidden_dim)
        self.target = TargetNetwork(self.encoder)

    def param_groups(self):
        """What is trained; ten times the learning rate for the predictor, in both stages."""
        predictor = ParamGroup("predictor", list(self.predictor.parameters()), 10.0, 10.0)
        return [ParamGroup("encoder", list(self.encoder.parameters())), predictor]

    def forward(self, views, step):
        """Predictions as queries, target embeddings as keys."""
        queries = tuple(normalize(self.predictor(self.encoder(view)).float()) for view in views)
        return Outputs(queries, self.target.keys(views))

    def pull(self, queries_bd, keys_bd, step, kept_b=None):
        """Cross-entropy of the own key among all; this worker's part of the mean over n."""
        keys_nd = all_gather_rows(keys_bd, step.num_global)
        own = share(step.num_global)
        rows_b = step.positions_b.new_tensor(range(own.start, own.stop))
        logits_bn = queries_bd @ keys_nd.T / self.config.temperature
        losses_b = cross_entropy(logits_bn, rows_b, reduction="none")
        return (losses_b if kept_b is None else losses_b * kept_b).sum() / step.num_global

    def after_step(self, outputs, step):
        """Move the target."""
        self.target.follow(self.encoder, self.config.momentum)
        return {}
