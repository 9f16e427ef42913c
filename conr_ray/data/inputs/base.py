"""The interface between the training loop and samples of any kind.

Shapes: b samples of a worker, n of the data set; the other dimensions are a sample's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from conr_ray.data.encoded_rows import EncodedRows, Rows

Function = Callable[..., Tensor]
Compiler = Callable[[Function], Function]
T = TypeVar("T")

# Batches that are decoded ahead of the one in work.
_NUM_AHEAD = 3


class Inputs(ABC):
    """Samples on the device where views are made, and how to make views.

    Randomness is keyed: what happens to a sample depends only on a key and its position.

    Attributes:
        kind: name in a checkpoint.
    """

    kind: ClassVar[str]

    def __init__(self, rows: Rows, device: torch.device, *, on_device: bool) -> None:
        """Wrap an array (n, ...), which may be memory-mapped, or images that stay encoded."""
        self._rows = rows
        self._device = device
        # On a CPU a copy gains nothing over the memory map, which the workers of a node share.
        self._resident: Tensor | None = None
        if isinstance(rows, EncodedRows):
            # This worker's cores; other workers of the node have theirs.
            rows.use_threads(torch.get_num_threads())
        elif on_device and device.type != "cpu":
            self._resident = torch.from_numpy(np.array(rows)).to(device)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a stored sample."""
        return tuple(self._rows.shape[1:])

    @property
    def index_device(self) -> torch.device:
        """Where `take` reads its rows' numbers; from elsewhere they are copied at each call."""
        return torch.device("cpu") if self._resident is None else self._device

    def take(self, rows_b: Tensor) -> Tensor:
        """The samples at int64 `rows_b`, as stored, (b, ...)."""
        if self._resident is not None:
            return self._resident[rows_b.to(self._device)]
        return torch.from_numpy(self._rows[rows_b.cpu().numpy()]).to(self._device)

    def prefetched(
        self, items: Iterable[T], rows_of: Callable[[T], Iterable[Tensor]]
    ) -> Iterator[T]:
        """The items, a few of which are made ahead if samples have to be decoded for them.

        Args:
            items: for each of which `take` is called.
            rows_of: what with, for an item.
        """
        rows = self._rows
        if not isinstance(rows, EncodedRows):
            yield from items
            return
        waiting: deque[T] = deque()
        try:
            for item in items:
                for rows_b in rows_of(item):
                    rows.expect(rows_b.cpu().numpy())
                waiting.append(item)
                if len(waiting) > _NUM_AHEAD:
                    yield waiting.popleft()
            yield from waiting
        finally:
            rows.forget()

    @abstractmethod
    def compile(self, compiled: Compiler) -> None:
        """Let `compiled` replace the functions that make views, where it pays."""

    @abstractmethod
    def random(
        self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool, size: int | None = None
    ) -> Tensor:
        """One random view of each sample, float32.

        Args:
            batch: as `take` returns it.
            key: determines the randomness, with the positions; one key per step and view.
            positions_b: int64 positions in the global batch.
            mild: whether the settings of the group stage apply.
            size: side of a view of an image, pixels; that of the settings if None.
        """

    @abstractmethod
    def plain(self, batch: Tensor) -> Tensor:
        """The samples as they are, normalised, float32: for evaluation and for new samples."""

    @abstractmethod
    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """The samples of `plain`, each slightly perturbed.

        The amounts do not depend on the config, so that runs with different views can be compared.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that `plain` needs besides the samples, as JSON values."""
