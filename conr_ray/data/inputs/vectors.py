"""Vectors as inputs: embeddings from another model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conr_ray.config import ViewsConfig
from conr_ray.data.encoded_rows import Rows
from conr_ray.data.inputs.base import Compiler, Inputs
from conr_ray.method import keyed_random
from conr_ray.method.keyed_random import fold

# Of `perturbed`: standard deviation on scaled vectors, and share of features.
_NOISE, _DROPOUT = 0.1, 0.1


class Vectors(Inputs):
    """float32 vectors (n, d), centred and divided by one scale.

    One scale for all features keeps the directions of the centred vectors; one per feature would
    not.
    """

    kind = "vectors"

    def __init__(
        self,
        rows: Rows,
        views: ViewsConfig,
        mean: Sequence[float],
        scale: float,
        device: torch.device,
        *,
        on_device: bool,
    ) -> None:
        """Wrap vectors; `mean` is per feature, `scale` the standard deviation of all features."""
        super().__init__(rows, device, on_device=on_device)
        self._views = views
        self._mean_and_scale = list(mean), scale
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device)
        # If all vectors are equal, `scale` is 0.
        self._scale = scale or 1.0

    def compile(self, compiled: Compiler) -> None:
        """Nothing: views of vectors are few operations."""

    def random(
        self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool, size: int | None = None
    ) -> Tensor:
        """(b, d), with noise, and with a share of the features set to their mean."""
        strength = self._views.group_stage_strength if mild else 1.0
        noise, dropout = strength * self._views.noise, min(strength * self._views.dropout, 0.99)
        return _changed(self.plain(batch), key, positions_b, noise, dropout)

    def plain(self, batch: Tensor) -> Tensor:
        """(b, d)."""
        return (batch.float() - self._mean) / self._scale

    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """With slight noise, and a few features set to their mean."""
        return _changed(self.plain(batch), key, positions_b, _NOISE, _DROPOUT)

    def state_dict(self) -> dict[str, Any]:
        """Width, mean of each feature, and scale."""
        mean, scale = self._mean_and_scale
        return {"kind": self.kind, "shape": list(self.shape), "mean": mean, "std": [scale]}


def _changed(
    vectors_bd: Tensor, key: int, positions_b: Tensor, noise: float, dropout: float
) -> Tensor:
    width = vectors_bd.shape[1]
    if noise:
        noise_bd = keyed_random.normal(fold(key, "noise"), positions_b, width)
        vectors_bd = vectors_bd + noise * noise_bd
    if dropout:
        numbers_bd = keyed_random.uniform(fold(key, "dropout"), positions_b, width)
        # Divided, as in dropout layers, so that the expected value does not change.
        vectors_bd = vectors_bd * (numbers_bd >= dropout) / (1 - dropout)
    return vectors_bd
