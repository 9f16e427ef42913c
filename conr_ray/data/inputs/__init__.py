"""The networks' inputs: images or vectors behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from conr_ray.config import RunConfig, ViewsConfig
from conr_ray.data.encoded_rows import Rows
from conr_ray.data.inputs.base import Inputs
from conr_ray.data.inputs.embedded import EmbeddedImages
from conr_ray.data.inputs.images import Images
from conr_ray.data.inputs.vectors import Vectors
from conr_ray.data.store import DataSet
from conr_ray.data.views import Views
from conr_ray.method.backbone_names import is_timm
from conr_ray.pretrained import Preparation, preparation_of


def make_inputs(config: RunConfig, data: DataSet, device: torch.device) -> Inputs:
    """The samples of `data` as a run of `config` sees them."""
    on_device = config.data.placement == "device"
    if data.backbone is not None:
        return EmbeddedImages(data, config.views, device, on_device=on_device)
    preparation = None
    if is_timm(config.model.backbone):
        preparation = preparation_of(config.model.backbone, config.views.size)
    return _made(
        data.rows,
        config.views,
        data.mean,
        data.std,
        device,
        on_device=on_device,
        preparation=preparation,
    )


def inputs_from_state(state: Mapping[str, Any], rows: Rows, device: torch.device) -> Inputs:
    """New samples as seen by the run with `Inputs.state_dict` `state`; supports `plain` only."""
    views = ViewsConfig(size=state.get("size", 1))
    preparation = Preparation.from_json(state) if "interpolation" in state else None
    mean, std = state["mean"], state["std"]
    return _made(rows, views, mean, std, device, on_device=False, preparation=preparation)


def _made(
    rows: Rows,
    views: ViewsConfig,
    mean: Any,
    std: Any,
    device: torch.device,
    *,
    on_device: bool,
    preparation: Preparation | None,
) -> Inputs:
    if rows.ndim == 2:
        return Vectors(rows, views, mean, std[0], device, on_device=on_device)
    return Images(rows, Views(views, mean, std, device, preparation), device, on_device=on_device)


__all__ = ["EmbeddedImages", "Images", "Inputs", "Vectors", "inputs_from_state", "make_inputs"]
