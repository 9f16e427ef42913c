"""The interface of self-supervised frameworks to the training loop and the stages.

A stage needs only the outputs of `Framework.forward` and the two parts of the loss, `pull` and
`scatter`, so every stage works with every framework.

Shapes: b rows of this worker, n rows of the global batch, d embedding width, c clusters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from conr_ray.fields import Section
from conr_ray.method.networks import Backbone, Encoder, TargetNetwork

ConfigT = TypeVar("ConfigT", bound=Section)


@dataclass(frozen=True)
class Step:
    """A step of a run, with everything except its views.

    Attributes:
        number: index from 0.
        num_steps: how many the run has.
        epoch: index of its epoch, from 0.
        key: its random key (`keyed_random`), used with `positions_b`.
        positions_b: int64 (b,), positions of this worker's rows in the global batch.
        sample_ids_n: int64 (n,), ids of the samples of the global batch.
        partner_ids_n: int64 (n,), ids of those that the second view of each is of; None if of the
            same ones.
        fraction: share of the global batch that a stage keeps, from 0 to 1.
        pseudo_labels_n: int64 (n,), clusters of the samples; None before the first clustering.
        centers_cd: float32 (c, d), centres of the clusters (`stages.boundary.boundary_centers`);
            None likewise.
    """

    number: int
    num_steps: int
    epoch: int
    key: int
    positions_b: Tensor
    sample_ids_n: Tensor
    fraction: float = 1.0
    pseudo_labels_n: Tensor | None = None
    centers_cd: Tensor | None = None
    partner_ids_n: Tensor | None = None

    @property
    def num_global(self) -> int:
        """Rows of the global batch, n."""
        return len(self.sample_ids_n)


@dataclass(frozen=True)
class Outputs:
    """A framework's outputs for the two views of a batch.

    Attributes:
        queries: (b, d) of each view, unit length, with gradient.
        keys: (b, d) of each view, unit length, float32, without gradient.
        embeddings: (b, d) of each view, behind the queries, unit length, with gradient; empty if
            neither the framework's own loss nor its stages use them.
    """

    queries: tuple[Tensor, ...]
    keys: tuple[Tensor, ...]
    embeddings: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with factors on the learning rate, in the instance and in the group stage."""

    name: str
    parameters: Sequence[nn.Parameter]
    lr_factor: float = 1.0
    group_stage_lr_factor: float = 1.0


class Framework(nn.Module, ABC, Generic[ConfigT]):
    """The networks of a self-supervised framework, and their losses.

    Its module names the class `Framework` and its config section `Config`. Weights are drawn from
    torch's global generator, which the caller seeds. `outputs` are what `forward` has returned for
    a `step`, an `epoch` is its index from 0.

    Args:
        config: the framework's section.
        backbone: inputs to features.
        hidden_dim: hidden width of the heads.
        embedding_dim: width of queries, keys and embeddings, d.

    Attributes:
        version: increase it with every change of results, so that trunks of earlier versions are
            not reused.
    """

    version: ClassVar[int] = 1

    def __init__(
        self, config: ConfigT, backbone: Backbone, hidden_dim: int, embedding_dim: int
    ) -> None:
        """Store the settings; sub-classes build their networks on `backbone`."""
        super().__init__()
        self.config = config

    def for_clusters(self, num_clusters: int) -> None:
        """Make what depends on the number of clusters: called once, before training or loading.

        Args:
            num_clusters: number of clusters, c.
        """
        return

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """All trained parameters, the group of the encoder first."""

    @abstractmethod
    def forward(self, views: Sequence[Tensor], step: Step) -> Outputs:
        """Queries and keys of the views of this worker's rows.

        Args:
            views: float32 (b, ...) each, as `Inputs.random` makes them.
            step: which one the views are for.
        """

    @abstractmethod
    def pull(
        self, queries_bd: Tensor, keys_bd: Tensor, step: Step, kept_b: Tensor | None = None
    ) -> Tensor:
        """Loss that pulls queries toward keys: this worker's part of the mean over the batch.

        A scalar: the sum over the local rows, divided by the *global* number of rows, so that
        summing loss and gradient over the workers gives those of one process on the joined batch.

        Args:
            queries_bd: (b, d) of unit length, with gradient.
            keys_bd: (b, d) without gradient; in the group stage means of unit-length keys.
            step: which one the queries and keys are of.
            kept_b: bool (b,); other rows count as zeros in the mean. None keeps all.
        """

    def scatter(self, outputs: Outputs, step: Step) -> Tensor | None:
        """An additional loss in both stages: this worker's part, a scalar, or None."""
        return None

    def needs_clusters(self, epoch: int) -> bool:
        """Whether `scatter` reads pseudo-labels in `epoch`."""
        return False

    def after_step(self, outputs: Outputs, step: Step) -> Mapping[str, float]:
        """Update averages and other state after a `step`; returns figures for the metrics."""
        return {}

    @property
    @abstractmethod
    def embedding_encoder(self) -> Encoder:
        """The network whose outputs, at unit length, are the embeddings that are clustered."""

    @property
    def cluster_centers(self) -> Tensor | None:
        """Centres of the clusters that the framework has learned, (c, d) of unit length.

        Then a sample's cluster is that of the nearest centre; None lets k-means find clusters.
        """
        return None

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """The embeddings that are clustered: float32 (b, d), unit length, without gradient.

        Args:
            inputs: float32 (b, ...), as `Inputs.plain` makes them.
        """
        return normalize(self.embedding_encoder(inputs).float())


class TargetFramework(Framework[ConfigT]):
    """A framework whose embeddings are those of a moving average of its encoder.

    Attributes:
        target: the average, which the constructor makes.
    """

    target: TargetNetwork

    @property
    def embedding_encoder(self) -> Encoder:
        """The target network."""
        return self.target.encoder

    def embed(self, inputs: Tensor) -> Tensor:
        """Embeddings of the target network, as it is compiled: as a whole."""
        embeddings: Tensor = self.target(inputs)
        return embeddings


def alignment_loss(
    queries_bd: Tensor, keys_bd: Tensor, num_global: int, kept_b: Tensor | None = None
) -> Tensor:
    """-2 mean cos(query, key) of unit-length rows (CoNR eq. 1; with kept rows eq. 7).

    For means of several unit-length keys it is the mean over their cosines. Returns this worker's
    part, as in `Framework.pull`. (The released code averages the group stage's loss over the
    workers instead of summing it, which divides its gradient by their number; see
    `optim.group_loss_weight`.)
    """
    products_bd = queries_bd * keys_bd
    if kept_b is None:
        return -2 * products_bd.sum() / num_global
    return -2 * (products_bd.sum(1) * kept_b).sum() / num_global
