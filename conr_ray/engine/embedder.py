"""Target embeddings of a run's images, as they are and in another light."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from conr_ray.data.pixels import Pixels
from conr_ray.data.views import Views
from conr_ray.method.networks import TargetNetwork

_BATCH = 1024


@dataclass(frozen=True)
class Embedder:
    """The target network with the images that it embeds. Shapes: b rows, d width."""

    target: TargetNetwork
    pixels: Pixels
    views: Views
    precision: torch.autocast

    def plain(self, rows_b: Tensor) -> Tensor:
        """Of the images at `rows_b` as they are, (b, d) float32 of unit length."""
        return self._embedded(rows_b, lambda images, _: self.views.plain(images))

    def relit(self, rows_b: Tensor, key: int) -> Tensor:
        """Of each image in a light of its own, by `Views.relit`; `key` decides which one."""
        return self._embedded(rows_b, lambda images, rows: self.views.relit(images, key, rows))

    @torch.no_grad()
    def _embedded(self, rows_b: Tensor, view: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        training = self.target.training
        self.target.eval()
        with self.precision:
            parts = [
                self.target(view(self.pixels.take(rows), rows))
                for rows in torch.split(rows_b, _BATCH)
            ]
        self.target.train(training)
        return torch.cat(parts)
