"""The sections of a run's config and every default.

Defaults follow the recipe of the CoNR paper (NeurIPS 2023) for CIFAR-10; the presets hold the
changes for other data sets. Frameworks declare their own sections in
`conr_ray.method.frameworks`.
"""

from __future__ import annotations

import difflib
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from conr_ray.config.cluster_numbers import checked_numbers
from conr_ray.fields import (
    Count,
    Counts,
    Fraction,
    Mark,
    Names,
    NonNegative,
    Positive,
    Probability,
    Section,
    Whole,
)
from conr_ray.method.backbone_names import (
    BACKBONE_NAMES,
    HUB,
    NONE,
    PACKAGE,
    TIMM,
    embeds_once,
    is_timm,
)

# Of an image in the decoded copy: no run trains on more, and a small file can ask for any number.
_LARGEST_SIDE = 4096
MOST_STORED_PIXELS = _LARGEST_SIDE**2

_IMAGES = ("digits", "torchvision", "parquet", "folder")
_FOR_IMAGES = Mark(used_by=("data.source", _IMAGES))
_FOR_ALL = Mark(used_by=("data.source", (*_IMAGES, "vectors")))
_TIMM_NAME = f"{TIMM}NAME"
_GROUP_STAGE = Mark(stage="group")
_STRENGTH = Mark(stage="group", used_by=_FOR_ALL.used_by)


Numbers = Annotated[str, AfterValidator(checked_numbers)]
_HEAD = Mark(used_by=("model.train", ("head",)))


def _source(*names: str) -> Mark:
    return Mark(used_by=("data.source", names))


def _backbone(*names: str) -> Mark:
    return Mark(used_by=("model.backbone", names))


# Of a view for our own backbones, pixels.
OWN_SIDE = 32

_Side = Annotated[int, Field(ge=1, le=_LARGEST_SIDE)]


class DataConfig(Section):
    """Where the images or vectors come from and how they are stored."""

    source: Literal["digits", "torchvision", "parquet", "folder", "vectors"] = "torchvision"
    name: Annotated[str | None, _source("torchvision")] = Field(
        None, description="torchvision data set: cifar10, cifar100, ..."
    )
    path: Annotated[str | None, _source("torchvision", "parquet", "folder", "vectors")] = Field(
        None, description="Parquet file, image folder or torchvision root"
    )
    download: Annotated[bool, _source("torchvision")] = Field(
        False, description="let torchvision download missing files"
    )
    splits: Annotated[Names | None, _source("torchvision", "parquet", "vectors")] = Field(
        None, description="splits to join; all if unset"
    )
    classes: Annotated[Names | None, _source("folder")] = Field(
        None, description="sub-folders to read; all if unset"
    )
    image_column: Annotated[str, _source("parquet")] = Field(
        "image", description="column of a Parquet file"
    )
    vector_column: Annotated[str, _source("vectors")] = Field(
        "embedding", description="column of a Parquet file: lists of floats of equal length"
    )
    label_column: str | None = Field(
        "label", description="for metrics, and for num_clusters if unset; null ignores labels"
    )
    limit: Count | None = Field(None, description="train on a fixed random subset of this size")
    stored_size: Annotated[_Side | None, _FOR_IMAGES] = Field(
        None, description="resize images to squares of this side, pixels; needed if sizes differ"
    )
    placement: Literal["device", "host"] = Field(
        "device", description="keep all samples on the device, or memory-mapped on the host"
    )
    embedded_views: Annotated[int, Field(ge=0, le=1000), _HEAD] = Field(
        0,
        description="random views of each image that the backbone embeds beside the plain one; "
        "training draws from them",
    )

    @property
    def title(self) -> str:
        """What people call the data: the name of the data set, or of the folder or file."""
        if self.source == "torchvision" and self.name is not None:
            return self.name
        last = (self.path or "").rstrip("/").rpartition("/")[2]
        return last.removesuffix(".parquet") or self.source


class ViewsConfig(Section):
    """The random views. An amplitude of 0 switches a transformation off."""

    mark: ClassVar[Mark] = Mark(changeable=True, used_by=_FOR_IMAGES.used_by)

    size: Annotated[Count | None, Mark(changeable=False)] = Field(
        None,
        description="side of a view, pixels; unset is 32, or what a model of timm was made for",
    )
    sizes: tuple[tuple[Whole, Count], ...] = Field(
        (), description="epochs, and the side of training views from each on; size before the first"
    )
    crop_scale: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="share of the area")
    crop_scale_group_stage: Annotated[tuple[Fraction, Fraction], _GROUP_STAGE] = (0.45, 1.0)
    crop_ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="width over height")
    flip_probability: Probability = Field(0.5, description="of a horizontal flip")
    rotation: NonNegative = Field(0.0, description="maximum angle, radians")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="maximum change of scale")
    shear: NonNegative = Field(0.0, description="maximum shear, tangent of the angle")
    shift: NonNegative = Field(0.0, description="maximum shift, in half widths")
    jitter_probability: Probability = Field(0.8, description="of applying the next four changes")
    brightness: NonNegative = Field(0.4, description="maximum deviation of the factor from 1")
    contrast: NonNegative = Field(0.4, description="as brightness")
    saturation: NonNegative = Field(0.4, description="as brightness; colour images only")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="maximum change, turns")
    grayscale_probability: Probability = Field(0.2, description="colour images only")
    blur_probability: Probability = Field(0.0, description="of a Gaussian blur")
    blur_sigma: tuple[Positive, Positive] = Field(
        (0.1, 2.0), description="standard deviation, pixels"
    )
    noise: Annotated[NonNegative, _FOR_ALL] = Field(
        0.0, description="standard deviation of added noise; on pixels in 0-1 or scaled vectors"
    )
    dropout: Annotated[float, Field(ge=0, lt=1), _source("vectors")] = Field(
        0.0, description="share of a vector's features set to their mean"
    )
    group_stage_strength: Annotated[float, Field(ge=0, le=2), _STRENGTH] = Field(
        1.0, description="group stage: factor on all amplitudes except crop and blur"
    )

    def size_in(self, epoch: int) -> int | None:
        """Side of a training view in `epoch`, pixels; None for a model's own."""
        return next((side for first, side in reversed(self.sizes) if epoch >= first), self.size)

    @classmethod
    def unused_when_embedded(cls, num_views: int) -> frozenset[str]:
        """Fields without effect on images that are embedded before training.

        With `num_views` random views of each, those have none that say what changes during
        training; without, none that say how images are changed.
        """
        of_training = {"sizes", "crop_scale_group_stage"}
        of_vectors = {"noise", "dropout", "group_stage_strength"}
        every = frozenset(cls.model_fields) - of_vectors - {"size"}
        return frozenset(of_training) if num_views else every


def _known_backbone(name: str) -> str:
    """Refuse what is no backbone; whether timm has a model is for timm to say, later."""
    if name in BACKBONE_NAMES or (is_timm(name) and name != TIMM):
        return name
    near = difflib.get_close_matches(name.lower(), BACKBONE_NAMES, n=1)
    known = f"choose from {', '.join(BACKBONE_NAMES)} and {_TIMM_NAME}"
    raise ValueError(f"no such backbone; {f'did you mean {near[0]}?' if near else known}")


class ModelConfig(Section):
    """The networks (paper section 3.1)."""

    framework: str = Field(
        "byol",
        description="self-supervised framework; its own fields are in the section of its name",
    )
    backbone: Annotated[str, AfterValidator(_known_backbone)] = Field(
        "resnet18",
        description="resnet18, resnet34, convnet; mlp or identity for vectors; timm:NAME for any "
        "model of timm, with its own size and colours of images",
    )
    weights: Annotated[str, _backbone(_TIMM_NAME)] = Field(
        HUB,
        description="what a model of timm begins with, unless init is set: hub (timm's own), "
        "package:NAME (the file in an installed package), path or URI of a file, or none",
    )
    train: Annotated[
        Literal["all", "last_blocks", "head"], _backbone("resnet18", "resnet34", _TIMM_NAME)
    ] = Field(
        "all",
        description="which part of the backbone learns: all, its last stage and what follows, or "
        "nothing, so that only the heads do; images then pass through a model of timm once, before "
        "training",
    )
    stem: Annotated[Literal["cifar", "imagenet"], _backbone("resnet18", "resnet34")] = Field(
        "cifar", description="cifar keeps the resolution"
    )
    widths: Annotated[Counts, _backbone("convnet", "mlp")] = Field(
        (32, 64, 64, 128), description="channels of the convnet's layers, or widths of the mlp's"
    )
    head_hidden_dim: Count = Field(
        4096, description="hidden width of projector and predictor, except SimSiam's predictor"
    )
    embedding_dim: Count = Field(256, description="output width of projector and predictor")
    init: str | None = Field(
        None,
        description="weights to start from: folder or URI of a run, or a file .safetensors, .pt or "
        ".pth of its export or with torchvision's names; drawn by the seed if unset",
    )
    norm_batch: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="rows whose statistics batch normalisation takes together; the global batch if "
        "unset",
    )

    @property
    def embeds_once(self) -> bool:
        """`backbone_names.embeds_once`."""
        return embeds_once(self.backbone, self.train, self.init)

    @property
    def weights_file(self) -> str | None:
        """The path or URI of a file that `weights` is; None if it is none."""
        named = self.weights in (HUB, NONE) or self.weights.startswith(PACKAGE)
        return None if named else self.weights


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


class BoundaryConfig(Section):
    """Filtering of samples near cluster boundaries (paper section 3.3)."""

    mark: ClassVar[Mark] = Mark(stage="group", changeable=True)

    initial_fraction: Fraction = Field(0.8, description="share of the batch kept at group_start")
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
    """k-means on target embeddings: pseudo-labels and final clusters."""

    num_clusters: Annotated[int, Field(ge=2)] | Numbers | None = Field(
        None,
        description="a number; auto (2 to 30) or a range, `5..30`: chosen without labels; if "
        "unset, the number of labelled classes",
    )
    restarts: Count = Field(10, description="k-means++ starts; the best is kept")
    max_iterations: Count = Field(100, description="per start")
    start_rows: Count = Field(
        8192,
        description="rows on which k-means starts are compared; more than the data set uses all",
    )
    warm_start: Annotated[bool, Mark(stage="group", changeable=True)] = Field(
        True,
        description="group stage: k-means continues from the centres of the epoch before, unless a "
        "fresh start fits better; after the last epoch all restarts are made",
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
