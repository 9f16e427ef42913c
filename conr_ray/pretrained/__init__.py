"""Backbones that others have trained: their weights, and how images are prepared for them."""

from __future__ import annotations

from conr_ray.pretrained.loading import Pretrained, check_backbone, load_pretrained, preparation_of
from conr_ray.pretrained.preparation import Preparation

__all__ = ["Preparation", "Pretrained", "check_backbone", "load_pretrained", "preparation_of"]
