"""Backbones that do not train: images become vectors once, before training."""

from conr_ray.frozen.backbone import FrozenBackbone
from conr_ray.frozen.sharing import keep_backbone
from conr_ray.frozen.store import (
    check_frozen,
    embedded,
    open_samples,
    trained_shape,
)

__all__ = [
    "FrozenBackbone",
    "check_frozen",
    "embedded",
    "keep_backbone",
    "open_samples",
    "trained_shape",
]
