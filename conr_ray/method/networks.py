"""Backbones, heads and the target network (paper section 3.1).

Shapes: b rows of a worker, d embedding width.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from conr_ray import plugins
from conr_ray.errors import UserError
from conr_ray.method.backbone_names import BACKBONE_NAMES, is_timm
from conr_ray.method.phases import phase
from conr_ray.method.timm_backbone import TimmBackbone, last_blocks


class ConvNet(nn.Module):
    """A plain backbone for small grey images: 3x3 convolutions, stride 2 in the middle one."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for depth, width in enumerate(widths):
            stride = 2 if depth == len(widths) // 2 else 1
            layers += [
                nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.out_features = in_channels

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out_features), averaged over positions."""
        features: Tensor = self.layers(images)
        return features.mean((2, 3))


class ResNet(nn.Module):
    """A torchvision ResNet without its classifier.

    The `cifar` stem is a 3x3 convolution of stride 1 and no pooling; `imagenet` is the usual one.
    """

    def __init__(self, depth: int, stem: str, in_channels: int) -> None:
        super().__init__()
        # Imported late: it also imports torch's compiler, a second of start-up.
        from torchvision.models import resnet18, resnet34

        build = {18: resnet18, 34: resnet34}[depth]
        self.layers = build(weights=None, zero_init_residual=False)
        self.out_features = self.layers.fc.in_features
        self.layers.fc = nn.Identity()
        if stem == "cifar":
            self.layers.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.layers.maxpool = nn.Identity()
        elif in_channels != 3:
            self.layers.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(self.layers.conv1.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(b, channels, h, w) to (b, out_features)."""
        features: Tensor = self.layers(images)
        return features


class Mlp(nn.Module):
    """A backbone for vectors: linear, batch normalisation, ReLU for each width."""

    def __init__(self, in_features: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in widths:
            linear = nn.Linear(in_features, width, bias=False)
            layers += [linear, nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
            in_features = width
        self.layers = nn.Sequential(*layers)
        self.out_features = in_features

    def forward(self, vectors: Tensor) -> Tensor:
        """(b, in_features) to (b, out_features)."""
        features: Tensor = self.layers(vectors)
        return features


class Identity(nn.Module):
    """The backbone for frozen features: nothing to learn."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features

    def forward(self, vectors: Tensor) -> Tensor:
        """(b, out_features), as they are."""
        return vectors


Backbone = ConvNet | ResNet | Mlp | Identity | TimmBackbone
# Of our own: name -> (shape of an input, stem, widths) -> backbone
BACKBONES: dict[str, Callable[[tuple[int, ...], str, tuple[int, ...]], Backbone]] = {
    "resnet18": lambda shape, stem, widths: ResNet(18, stem, shape[0]),
    "resnet34": lambda shape, stem, widths: ResNet(34, stem, shape[0]),
    "convnet": lambda shape, stem, widths: ConvNet(shape[0], widths),
    "mlp": lambda shape, stem, widths: Mlp(shape[0], widths),
    "identity": lambda shape, stem, widths: Identity(shape[0]),
}


def make_backbone(
    name: str, row_shape: tuple[int, ...], stem: str, widths: tuple[int, ...], size: int | None
) -> Backbone:
    """The backbone that `model.backbone` names; weights are drawn from torch's global generator.

    Args:
        name: of `BACKBONES`, `timm:NAME`, or that of an entry point `conr_ray.backbones`.
        row_shape: of a sample as it is stored, (c, h, w) or (d,). Models of timm take 3 channels
            whatever it is.
        stem: of a ResNet.
        widths: of a ConvNet or an Mlp.
        size: side of a view, pixels, for models of timm; their own if None.

    Raises:
        UserError: timm is not installed or has no such model, or the package of an entry point
            does not give one.
    """
    if is_timm(name):
        return TimmBackbone(name, size)
    if name in BACKBONES:
        return BACKBONES[name](row_shape, stem, widths)
    point = plugins.plugins(plugins.BACKBONES, BACKBONE_NAMES)[name]
    backbone: Backbone = plugins.loaded(plugins.BACKBONES, point)(row_shape, stem, widths)
    if not isinstance(getattr(backbone, "out_features", None), int):
        raise UserError(
            f"model.backbone={name}: its module has no out_features, the width of what it returns: "
            "add it"
        )
    return backbone


class Layers(nn.Sequential):
    """Layers in a row, which all torches compile."""

    def forward(self, inputs: Tensor) -> Tensor:
        """What comes out of the last one."""
        # The forward of a plain Sequential is torch's own, which torch 2.11 does not compile.
        for layer in self:
            inputs = layer(inputs)
        return inputs


def head(in_dim: int, hidden_dim: int, out_dim: int) -> Layers:
    """Linear, batch normalisation, ReLU, linear: (b, in_dim) to (b, out_dim).

    It is the shape of projector and predictor.
    """
    return Layers(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim),
    )


class Encoder(nn.Module):
    """Backbone and projector: inputs to embeddings (b, d), not normalised.

    With a hidden width of 0 there is no projector, and embeddings are the backbone's features.

    Attributes:
        hidden_dim: hidden width of the projector.
        embedding_dim: width of the embeddings, d.
        learns: names of the backbone's parameters that are trained; None stands for all.
    """

    learns: tuple[str, ...] | None = None

    def __init__(self, backbone: Backbone, hidden_dim: int, embedding_dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        features = backbone.out_features
        self.hidden_dim = hidden_dim
        self.embedding_dim = embedding_dim if hidden_dim else features
        layers = head(features, hidden_dim, embedding_dim) if hidden_dim else nn.Sequential()
        self.projector = layers

    def forward(self, inputs: Tensor) -> Tensor:
        """(b, channels, h, w) or (b, features) to (b, d)."""
        embeddings: Tensor = self.projector(self.backbone(inputs))
        return embeddings

    def freeze(self, part: str) -> None:
        """Keep a part of the backbone as it is: for `last_blocks` all others, for `head` all.

        What is kept has no gradient, and stays in evaluation mode, so that its batch normalisation
        neither uses nor follows the statistics of batches. For `all` nothing is kept.

        Raises:
            UserError: it is not known which blocks of the backbone are the last.
        """
        if part == "all":
            return
        self.learns = last_blocks(self.backbone) if part == "last_blocks" else ()
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(name in self.learns and parameter.requires_grad)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """As of any module, but the kept part of the backbone stays in evaluation mode."""
        super().train(mode)
        if self.learns is not None:
            self.backbone.eval()
            owners = {name.rpartition(".")[0] for name in self.learns}
            for name, module in self.backbone.named_modules():
                # With those around or inside of a learning module that have no parameters.
                if any(name == one or name.startswith(f"{one}.") for one in owners):
                    module.train(mode)
        return self


def portable_names(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's state; that of a ResNet has torchvision's names behind `backbone.`."""
    tensors = encoder.state_dict()
    return {re.sub(r"^backbone\.layers\.", "backbone.", name): t for name, t in tensors.items()}


def make_predictor(embedding_dim: int, hidden_dim: int) -> Layers:
    """A head initialised near 0: weights of standard deviation 0.01, biases 0."""
    predictor = head(embedding_dim, hidden_dim, embedding_dim)
    for layer in predictor:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
    return predictor


class TargetNetwork(nn.Module):
    """The target branch: an exponential moving average of an encoder."""

    def __init__(self, online: Encoder) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(online).requires_grad_(False)

    @torch.no_grad()
    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings (b, d) of unit length, float32, without gradient."""
        return normalize(self.encoder(inputs).float())

    def keys(self, views: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`forward` of each view."""
        with phase("target"):
            return tuple(self(view) for view in views)

    @torch.no_grad()
    def follow(self, online: Encoder, momentum: float) -> None:
        """Update the parameters: target <- momentum * target + (1 - momentum) * online.

        Batch-normalisation buffers are the target's own, from its own forward passes.
        """
        own: list[Tensor] = list(self.encoder.parameters())
        if own:
            torch._foreach_lerp_(own, list(online.parameters()), 1 - momentum)
