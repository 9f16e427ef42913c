"""Embeddings of a run's samples, plain and perturbed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from conr_ray.data.inputs import Inputs
from conr_ray.engine.acceleration import Acceleration
from conr_ray.method.frameworks.base import Framework

_BATCH = 1024


@dataclass(frozen=True)
class Embedder:
    """A framework with the samples that it embeds. Shapes: b rows, d width."""

    framework: Framework[Any]
    inputs: Inputs
    acceleration: Acceleration

    def plain(self, rows_b: Tensor) -> Tensor:
        """Embeddings of the samples at `rows_b`, (b, d) float32 of unit length."""
        rows_b = rows_b.to(self.inputs.index_device)
        return self._embedded(rows_b, lambda batch, _: self.inputs.plain(batch))

    def perturbed(self, rows_b: Tensor, key: int) -> Tensor:
        """The same of the samples changed by `Inputs.perturbed` with `key`."""
        return self._embedded(rows_b, lambda batch, rows: self.inputs.perturbed(batch, key, rows))

    @torch.no_grad()
    def _embedded(self, rows_b: Tensor, view: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        num_rows, training = len(rows_b), self.framework.training
        self.framework.eval()
        if self.acceleration.compiles:
            # Of one shape, so that one compiled program serves all batches.
            rows_b = pad(rows_b, (0, -num_rows % _BATCH))
        with self.acceleration.autocast():
            batches = self.inputs.prefetched(torch.split(rows_b, _BATCH), lambda rows: [rows])
            parts = [self.framework.embed(view(self.inputs.take(rows), rows)) for rows in batches]
        self.framework.train(training)
        return _stretched(torch.cat(parts)[:num_rows])


def _stretched(rows_bd: Tensor) -> Tensor:
    """The rows at unit length where networks left them shorter, since what they put out vanished.

    Rows of length 0, which have no direction, are at the first axis.
    """
    lengths_b1 = torch.linalg.vector_norm(rows_bd, dim=1, keepdim=True, dtype=torch.float64)
    first_1d = torch.zeros_like(rows_bd[:1])
    first_1d[:, 0] = 1
    full_bd = torch.where(lengths_b1 > 0, (rows_bd / lengths_b1).to(rows_bd.dtype), first_1d)
    return torch.where(lengths_b1 < 0.5, full_bd, rows_bd)
