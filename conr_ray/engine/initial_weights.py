"""Weights that a run starts from: those of another run, of a file, or of a model of timm.

`model.init` is an encoder: its backbone, which has to fit, and its projector, if that fits too.
`model.weights` is the backbone of a model of timm alone, which counts where `model.init` is unset.
All else starts as in any run: the predictor, a queue, the optimiser, the epochs. Online and target
network start equal. Normalisation keeps its running statistics, but not the count of batches.

initial_weights.json in the directory of a run tells source, digest and licence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conr_ray.config import ModelConfig, RunConfig
from conr_ray.data.store import DataSet
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.engine.training_state import backbone_of
from conr_ray.errors import StorageError, UserError
from conr_ray.fields import short
from conr_ray.frozen import keep_backbone
from conr_ray.method.backbone_names import INITIAL_WEIGHTS, NONE, is_timm
from conr_ray.method.collectives import all_reduce_sum, broadcast_first
from conr_ray.method.frameworks import framework_class
from conr_ray.method.networks import portable_names
from conr_ray.pretrained import check_backbone, load_pretrained
from conr_ray.pretrained.fitting import Shapes, difference
from conr_ray.pretrained.weights_file import SUFFIXES, bytes_of, digest_of, tensors_of
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

# Of an export, and of torchvision's classifier.
_LEFT_OUT = ("centers", "boundary_centers", "cluster_numbers", "fc.weight", "fc.bias")
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class InitialWeights:
    """The weights of an encoder.

    Attributes:
        source: a value of `field`.
        tensors: by the names of `portable_names`, float32, on the CPU, finite.
        field: `model.init` or `model.weights`.
        origin: where the weights were found, for people.
        licence: of the weights, as far as it is known.
        note: how names were matched, for people; empty if they are those of the network.
    """

    source: str
    tensors: dict[str, Tensor]
    field: str = "model.init"
    origin: str | None = None
    licence: str | None = None
    note: str = ""

    @classmethod
    def of(cls, model: ModelConfig, size: int | None) -> InitialWeights | None:
        """Those that a run of `model` on views of `size` starts from; None if all are drawn.

        Raises:
            UserError: they are not there, cannot be read, do not fit or are not all finite.
        """
        if not has_initial_weights(model):
            return None
        if model.init is not None:
            return cls.read(model.init)
        found = load_pretrained(model.backbone, model.weights, size)
        return cls(
            model.weights, found.tensors(), "model.weights", found.source, found.licence, found.note
        )

    @classmethod
    def read(cls, source: str) -> InitialWeights:
        """Those of the newest checkpoint of a run, or of a file, by the suffix of its name.

        A run's and its export's are the same: those of the network that it clusters with.

        Raises:
            UserError: there are none, or they cannot be read, or not all are finite.
        """
        try:
            if source.endswith(SUFFIXES):
                if (data := bytes_of(source)) is None:
                    raise UserError("there is no such file: give one, or the folder of a run")
                named = _portable(tensors_of(source, data))
            else:
                named = portable_names(_run_at(source).state.framework.embedding_encoder)
            kept = {n: _as_float32(n, t) for n, t in named.items() if not n.endswith(_COUNTER)}
        except UserError as error:
            raise UserError(f"model.init={short(source)}: {error}") from None
        return cls(source, kept)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and values, in hexadecimal: the same wherever they are."""
        return digest_of(self.tensors)

    def fitted(self, config: RunConfig, row_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """What a run of `config` on samples of `row_shape` takes.

        Raises:
            UserError: the backbone does not fit; it names the tensors, and fields that do.
        """
        wanted, found = _shapes(config, row_shape), _shapes_of(self.tensors)
        parts = [_split(shapes) for shapes in (wanted, found)]
        (backbone, projector), (own_backbone, own_projector) = parts
        if backbone != own_backbone:
            raise UserError(
                f"model.init={short(self.source)}: does not fit model.backbone="
                f"{config.model.backbone}: {difference(backbone, own_backbone)}: "
                + _remedy(config, row_shape, own_backbone)
            )
        taken = backbone | (projector if projector == own_projector else {})
        if not taken:
            raise UserError(
                f"model.init={short(self.source)}: does not fit: model.backbone="
                f"{config.model.backbone} has no weights, and of the projector "
                f"{difference(projector, own_projector)}: set model.head_hidden_dim and "
                "model.embedding_dim to those of the weights"
            )
        return {name: self.tensors[name] for name in taken}

    def record(self, directory: Folder) -> None:
        """Write to the directory of a run what it started from."""
        told: dict[str, str | None] = {"source": self.source, "sha256": self.digest}
        if self.field != "model.init":
            told |= {"field": self.field, "found": self.origin, "licence": self.licence}
            told |= {"note": self.note} if self.note else {}
        directory.write_text(INITIAL_WEIGHTS, json.dumps(told) + "\n")


def record_backbone(data: DataSet, config: RunConfig, directory: RunDirectory) -> None:
    """Keep the weights that have embedded a run's images, and write what they are to its directory.

    Nothing is done for a run whose backbone trains, or which has none.
    """
    if data.backbone is None:
        return
    keep_backbone(data, directory)
    facts = data.backbone
    told = {"source": config.model.weights, "sha256": facts["digest"], "field": "model.weights"}
    told |= {"found": facts["source"], "licence": facts["licence"]}
    if directory.initial_weights() != told:
        directory.write_text(INITIAL_WEIGHTS, json.dumps(told) + "\n")


def agreed_weights(config: RunConfig, device: torch.device) -> InitialWeights | None:
    """What a run of `config` starts from, read by each of its workers; None if all is drawn.

    Raises:
        UserError: on all workers, if one of them cannot read them, or finds others.
    """
    if not has_initial_weights(config.model):
        return None
    weights: InitialWeights | None = None
    failure: UserError | None = None
    try:
        weights = InitialWeights.of(config.model, config.views.size)
    except UserError as error:
        failure = error
    mine = torch.tensor(int(weights.digest[:15], 16) if weights else 0, device=device)
    apart = (mine != broadcast_first(mine)).to(torch.float32)
    if failure is not None:
        apart.fill_(1)
    if all_reduce_sum(apart) == 0:
        return weights
    model = config.model
    field, source = ("init", model.init) if model.init else ("weights", model.weights)
    raise failure or UserError(
        f"model.{field}={short(source)}: another worker cannot read it, or finds other weights "
        "there: give s3://bucket/folder, or a folder that all nodes mount"
    )


def has_initial_weights(model: ModelConfig) -> bool:
    """Whether a run of `model` starts from weights that are not drawn by its seed."""
    of_timm = is_timm(model.backbone) and model.weights != NONE and not model.embeds_once
    return model.init is not None or of_timm


def check_initial_weights(config: RunConfig, row_shape: tuple[int, ...]) -> None:
    """Tell how the weights fit that a run of `config` on samples of `row_shape` starts from.

    Raises:
        UserError: they do not, or cannot be read, or timm has no such model.
    """
    if is_timm(config.model.backbone) and not config.embeds_once:
        check_backbone(config.model.backbone, config.views)
    weights = InitialWeights.of(config.model, config.views.size)
    if weights is not None:
        weights.fitted(config, row_shape)
        if weights.note:
            disk.tell(f"{weights.field}={short(weights.source)}: {weights.note}")


def weights_digest(model: ModelConfig, size: int | None) -> str | None:
    """The digest of what a run of `model` on views of `size` starts from; None if all is drawn."""
    weights = InitialWeights.of(model, size)
    return None if weights is None else weights.digest


def _run_at(source: str) -> TrainedRun:
    folder = source if "://" in source else str(Path(source).expanduser())
    try:
        return TrainedRun.load(folder)
    except StorageError:
        raise
    except UserError as error:
        problem, _, remedy = str(error).rpartition(": ")
        if remedy.startswith("resume the run"):
            raise
        remedy = f"give a run that this version reads, or a file {', '.join(SUFFIXES)}"
        raise UserError(f"{problem}: {remedy}") from None


def _portable(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an export or with torchvision's names by those of `portable_names`."""
    above = "" if any(name.startswith("backbone.") for name in named) else "backbone."
    kept = {above + name: tensor for name, tensor in named.items() if name not in _LEFT_OUT}
    # Models of timm may have a part of this name themselves, beside others.
    if not all(n.startswith("backbone.layers.") for n in kept if n.startswith("backbone.")):
        return kept
    return {re.sub(r"^backbone\.layers\.", "backbone.", n): tensor for n, tensor in kept.items()}


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    shown = short(name.removeprefix("backbone."))
    strided = tensor.layout is torch.strided and not tensor.is_meta
    if not (strided and tensor.is_floating_point()):
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{shown} holds no floats but {kind}: give the weights of a network")
    kept = tensor.detach().to(torch.float32)
    if not bool(kept.isfinite().all()):
        raise UserError(f"{shown} holds NaN or infinity: give weights from before it diverged")
    return kept


def _shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(t.shape) for name, t in tensors.items() if not name.endswith(_COUNTER)}


def _shapes(config: RunConfig, row_shape: tuple[int, ...]) -> Shapes:
    """Those of the encoder of `config`."""
    model = config.model
    with torch.device("meta"):
        framework = framework_class(model.framework)(
            config.framework,
            backbone_of(config, row_shape),
            model.head_hidden_dim,
            model.embedding_dim,
        )
    return _shapes_of(portable_names(framework.embedding_encoder))


def _split(shapes: Shapes) -> tuple[Shapes, Shapes]:
    """Those of the projector apart, last."""
    projector = {n: shape for n, shape in shapes.items() if n.startswith("projector.")}
    return {n: shape for n, shape in shapes.items() if n not in projector}, projector


def _remedy(config: RunConfig, row_shape: tuple[int, ...], backbone: Shapes) -> str:
    """Fields with which a run would have the backbone, if any would."""
    layers = sorted(
        (int(match[1]), shape[0])
        for name, shape in backbone.items()
        if len(shape) > 1 and (match := re.fullmatch(r"backbone\.(\d+)\.weight", name))
    )
    choices: list[dict[str, Any]] = []
    if len(row_shape) == 3:
        stems = ("cifar", "imagenet")
        choices += [{"backbone": b, "stem": s} for b in ("resnet18", "resnet34") for s in stems]
    if layers:
        kind = "convnet" if len(row_shape) == 3 else "mlp"
        choices.append({"backbone": kind, "widths": tuple(width for _, width in layers)})
    for choice in choices:
        model = config.model.model_copy(update=choice)
        other = config.model_copy(update={"model": model})
        if _split(_shapes(other, row_shape))[0] == backbone:
            changed = {k: v for k, v in choice.items() if getattr(config.model, k) != v}
            return "set " + " and ".join(
                f"model.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in changed.items()
            )
    return (
        "give weights of this backbone, or set model.backbone, model.stem or model.widths; the "
        f"samples are {'x'.join(map(str, row_shape))}"
    )
