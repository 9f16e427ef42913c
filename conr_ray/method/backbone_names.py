"""The values of `model.backbone`, and those of `model.weights` that are no files.

Imports no torch.
"""

from __future__ import annotations

from conr_ray.plugins import BACKBONES, plugins

# Any model of timm is meant by its name behind this.
TIMM = "timm:"
OF_VECTORS = ("mlp", "identity")
BACKBONE_NAMES = ("resnet18", "resnet34", "convnet", *OF_VECTORS)

# What timm itself would load; what the seed draws; the file in an installed package.
HUB, NONE, PACKAGE = "hub", "none", "package:"


def backbone_names() -> tuple[str, ...]:
    """Our own backbones, and those of other packages, which take images."""
    return (*BACKBONE_NAMES, *plugins(BACKBONES, BACKBONE_NAMES))


def is_timm(backbone: str) -> bool:
    """Whether a value of `model.backbone` names a model of timm."""
    return backbone.startswith(TIMM)


def embeds_once(backbone: str, train: str, init: str | None) -> bool:
    """Whether images pass through the backbone once, before training, which is on vectors.

    A backbone with the weights of a run or of another file (`model.init`), which need not train
    either, embeds them in each step.
    """
    return train == "head" and is_timm(backbone) and init is None


# In the folder of a run: the weights that it started from.
INITIAL_WEIGHTS = "initial_weights.json"
