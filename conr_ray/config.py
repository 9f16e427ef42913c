"""What a run is: one typed, validated tree.

Every default stands here once and follows the recipe of the CoNR paper (NeurIPS 2023) for CIFAR-10;
the presets write down what each other data set changes. Unknown fields are refused, and rules
between fields are checked when the tree is built, so a `RunConfig` that exists can be trained.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from conr_ray.errors import UserError

Fraction = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _off_in_yaml(value: Any) -> Any:
    """YAML 1.1 reads a bare off as False."""
    return "off" if value is False else value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Where the images come from and how they are kept."""

    source: Literal["digits", "torchvision", "parquet", "folder"] = "torchvision"
    name: str | None = Field(None, description="torchvision data set: cifar10, cifar100, ...")
    path: str | None = Field(None, description="Parquet file, image folder or torchvision root")
    download: bool = Field(False, description="let torchvision fetch what is missing")
    splits: Names | None = Field(None, description="splits to join; all where unset")
    classes: Names | None = Field(None, description="sub-folders to read; all where unset")
    image_column: str = Field("image", description="of a Parquet file")
    label_column: str | None = Field("label", description="for metrics only; null ignores labels")
    limit: Count | None = Field(None, description="train on a fixed random subset of this size")
    stored_size: Count | None = Field(
        None, description="square pixels images are resized to; needed where their sizes differ"
    )
    placement: Literal["device", "host"] = Field(
        "device", description="keep all images on the device, or memory-mapped on the host"
    )


class ViewsConfig(_Section):
    """The random views. Amplitudes of 0 switch a transformation off."""

    size: Count = Field(32, description="side of a view, pixels")
    crop_scale: tuple[Fraction, Fraction] = Field((0.08, 1.0), description="share of the area")
    crop_scale_group_stage: tuple[Fraction, Fraction] = (0.45, 1.0)
    crop_ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="width over height")
    flip_probability: Probability = Field(0.5, description="of a horizontal flip")
    rotation: NonNegative = Field(0.0, description="largest angle, radians")
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="largest change of scale")
    shear: NonNegative = Field(0.0, description="largest shear, as the tangent of its angle")
    shift: NonNegative = Field(0.0, description="largest shift, in half widths")
    jitter_probability: Probability = Field(0.8, description="of all four changes below")
    brightness: NonNegative = Field(0.4, description="largest change, as a factor's part beyond 1")
    contrast: NonNegative = Field(0.4, description="as brightness")
    saturation: NonNegative = Field(0.4, description="as brightness; colour images only")
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(0.1, description="largest change, turns")
    grayscale_probability: Probability = Field(0.2, description="colour images only")
    blur_probability: Probability = Field(0.0, description="of a Gaussian blur")
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="width, pixels")
    noise: NonNegative = Field(0.0, description="standard deviation of added noise, of range 0-1")
    group_stage_strength: Annotated[float, Field(ge=0, le=2)] = Field(
        1.0, description="factor on all amplitudes but the crop in the group stage"
    )


class ModelConfig(_Section):
    """The networks (paper section 3.1)."""

    backbone: Literal["resnet18", "resnet34", "convnet"] = "resnet18"
    stem: Literal["cifar", "imagenet"] = Field("cifar", description="cifar keeps the resolution")
    widths: Counts = Field((32, 64, 64, 128), description="channels of the convnet's layers")
    head_hidden_dim: Count = Field(4096, description="hidden width of projector and predictor")
    embedding_dim: Count = Field(256, description="width of their outputs")
    momentum: Annotated[float, Field(ge=0, le=1)] = Field(
        0.996, description="of the target network at the first step; rises to 1 by a cosine"
    )


class ScheduleConfig(_Section):
    """Epochs of the two stages."""

    epochs: Count = Field(1000, description="of both stages together")
    group_start: Whole | Literal["never"] = Field(
        800, description="first epoch of the group stage; 'never' is plain BYOL"
    )
    relax_epochs: Whole = Field(50, description="in which the kept fraction rises to 1")
    warmup_epochs: Whole = Field(50, description="in which the learning rate rises from 0")


class NeighborhoodConfig(_Section):
    """Which keys of the pool a prediction is pulled toward (paper section 3.2)."""

    kind: Literal["contextual", "euclidean"] = Field("contextual", description="ConAff, or nearest")
    k1: Count = Field(10, description="neighbours that make a row's context")
    k2: Count = Field(2, description="neighbours over which contexts are averaged; at most k1")
    k: Count = Field(10, description="neighbours that enter the loss, the sample itself included")


class BoundaryConfig(_Section):
    """Filtering of samples near cluster boundaries (paper section 3.3)."""

    initial_fraction: Fraction = Field(0.8, description="of the batch kept at group_start")


class BankConfig(_Section):
    """The memory bank that widens the neighbour pool beyond the global batch."""

    size: Whole = Field(
        0, description="samples whose latest embedding is kept; 0 is the paper's in-batch pool"
    )
    dtype: Literal["fp32", "bf16"] = Field("fp32", description="of the rows")
    sharded: bool = Field(
        True, description="deal the rows out to the workers; else each one keeps and searches all"
    )


class OptimConfig(_Section):
    """SGD and its learning rates."""

    batch_size: Annotated[int, Field(ge=2)] = Field(512, description="global: over all workers")
    lr: Positive = Field(0.05, description="per 256 samples of the global batch")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(5e-4, description="L2 penalty on all parameters")
    predictor_lr_factor: Positive = Field(10.0, description="on the predictor's lr; instance stage")
    group_stage_lr_factor: Positive = Field(0.1, description="on lr; group stage")
    group_stage_predictor_lr_factor: Positive = Field(1.0, description="predictor; group stage")
    group_loss_weight: Positive = Field(
        1.0, description="factor on the loss; 1/4 has the gradient of the published 4-GPU runs"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto is bf16 autocast on GPUs that have it, else fp32"
    )


class ClusteringConfig(_Section):
    """k-means on target embeddings: the pseudo-labels and the result."""

    num_clusters: Annotated[int, Field(ge=2)] | None = Field(
        None, description="number of labelled classes where unset"
    )
    restarts: Count = Field(10, description="k-means++ starts, of which the best is kept")
    max_iterations: Count = Field(100, description="of each start")


class EvaluationConfig(_Section):
    """When the whole data set is embedded and clustered."""

    every: Count = Field(10, description="epochs between; the group stage has it each epoch")
    neighbors: bool = Field(
        True,
        description="find each image's neighbours in the whole data set after the last epoch; "
        "time grows with the square of their number",
    )
    snapshot_every: Count | None = Field(
        None,
        description="epochs between snapshots for figures, at epochs that are evaluated; "
        "one after the last epoch in any case",
    )


class CheckpointConfig(_Section):
    """When the state is written."""

    every: Count = Field(10, description="epochs between; also after the last one")
    keep: Count = Field(2, description="newest checkpoints kept")


class TrackingConfig(_Section):
    """Weights & Biases. WANDB_MODE and WANDB_API_KEY are read from the environment."""

    wandb: Annotated[Literal["auto", "off"], BeforeValidator(_off_in_yaml)] = Field(
        "auto", description="auto logs where a key is known"
    )
    project: str = Field("conr_ray", description="W&B project")
    checkpoint_artifact: bool = Field(
        False, description="log the last checkpoint as an artifact; of a search the best trial's"
    )


class RunConfig(_Section):
    """Everything that decides what a run computes."""

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

    def content_hash(self) -> str:
        """Equal for equal configs, and for no others."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """The resolved tree as YAML that `from_yaml` reads back unchanged."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def _broken_rules(config: RunConfig) -> Iterator[str]:
    """Rules between fields that `config` breaks, each as field, value and remedy."""
    near, schedule, data, views = config.neighborhood, config.schedule, config.data, config.views
    if near.k2 > near.k1:
        yield f"neighborhood.k2={near.k2} exceeds neighborhood.k1={near.k1}: lower k2 or raise k1"
    for field, count in (("k1", near.k1), ("k", near.k)):
        if count > config.pool_size:
            yield (
                f"neighborhood.{field}={count} exceeds the neighbour pool of {config.pool_size} "
                f"rows: lower it, or raise optim.batch_size or bank.size"
            )
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
    if data.source == "torchvision" and data.name is None:
        yield "data.name is not set: data.source=torchvision needs a name such as cifar10"
    if data.source != "digits" and data.path is None:
        what = "folder that torchvision reads" if data.source == "torchvision" else data.source
        yield f"data.path is not set: data.source={data.source} needs the path of the {what}"


@functools.cache
def sections() -> dict[str, type[BaseModel]]:
    """The sections of the tree by name."""
    kinds = {name: field.annotation for name, field in RunConfig.model_fields.items()}
    return {n: k for n, k in kinds.items() if isinstance(k, type) and issubclass(k, BaseModel)}


@functools.cache
def field_names() -> list[str]:
    """Dotted names of all fields of the tree, such as `neighborhood.k1`."""
    leaves = {name: kind.model_fields for name, kind in sections().items()}
    return [
        f"{name}.{leaf}" if leaf else name
        for name in RunConfig.model_fields
        for leaf in leaves.get(name, [""])
    ]


def check_field(name: str) -> None:
    """Raise UserError, with the nearest names, where `name` is no field of the tree."""
    if name in field_names():
        return
    if name in sections():
        fields = ", ".join(sections()[name].model_fields)
        raise UserError(f"{name}: a section, not a field; choose from its {fields}")
    near = _nearest_names(name)
    hint = f"did you mean {' or '.join(near)}?" if near else "see docs/config.md for the fields"
    raise UserError(f"{name}: no such field; {hint}")


def _nearest_names(name: str) -> list[str]:
    """Fields, or sections, that `name` may stand for: the last word counts most."""
    section, _, leaf = name.rpartition(".")
    words = field_names() if section else [*field_names(), *sections()]

    def likeness(field: str) -> float:
        its_section, _, its_leaf = field.rpartition(".")
        same = difflib.SequenceMatcher(None, leaf, its_leaf).ratio()
        home = difflib.SequenceMatcher(None, section, its_section).ratio() if section else 0.0
        return same + home / 2 if same >= 0.5 else 0.0

    scores = {word: likeness(word) for word in words}
    best = max(scores.values())
    return [word for word, score in scores.items() if score == best > 0]


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
    for section, fields in merged.items():
        if section in sections() and not isinstance(fields, dict):
            example = next(iter(sections()[section].model_fields))
            raise UserError(f"{section}={fields!r}: a section holds fields: {{{example}: ...}}")
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
    first, *others = error.errors()
    # Union members add their own names to the location: only field names are of interest.
    known = field_names()
    parts = [str(part) for part in first["loc"]]
    name = ".".join(parts)
    if first["type"] == "extra_forbidden":
        try:
            check_field(name)
        except UserError as unknown:
            return str(unknown)
        section, _, leaf = name.rpartition(".")
        return f"{name}: in a file, write it below its section, {section}: {{{leaf}: ...}}"
    while parts and ".".join(parts) not in known:
        parts.pop()
    name = ".".join(parts) or name
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        message = "too few values: write two"
    if not name:
        return message
    for other in others:
        if ".".join(map(str, other["loc"][:-1])) == name and other["input"] is first["input"]:
            message += f", or {other['msg'].removeprefix('Input should be ')}"
    return f"{name}={first['input']!r}: {message[0].lower()}{message[1:]}"


def parse_yaml(text: str, source: str) -> Any:
    """The tree in `text`; `source` names it in the UserError of text that is not YAML."""
    try:
        return yaml.safe_load(text)
    # A date that does not exist is a ValueError.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path, option: str, remedy: str) -> Any:
    """The tree in the file that `option` names; errors end with `remedy`."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(f"{option} {path}: {reason}; {remedy}") from None
    return parse_yaml(text, f"{option} {path}")


def from_yaml(text: str, source: str, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config written in `text`; `source` names it in errors."""
    return build(parse_yaml(text, source) or {}, overrides)


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The config in the file `path`, with dotted overrides on top."""
    return build(read_yaml(path, "--config", "name a config.yaml") or {}, overrides)


@functools.cache
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
    return build(_preset(name), overrides)


# A search builds a config for each point that it looks at.
@functools.cache
def _preset(name: str) -> Mapping[str, Any]:
    text = resources.files("conr_ray").joinpath("presets", f"{name}.yaml").read_text()
    tree: Mapping[str, Any] = parse_yaml(text, f"preset {name}")
    return tree


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
        except (yaml.YAMLError, ValueError):
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
