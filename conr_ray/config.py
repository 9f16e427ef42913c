"""What a run is: one typed, validated tree.

Every default stands here once and follows the recipe of the CoNR paper (NeurIPS 2023) for CIFAR-10;
the presets write down what each other data set changes. Unknown fields are refused, and rules
between fields are checked when the tree is built, so a `RunConfig` that exists can be trained.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from conr_ray.errors import UserError

Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Where the images come from and how they are kept."""

    source: Literal["digits", "torchvision", "parquet", "folder"] = "torchvision"
    name: str | None = Field(None, description="torchvision data set: cifar10, cifar100, ...")
    path: str | None = Field(None, description="Parquet file, image folder or torchvision root")
    download: bool = Field(False, description="let torchvision fetch what is missing")
    splits: tuple[str, ...] | None = Field(None, description="splits to join; all where unset")
    classes: tuple[str, ...] | None = Field(None, description="sub-folders to read; all if unset")
    image_column: str = "image"
    label_column: str | None = Field("label", description="null ignores labels")
    limit: Count | None = Field(None, description="train on a fixed random subset of this size")
    stored_size: Count | None = Field(
        None, description="square pixels images are resized to; needed where their sizes differ"
    )
    placement: Literal["device", "host"] = Field(
        "device", description="keep all images on the device, or memory-mapped on the host"
    )


class ViewsConfig(_Section):
    """The random views. Amplitudes of 0 switch a transformation off."""

    size: Count = Field(32, description="pixels of a view's side")
    crop_scale: tuple[Fraction, Fraction] = (0.08, 1.0)
    crop_scale_group_stage: tuple[Fraction, Fraction] = (0.45, 1.0)
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip_probability: Probability = 0.5
    rotation: NonNegative = Field(0.0, description="largest angle, radians")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="largest change of scale")
    shear: NonNegative = 0.0
    shift: NonNegative = Field(0.0, description="largest shift, in half widths")
    jitter_probability: Probability = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.4
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale_probability: Probability = 0.2
    blur_probability: Probability = 0.0
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    noise: NonNegative = Field(0.0, description="standard deviation of added noise, of range 0-1")
    group_stage_strength: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0, description="factor on all amplitudes but the crop in the group stage"
    )


class ModelConfig(_Section):
    """The networks (paper section 3.1)."""

    backbone: Literal["resnet18", "resnet34", "convnet"] = "resnet18"
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="first layers of a ResNet")
    widths: tuple[Count, ...] = Field((32, 64, 64, 128), description="channels of the convnet")
    head_hidden_dim: Count = 4096
    embedding_dim: Count = 256
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.996, description="of the target network at the first step; rises to 1 by a cosine"
    )


class ScheduleConfig(_Section):
    """Epochs of the two stages."""

    epochs: Count = 1000
    group_start: Annotated[int, Field(ge=0)] | Literal["never"] = Field(
        800, description="first epoch of the group stage; 'never' is plain BYOL"
    )
    relax_epochs: Annotated[int, Field(ge=0)] = Field(
        50, description="epochs over which the kept fraction rises to 1"
    )
    warmup_epochs: Annotated[int, Field(ge=0)] = 50


class NeighborhoodConfig(_Section):
    """Which keys of the pool a prediction is pulled toward (paper section 3.2)."""

    kind: Literal["contextual", "euclidean"] = "contextual"
    k1: Count = Field(10, description="neighbours that make a row's context")
    k2: Count = Field(2, description="neighbours over which contexts are averaged")
    k: Count = Field(10, description="neighbours that enter the loss, the sample itself included")


class BoundaryConfig(_Section):
    """Filtering of samples near cluster boundaries (paper section 3.3)."""

    initial_fraction: Fraction = 0.8


class BankConfig(_Section):
    """The memory bank that widens the neighbour pool beyond the global batch."""

    size: Annotated[int, Field(ge=0)] = Field(0, description="0 is the paper's in-batch pool")


class OptimConfig(_Section):
    """SGD and its learning rates."""

    batch_size: Annotated[int, Field(ge=2)] = Field(512, description="global: over all workers")
    lr: Positive = Field(0.05, description="per 256 samples of the global batch")
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: NonNegative = 5e-4
    predictor_lr_factor: Positive = 10.0
    group_stage_lr_factor: Positive = 0.1
    group_stage_predictor_lr_factor: Positive = Field(
        1.0, description="of the predictor over the other layers, in the group stage"
    )
    group_loss_weight: Positive = Field(
        1.0, description="1/4 has the gradient of the published 4-GPU runs"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto is bf16 autocast on GPUs that have it, else fp32"
    )


class ClusteringConfig(_Section):
    """k-means on target embeddings: the pseudo-labels and the result."""

    num_clusters: Annotated[int, Field(ge=2)] | None = Field(
        None, description="number of labelled classes where unset"
    )
    restarts: Count = 4
    max_iterations: Count = 100


class EvaluationConfig(_Section):
    """When the whole data set is embedded and clustered."""

    every: Count = Field(10, description="epochs; every epoch in the group stage")


class CheckpointConfig(_Section):
    """When the state is written."""

    every: Count = Field(10, description="epochs")
    keep: Count = Field(2, description="newest checkpoints kept")


class TrackingConfig(_Section):
    """Weights & Biases. WANDB_MODE and WANDB_API_KEY are read from the environment."""

    wandb: Literal["auto", "off"] = "auto"
    project: str = "conr_ray"


class RunConfig(_Section):
    """Everything that decides what a run computes."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
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
        """Rows among which neighbours are found."""
        return self.optim.batch_size + self.bank.size

    @property
    def group_start_epoch(self) -> int | None:
        """First epoch of the group stage, None where there is none."""
        start = self.schedule.group_start
        return None if start == "never" else start

    @model_validator(mode="after")
    def _check_rules(self) -> RunConfig:
        for problem in _broken_rules(self):
            raise ValueError(problem)
        return self

    def to_yaml(self) -> str:
        """The resolved tree as YAML that `from_yaml` reads back unchanged."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def _broken_rules(config: RunConfig) -> Iterator[str]:
    """Rules between fields that `config` breaks, each as field, value and remedy."""
    near, schedule, data, views = (
        config.neighborhood,
        config.schedule,
        config.data,
        config.views,
    )
    if near.k2 > near.k1:
        yield f"neighborhood.k2={near.k2} exceeds neighborhood.k1={near.k1}: lower k2 or raise k1"
    for field, count in (("k1", near.k1), ("k", near.k)):
        if count > config.pool_size:
            yield (
                f"neighborhood.{field}={count} exceeds the neighbour pool of {config.pool_size} "
                f"rows: lower it or raise optim.batch_size"
            )
    if config.bank.size:
        yield f"bank.size={config.bank.size}: there is no memory bank yet; set it to 0"
    start = config.group_start_epoch
    if start is not None and start >= schedule.epochs:
        yield (
            f"schedule.group_start={start} is not before the end at schedule.epochs="
            f"{schedule.epochs}: lower it, or set it to never for plain BYOL"
        )
    if schedule.warmup_epochs > schedule.epochs:
        yield (
            f"schedule.warmup_epochs={schedule.warmup_epochs} exceeds schedule.epochs="
            f"{schedule.epochs}: lower it"
        )
    for name in ("crop_scale", "crop_scale_group_stage", "crop_ratio", "blur_sigma"):
        low, high = getattr(views, name)
        if low > high:
            yield f"views.{name}=[{low}, {high}] is not an interval: put the smaller value first"
    if data.source in ("parquet", "folder") and data.path is None:
        yield f"data.path is not set: data.source={data.source} needs the path of the {data.source}"
    if data.source == "torchvision" and data.name is None:
        yield "data.name is not set: data.source=torchvision needs a name such as cifar10"


def field_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """Dotted names of all fields of the tree, such as `neighborhood.k1`."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def check_field(name: str) -> None:
    """Raise UserError, with the nearest name, where `name` is no field of the tree."""
    known = field_names()
    if name in known:
        return
    ends = {field.rpartition(".")[2]: field for field in known}
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [ends[end] for end in difflib.get_close_matches(name, ends, n=1, cutoff=0.6)]
    hint = f"did you mean {near[0]}?" if near else "see docs/config.md for the fields"
    raise UserError(f"{name}: no such field; {hint}")


def get_field(config: RunConfig, name: str) -> Any:
    """Value of the dotted field `name`."""
    check_field(name)
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def build(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The validated config of a nested mapping, with dotted overrides on top.

    Raises UserError with one line: the field, the value and the remedy.
    """
    if not isinstance(tree, Mapping):
        raise UserError(f"a config is a mapping of sections, not {type(tree).__name__}")
    merged = {key: dict(v) if isinstance(v, Mapping) else v for key, v in tree.items()}
    for name, value in (overrides or {}).items():
        check_field(name)
        section, _, leaf = name.rpartition(".")
        (merged.setdefault(section, {}) if section else merged)[leaf] = value
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(_one_line(error)) from None


def override(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """`config` with dotted fields replaced, validated anew."""
    return build(config.model_dump(mode="json"), overrides)


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    # Union members add their own names to the location: only field names are of interest.
    known = field_names()
    parts = [str(part) for part in first["loc"]]
    name = ".".join(parts)
    while parts and ".".join(parts) not in known and first["type"] != "extra_forbidden":
        parts.pop()
    name = ".".join(parts) or name
    if first["type"] == "extra_forbidden":
        try:
            check_field(name)
        except UserError as unknown:
            return str(unknown)
    message = first["msg"].removeprefix("Value error, ")
    if not name:
        return message
    return f"{name}={first['input']!r}: {message[0].lower()}{message[1:]}"


def from_yaml(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config written in `text`; `source` names it in errors."""
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    return build(tree or {}, overrides)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config in the file `path`, with dotted overrides on top."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; name a config.yaml") from None
    return from_yaml(text, str(path), overrides)


def preset_names() -> list[str]:
    """Names that `load_preset` takes."""
    files = resources.files("conr_ray").joinpath("presets").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_preset(name: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The complete run called `name`, with dotted overrides on top.

    Raises UserError for an unknown preset, field or value.
    """
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(preset_names())}"
        raise UserError(f"preset {name}: no such preset; {hint}")
    text = resources.files("conr_ray").joinpath("presets", f"{name}.yaml").read_text()
    return from_yaml(text, f"preset {name}", overrides)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """Dotted overrides of `field=value` words; values are YAML."""
    overrides: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write field=value, for example optim.lr=0.1")
        check_field(name)
        try:
            overrides[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UserError(f"--set {setting}: the value is not YAML; quote it") from None
        # YAML 1.1 reads 1e-3 as a string: a number needs no dot here.
        if isinstance(overrides[name], str):
            try:
                number = float(text)
            except ValueError:
                continue
            if math.isfinite(number):
                overrides[name] = number
    return overrides


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """Fields in which two configs differ, as `field: old -> new`."""
    pairs = ((name, get_field(old, name), get_field(new, name)) for name in field_names())
    return [f"{name}: {before} -> {after}" for name, before, after in pairs if before != after]
