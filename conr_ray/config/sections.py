"""The sections of a run's config and every default.

Defaults follow the recipe of the CoNR paper (NeurIPS 2023) for CIFAR-10; the presets hold the
changes for other data sets. Frameworks declare their own sections in
`conr_ray.method.frameworks`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from conr_ray.config.cluster_numbers import checked_numbers
from conr_ray.config.networks import ModelConfig
from conr_ray.config.samples import DataConfig, ViewsConfig
from conr_ray.fields import (
    Count,
    Fraction,
    Mark,
    NonNegative,
    Positive,
    Probability,
    Section,
    Whole,
)

_GROUP_STAGE = Mark(stage="group")
Numbers = Annotated[str, AfterValidator(checked_numbers)]


class ScheduleConfig(Section):
    """Epochs of the two stages."""

    epochs: Count = Field(
        1000,
        description="total of both stages; a run resumed with more follows the schedules of the "
        "longer run from there on",
    )
    group_start: Whole | Literal["never"] = Field(
        800, description="first epoch of the group stage; 'never' trains the framework alone"
    )
    relax_epochs: Annotated[Whole, Mark(stage="group", changeable=True)] = Field(
        50, description="epochs over which the kept fraction rises to 1"
    )
    warmup_epochs: Whole = Field(50, description="epochs over which the learning rate rises from 0")
    cosine_epochs: Count | None = Field(
        None,
        description="epochs of the half cosine along which it then falls to 0; all that remain if "
        "unset, and with more it ends above 0",
    )


class NeighborhoodConfig(Section):
    """Which keys of the pool a query is pulled toward (paper section 3.2)."""

    mark: ClassVar[Mark] = Mark(stage="group", changeable=True)

    pool: Literal["batch", "data"] = Field(
        "batch",
        description="where neighbours are sought: in the global batch and the bank, where a query "
        "is pulled toward all k, or in all data, where it is toward one of the k at a time",
    )
    kind: Literal["contextual", "euclidean"] = Field("contextual", description="ConAff or nearest")
    k1: Count = Field(10, description="neighbours that form a row's context")
    k2: Count = Field(2, description="neighbours over which contexts are averaged; at most k1")
    k: Count = Field(10, description="neighbours in the loss, including the sample itself")
    probes: Count | None = Field(
        None,
        description="of 2 sqrt(n) cells of similar samples, those next to a sample's own that are "
        "searched where neighbours are sought in all data; unset, the search is exact",
    )


class BoundaryConfig(Section):
    """Filtering of samples near cluster boundaries (paper section 3.3)."""

    mark: ClassVar[Mark] = Mark(stage="group", changeable=True)

    initial_fraction: Fraction = Field(0.8, description="share of the batch kept at group_start")
    per: Literal["batch", "cluster"] = Field(
        "batch",
        description="what the share is of: the batch, which may filter out rare clusters as a "
        "whole, or the samples of each cluster in it",
    )
    centers: Literal["unit", "mean"] = Field(
        "unit",
        description="what distances are measured from: centres of unit length, or the means of the "
        "clusters' embeddings, which are shorter the wider a cluster is",
    )


class BankConfig(Section):
    """The memory bank that widens the neighbour pool beyond the global batch."""

    mark: ClassVar[Mark] = Mark(stage="group")

    size: Whole = Field(
        0, description="samples whose latest embedding is kept; 0 gives the paper's in-batch pool"
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="of the rows")
    sharded: bool = Field(
        True, description="split the rows over the workers; otherwise each keeps and searches all"
    )


class OptimConfig(Section):
    """SGD and its learning rates."""

    mark: ClassVar[Mark] = Mark(changeable=True)

    batch_size: Annotated[int, Field(ge=2), Mark(changeable=False)] = Field(
        512, description="global: over all workers"
    )
    lr: Positive = Field(0.05, description="per 256 samples of the global batch")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(5e-4, description="L2 penalty on all parameters")
    group_stage_lr_factor: Annotated[Positive, _GROUP_STAGE] = Field(
        0.1, description="factor on lr in the group stage"
    )
    group_loss_weight: Annotated[Positive, _GROUP_STAGE] = Field(
        1.0, description="factor on the loss; 1/4 gives the gradient of the published 4-GPU runs"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="of the networks; auto is bf16 on GPUs that have it and on CPUs where a timed "
        "test shows that it is faster, else fp32; a run keeps what was chosen at its start",
    )
    compile: Literal["auto", "off"] = Field(
        "auto", description="auto compiles networks and views on GPUs"
    )


class ClusteringConfig(Section):
    """Clustering of target embeddings: pseudo-labels and final clusters."""

    kind: Literal["kmeans", "cut"] = Field(
        "kmeans",
        description="kmeans as in the paper, for clusters of about equal sizes, or cut, the "
        "normalised cut of the graph of contextual neighbours, for unequal ones",
    )
    num_clusters: Annotated[int, Field(ge=2)] | Numbers | None = Field(
        None,
        description="a number; auto (2 to 30) or a range, `5..30`: chosen without labels; if "
        "unset, the number of labelled classes",
    )
    restarts: Count = Field(10, description="random starts; the best is kept")
    max_iterations: Count = Field(100, description="of kmeans: per start")
    start_rows: Count = Field(
        8192,
        description="rows on which k-means starts are compared, or that the cut is found on; more "
        "than the data set uses all",
    )
    edits: str | None = Field(
        None,
        description="folder of a run on the same samples that a person has changed with "
        "conr_ray.browse, or its edits.parquet, here or in a bucket: they steer pseudo-labels and "
        "neighbours, and junk is not trained on",
    )
    warm_start: Annotated[bool, Mark(stage="group", changeable=True)] = Field(
        True,
        description="group stage: clustering continues from the centres of the epoch before, "
        "k-means unless a fresh start fits better; after the last epoch all restarts are made",
    )
    evenness: Annotated[Probability, Mark(stage="group", changeable=True)] = Field(
        0.0,
        description="group stage: how batches are drawn; 0 sees each sample once an epoch, 1 all "
        "clusters equally often, and between, samples by the size of their cluster ** -evenness",
    )
    ids_of: Annotated[str | None, Mark(shapes_rows=False)] = Field(
        None,
        description="folder of an earlier run, or of one of its reclusterings: final clusters take "
        "the numbers and names of those that they share most samples with",
    )


class EvaluationConfig(Section):
    """When the whole data set is embedded and clustered."""

    every: Count = Field(
        10,
        description="epochs between evaluations; the group stage clusters after every epoch, but "
        "computes label-free scores only then",
    )
    neighbors: Annotated[bool, Mark(shapes_rows=False)] = Field(
        True,
        description="find each sample's neighbours in the whole data set after the last epoch; "
        "takes time quadratic in the number of samples",
    )
    on_collapse: Literal["stop", "warn"] = Field(
        "stop",
        description="when the embeddings of all samples nearly coincide: end the run as failed, or "
        "log a warning and train on; a search never counts scores of a collapse",
    )
    snapshot_every: Annotated[Count | None, Mark(shapes_rows=False)] = Field(
        None,
        description="epochs between snapshots for figures, at evaluated epochs only; always one "
        "after the last epoch",
    )


class CheckpointConfig(Section):
    """When checkpoints are written."""

    mark: ClassVar[Mark] = Mark(shapes_rows=False)

    every: Count = Field(10, description="epochs between checkpoints; always one after the last")
    every_minutes: Positive | None = Field(
        30.0,
        description="minutes after the last checkpoint until one within an epoch; null for none",
    )
    keep: Count = Field(2, description="number of newest checkpoints kept")


class TrackingConfig(Section):
    """Weights & Biases. WANDB_MODE and WANDB_API_KEY are read from the environment."""

    mark: ClassVar[Mark] = Mark(shapes_rows=False)

    wandb: Literal["auto", "off"] = Field("auto", description="auto logs if an API key is known")
    project: str = Field("conr_ray", description="W&B project")
    checkpoint_artifact: bool = Field(
        False, description="log the last checkpoint as an artifact; in a search, the best trial's"
    )


class RunSections(Section):
    """The sections of every tree."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="of all randomness")
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    neighborhood: NeighborhoodConfig = NeighborhoodConfig()
    boundary: BoundaryConfig = BoundaryConfig()
    bank: BankConfig = BankConfig()
    optim: OptimConfig = OptimConfig()
    clustering: ClusteringConfig = ClusteringConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def pool_size(self) -> int:
        """Rows of the neighbour pool."""
        return self.optim.batch_size + self.bank.size

    @property
    def embeds_once(self) -> bool:
        """`ModelConfig.embeds_once`."""
        return self.model.embeds_once

    @property
    def trains_on_vectors(self) -> bool:
        """Whether the networks that train take vectors, not images."""
        return self.embeds_once or self.data.source == "vectors"

    @property
    def cosine_epochs(self) -> int:
        """Epochs of the learning rate's half cosine after the warm-up."""
        schedule = self.schedule
        return schedule.cosine_epochs or schedule.epochs - schedule.warmup_epochs

    @property
    def norm_rows(self) -> int | None:
        """Rows that batch normalisation takes together, None for the global batch."""
        rows = self.model.norm_batch
        return None if rows == self.optim.batch_size else rows

    @property
    def group_start_epoch(self) -> int | None:
        """First epoch of the group stage, None without one."""
        start = self.schedule.group_start
        return None if start == "never" else start
