"""The networks' inputs: images or vectors behind one interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from conr_ray.config import RunConfig, ViewsConfig
from conr_ray.data.inputs.base import Inputs
from conr_ray.data.inputs.images import Images
from conr_ray.data.inputs.vectors import Vectors
from conr_ray.data.store import DataSet
from conr_ray.data.views import Views


def make_inputs(config: RunConfig, data: DataSet, device: torch.device) -> Inputs:
    """The samples of `data` as a run of `config` sees them."""
    on_device = config.data.placement == "device"
    return _made(data.rows, config.views, data.mean, data.std, device, on_device=on_device)


def inputs_from_state(state: Mapping[str, Any], rows: NDArray[Any], device: torch.device) -> Inputs:
    """New samples as seen by the run with `Inputs.state_dict` `state`; supports `plain` only."""
    views = ViewsConfig(size=state.get("size", 1))
    return _made(rows, views, state["mean"], state["std"], device, on_device=False)


def _made(
    rows: NDArray[Any],
    views: ViewsConfig,
    mean: Any,
    std: Any,
    device: torch.device,
    *,
    on_device: bool,
) -> Inputs:
    if rows.ndim == 2:
        return Vectors(rows, views, mean, std[0], device, on_device=on_device)
    return Images(rows, Views(views, mean, std, device), device, on_device=on_device)


__all__ = ["Images", "Inputs", "Vectors", "inputs_from_state", "make_inputs"]
