"""Images that a backbone which does not train has embedded, as inputs: vectors.

Shapes: b samples of a worker, n of the data set, v stored views of each, d width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from conr_ray.config import ViewsConfig
from conr_ray.data.inputs.vectors import Vectors
from conr_ray.data.store import DataSet
from conr_ray.method import keyed_random
from conr_ray.method.keyed_random import fold


class EmbeddedImages(Vectors):
    """Vectors (n, d) of the plain images, and (n, v, d) of random views of them, if any are stored.

    A random view is one of the stored ones, or the plain image's where there are none, changed as
    vectors are.
    """

    def __init__(
        self, data: DataSet, views: ViewsConfig, device: torch.device, *, on_device: bool
    ) -> None:
        """Wrap what a backbone has made of images."""
        super().__init__(data.rows, views, data.mean, data.std[0], device, on_device=on_device)
        assert data.backbone is not None
        self._backbone = dict(data.backbone)
        self._stored = data.stored_views
        self._resident_views: Tensor | None = None
        if self._stored is not None and self._resident is not None:
            self._resident_views = torch.from_numpy(np.array(self._stored)).to(device)

    def take(self, rows_b: Tensor) -> Tensor:
        """The plain vector of each sample, and those of its views behind it, (b, 1 + v, d)."""
        plain_b1d = super().take(rows_b)[:, None]
        if self._stored is None:
            return plain_b1d
        if self._resident_views is not None:
            views_bvd = self._resident_views[rows_b.to(self._device)]
        else:
            views_bvd = torch.from_numpy(self._stored[rows_b.cpu().numpy()]).to(self._device)
        return torch.cat([plain_b1d, views_bvd], 1)

    def random(
        self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool, size: int | None = None
    ) -> Tensor:
        """(b, d): a stored view drawn by the key, with noise and dropout."""
        if num_views := batch.shape[1] - 1:
            numbers_b1 = keyed_random.uniform(fold(key, "stored view"), positions_b, 1)
            chosen_b = 1 + (numbers_b1[:, 0] * num_views).long()
            batch = batch[torch.arange(len(batch), device=batch.device), chosen_b.to(batch.device)]
            batch = batch[:, None]
        return super().random(batch, key, positions_b, mild=mild)

    def plain(self, batch: Tensor) -> Tensor:
        """(b, d)."""
        return super().plain(batch[:, 0])

    def state_dict(self) -> dict[str, Any]:
        """That of vectors, with the backbone that makes them of images."""
        return {**super().state_dict(), "backbone": self._backbone}
