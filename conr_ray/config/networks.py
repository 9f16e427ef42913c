"""The section of networks."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from conr_ray.fields import (
    Count,
    Counts,
    Mark,
    Section,
)
from conr_ray.method.backbone_names import (
    HUB,
    NONE,
    PACKAGE,
    TIMM,
    backbone_names,
    embeds_once,
    is_timm,
)

_TIMM_NAME = f"{TIMM}NAME"


def _backbone(*names: str) -> Mark:
    return Mark(used_by=("model.backbone", names))


def _known_backbone(name: str) -> str:
    """Refuse what is no backbone; whether timm has a model is for timm to say, later."""
    names = backbone_names()
    if name in names or (is_timm(name) and name != TIMM):
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1)
    known = f"choose from {', '.join(names)} and {_TIMM_NAME}"
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
