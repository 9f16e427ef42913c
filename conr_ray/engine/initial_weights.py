"""Weights that a run starts from, if `model.init` is set: those of another run, or of a file.

An encoder is taken: its backbone, which has to fit, and its projector, if that fits too. All
else starts as in any run: the predictor, a queue, the optimiser, the epochs. Online and target
network start equal. Normalisation keeps its running statistics, but not the count of batches.

initial_weights.json in the directory of a run tells source and digest.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conr_ray.config import ModelConfig, RunConfig
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.engine.training_state import make_backbone
from conr_ray.errors import StorageError, UserError, one_line
from conr_ray.fields import short
from conr_ray.method.collectives import all_reduce_sum, broadcast_first
from conr_ray.method.frameworks import framework_class
from conr_ray.method.networks import portable_names
from conr_ray.storage.files import Folder

_FILE = "initial_weights.json"
_SUFFIXES = (".safetensors", ".pt", ".pth")
# Of an export, and of torchvision's classifier.
_LEFT_OUT = ("centers", "boundary_centers", "fc.weight", "fc.bias")
_COUNTER = "num_batches_tracked"
_MOST_NAMED = 5

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class InitialWeights:
    """The weights of an encoder.

    Attributes:
        source: a value of `model.init`.
        tensors: by the names of `portable_names`, float32, on the CPU, finite.
    """

    source: str
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, source: str) -> InitialWeights:
        """Those of the newest checkpoint of a run, or of a file, by the suffix of its name.

        A run's and its export's are the same: those of the network that it clusters with.

        Raises:
            UserError: there are none, or they cannot be read, or not all are finite.
        """
        try:
            if source.endswith(_SUFFIXES):
                named = _portable(_tensors_of(source, _bytes_of(source)))
            else:
                named = portable_names(_run_at(source).state.framework.embedding_encoder)
            kept = {n: _as_float32(n, t) for n, t in named.items() if not n.endswith(_COUNTER)}
        except UserError as error:
            raise UserError(f"model.init={short(source)}: {error}") from None
        return cls(source, kept)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes and values, in hexadecimal: the same wherever they are."""
        found = hashlib.sha256()
        for name in sorted(self.tensors):
            tensor = self.tensors[name].contiguous()
            found.update(f"{name} {list(tensor.shape)} ".encode())
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def fitted(self, config: RunConfig, row_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """What a run of `config` on samples of `row_shape` takes.

        Raises:
            UserError: the backbone does not fit; it names the tensors, and fields that do.
        """
        wanted, found = _shapes(config, config.model, row_shape), _shapes_of(self.tensors)
        parts = [_split(shapes) for shapes in (wanted, found)]
        (backbone, projector), (own_backbone, own_projector) = parts
        if backbone != own_backbone:
            raise UserError(
                f"model.init={short(self.source)}: does not fit model.backbone="
                f"{config.model.backbone}: {_difference(backbone, own_backbone)}: "
                + _remedy(config, row_shape, own_backbone)
            )
        taken = backbone | (projector if projector == own_projector else {})
        if not taken:
            raise UserError(
                f"model.init={short(self.source)}: does not fit: model.backbone="
                f"{config.model.backbone} has no weights, and of the projector "
                f"{_difference(projector, own_projector)}: set model.head_hidden_dim and "
                "model.embedding_dim to those of the weights"
            )
        return {name: self.tensors[name] for name in taken}

    def record(self, directory: Folder) -> None:
        """Write source and digest to the directory of a run."""
        told = {"source": self.source, "sha256": self.digest}
        directory.write_text(_FILE, json.dumps(told) + "\n")


def agreed_weights(source: str | None, device: torch.device) -> InitialWeights | None:
    """The weights at `source`, read by every worker of a run; None without a source.

    Raises:
        UserError: on all workers, if one of them cannot read them, or finds others.
    """
    if source is None:
        return None
    weights: InitialWeights | None = None
    failure: UserError | None = None
    try:
        weights = InitialWeights.read(source)
    except UserError as error:
        failure = error
    mine = torch.tensor(int(weights.digest[:15], 16) if weights else 0, device=device)
    apart = (mine != broadcast_first(mine)).to(torch.float32)
    if failure is not None:
        apart.fill_(1)
    if all_reduce_sum(apart) == 0:
        return weights
    raise failure or UserError(
        f"model.init={short(source)}: another worker cannot read it, or finds other weights there: "
        "give s3://bucket/folder, or a folder that all nodes mount"
    )


def check_initial_weights(config: RunConfig, row_shape: tuple[int, ...]) -> None:
    """Raise UserError if a run of `config` on samples of `row_shape` cannot start."""
    if config.model.init is not None:
        InitialWeights.read(config.model.init).fitted(config, row_shape)


def weights_digest(source: str | None) -> str | None:
    """The digest of the weights at `source`; None without a source."""
    return None if source is None else InitialWeights.read(source).digest


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
        remedy = f"give a run that this version reads, or a file {', '.join(_SUFFIXES)}"
        raise UserError(f"{problem}: {remedy}") from None


def _bytes_of(source: str) -> bytes:
    if "://" in source:
        place, _, name = source.rpartition("/")
    else:
        path = Path(source).expanduser().absolute()
        place, name = str(path.parent), path.name
    data = Folder(place).read_bytes(name)
    if data is None:
        raise UserError("there is no such file: give one, or the folder of a run")
    return data


def _tensors_of(name: str, data: bytes) -> Mapping[str, Tensor]:
    """What a file holds: tensors by name."""
    remedy = "give what torch.save(network.state_dict(), FILE) or safetensors has written"
    if not data:
        raise UserError(f"the file is empty: {remedy}")
    held: Any
    try:
        if name.endswith(".safetensors"):
            from safetensors.torch import load

            held = load(data)
        else:
            with warnings.catch_warnings():
                # Of the file's age, and of tensors that are refused below.
                warnings.simplefilter("ignore", UserWarning)
                held = torch.load(BytesIO(data), map_location="cpu", weights_only=True)
    except ModuleNotFoundError:
        raise UserError("safetensors is not installed: pip install 'conr_ray[export]'") from None
    except pickle.UnpicklingError:
        # What torch says of it names a way to run its code.
        raise UserError(
            f"it is damaged, or holds more than tensors, such as code: {remedy}"
        ) from None
    # Both libraries raise errors of many kinds.
    except Exception as error:
        raise UserError(f"it cannot be read ({one_line(error)}): {remedy}") from None
    if not isinstance(held, Mapping) or not held:
        raise UserError(f"it holds no tensors by name: {remedy}")
    for key, value in held.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{short(str(key))} in it is no tensor: {remedy}")
    return held


def _portable(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an export or with torchvision's names by those of `portable_names`."""
    above = "" if any(name.startswith("backbone.") for name in named) else "backbone."
    return {
        re.sub(r"^backbone\.layers\.", "backbone.", above + name): tensor
        for name, tensor in named.items()
        if name not in _LEFT_OUT
    }


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


def _shapes(config: RunConfig, model: ModelConfig, row_shape: tuple[int, ...]) -> Shapes:
    """Those of the encoder of `config` with the networks of `model`."""
    with torch.device("meta"):
        framework = framework_class(model.framework)(
            config.framework,
            make_backbone(model, row_shape),
            model.head_hidden_dim,
            model.embedding_dim,
        )
    return _shapes_of(portable_names(framework.embedding_encoder))


def _split(shapes: Shapes) -> tuple[Shapes, Shapes]:
    """Those of the projector apart, last."""
    projector = {n: shape for n, shape in shapes.items() if n.startswith("projector.")}
    return {n: shape for n, shape in shapes.items() if n not in projector}, projector


def _difference(wanted: Shapes, found: Shapes) -> str:
    def told() -> Iterator[str]:
        for name in [*wanted, *(found.keys() - wanted.keys())]:
            shown = short(name.removeprefix("backbone."))
            if name not in found:
                yield f"{shown} is missing"
            elif name not in wanted:
                yield f"{shown} is unexpected"
            elif found[name] != wanted[name]:
                sizes = ("x".join(map(str, shapes[name])) for shapes in (found, wanted))
                yield f"{shown} is " + ", not ".join(sizes)

    every = list(told())
    more = len(every) - _MOST_NAMED
    return ", ".join(every[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


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
        if _split(_shapes(config, model, row_shape))[0] == backbone:
            changed = {k: v for k, v in choice.items() if getattr(config.model, k) != v}
            return "set " + " and ".join(
                f"model.{k}={list(v) if isinstance(v, tuple) else v}" for k, v in changed.items()
            )
    return (
        "give weights of this backbone, or set model.backbone, model.stem or model.widths; the "
        f"samples are {'x'.join(map(str, row_shape))}"
    )
