"""Images as inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conr_ray.data.encoded_rows import Rows
from conr_ray.data.inputs.base import Compiler, Inputs
from conr_ray.data.views import Views


class Images(Inputs):
    """uint8 images (n, c, h, w)."""

    kind = "images"

    def __init__(self, rows: Rows, views: Views, device: torch.device, *, on_device: bool) -> None:
        """Wrap images; `views` makes their views."""
        super().__init__(rows, device, on_device=on_device)
        self._views = views

    def compile(self, compiled: Compiler) -> None:
        """As one program from uint8 images to views."""
        self._views.compile(compiled)

    def random(
        self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool, size: int | None = None
    ) -> Tensor:
        """(b, c, size, size), or with 3 channels; see `Views.random`."""
        view = self._views.random(batch, key, positions_b, group_stage=mild, size=size)
        return view.contiguous(memory_format=torch.channels_last)

    def plain(self, batch: Tensor) -> Tensor:
        """(b, c, size, size), centre-cropped or resized; see `Views.plain`."""
        return self._views.plain(batch)

    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """Each image with its own random brightness, contrast and colour."""
        return self._views.relit(batch, key, positions_b)

    def state_dict(self) -> dict[str, Any]:
        """Shape of an image, side of a view, mean and deviation per channel, and resampling."""
        return {"kind": self.kind, "shape": list(self.shape), **self._views.state_dict()}
