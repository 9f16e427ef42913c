"""What the training loop asks of the samples of a run, whatever they are.

Shapes: b samples of a worker, n of the data set; the other dimensions are a sample's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Inputs(ABC):
    """Samples where the views are made, and how views are made of them.

    Randomness is keyed: what happens to a sample depends on a key and its position alone.

    Attributes:
        kind: name in a checkpoint.
    """

    kind: ClassVar[str]

    def __init__(self, rows: NDArray[Any], device: torch.device, *, on_device: bool) -> None:
        """Over an array (n, ...), which may be memory-mapped."""
        self._rows = rows
        self._device = device
        # On a CPU the memory map is as near as a copy, and shared by the workers of a node.
        self._resident = (
            torch.from_numpy(np.array(rows)).to(device)
            if on_device and device.type != "cpu"
            else None
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a sample as it is stored."""
        return tuple(self._rows.shape[1:])

    def take(self, rows_b: Tensor) -> Tensor:
        """The samples at int64 `rows_b`, as they are stored, (b, ...)."""
        if self._resident is not None:
            return self._resident[rows_b.to(self._device)]
        return torch.from_numpy(self._rows[rows_b.cpu().numpy()]).to(self._device)

    @abstractmethod
    def random(self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool) -> Tensor:
        """One random view of each sample, float32.

        Args:
            batch: as `take` gives it.
            key: decides the randomness, with the positions; one key for each step and view.
            positions_b: int64 positions in the global batch.
            mild: whether the settings of the group stage hold.
        """

    @abstractmethod
    def plain(self, batch: Tensor) -> Tensor:
        """The samples as they are, normalised, float32: for evaluation and for new samples."""

    @abstractmethod
    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """The samples as `plain` has them, each changed a little.

        By the same amounts whatever the config says, so that runs which differ in their views can
        be compared.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that `plain` needs beside the samples, as values that JSON can hold."""
