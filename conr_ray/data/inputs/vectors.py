"""Vectors as inputs: embeddings that some other model has made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from conr_ray.config import ViewsConfig
from conr_ray.data.inputs.base import Inputs
from conr_ray.method import keyed_random
from conr_ray.method.keyed_random import fold

# Of what `perturbed` does, in units of the scaled vectors.
_NOISE, _DROPOUT = 0.1, 0.1


class Vectors(Inputs):
    """float32 vectors (n, d), centred and divided by one scale.

    One for all features: that keeps the directions of the vectors, which a scale for each would
    turn.
    """

    kind = "vectors"

    def __init__(
        self,
        rows: npt.NDArray[Any],
        views: ViewsConfig,
        mean: Sequence[float],
        scale: float,
        device: torch.device,
        *,
        on_device: bool,
    ) -> None:
        """Vectors with the mean of each feature, and the deviation of all of them."""
        super().__init__(rows, device, on_device=on_device)
        self._views = views
        self._mean_and_scale = list(mean), scale
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device)
        # Vectors that are all equal stay finite.
        self._scale = scale or 1.0

    def random(self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool) -> Tensor:
        """(b, d), with noise, and with a share of the features at their mean."""
        strength = self._views.group_stage_strength if mild else 1.0
        noise, dropout = strength * self._views.noise, min(strength * self._views.dropout, 0.99)
        return _changed(self.plain(batch), key, positions_b, noise, dropout)

    def plain(self, batch: Tensor) -> Tensor:
        """(b, d)."""
        return (batch.float() - self._mean) / self._scale

    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """With a little noise, and a few features at their mean."""
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
        # Divided, so that features keep their mean size, as dropout layers do.
        vectors_bd = vectors_bd * (numbers_bd >= dropout) / (1 - dropout)
    return vectors_bd
