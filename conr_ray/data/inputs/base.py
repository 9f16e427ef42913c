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

    Randomness is keyed: what happens to a sample depends only on a key and its position. A `batch`
    are samples (b, ...) as `take` returns them; `positions_b` are their positions in the global
    batch, int64 (b,).

    Args:
        rows: an array (n, ...), which may be memory-mapped, or images that stay encoded.
        device: where views are made.
        on_device: whether all samples are kept there, if they are an array and it is no CPU.

    Attributes:
        kind: name in a checkpoint.
    """

    kind: ClassVar[str]

    def __init__(self, rows: Rows, device: torch.device, *, on_device: bool) -> None:
        """Copy the samples to the device, if they are to be there."""
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
        """Samples as they are stored, (b, ...).

        Args:
            rows_b: int64 (b,), their numbers in the data set.
        """
        if self._resident is not None:
            return self._resident[rows_b.to(self._device)]
        return torch.from_numpy(self._rows[rows_b.cpu().numpy()]).to(self._device)

    def prefetched(
        self, items: Iterable[T], rows_of: Callable[[T], Iterable[Tensor]]
    ) -> Iterator[T]:
        """The items, a few of which are made ahead if samples have to be decoded for them.

        Args:
            items: for each of which `take` is called.
            rows_of: tells the numbers of samples that `take` is called with for an item.
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
        """Let `compiled` replace functions that make views, such as `torch.compile` does."""

    @abstractmethod
    def random(
        self, batch: Tensor, key: int, positions_b: Tensor, *, mild: bool, size: int | None = None
    ) -> Tensor:
        """One random view of each sample, float32 (b, ...).

        Args:
            batch: (b, ...) as `take` returns it.
            key: determines the randomness, with the positions; one key per step and view.
            positions_b: int64 (b,), positions in the global batch.
            mild: whether the settings of the group stage apply.
            size: side of a view of an image, pixels; that of the settings if None.
        """

    @abstractmethod
    def plain(self, batch: Tensor) -> Tensor:
        """The samples as they are, normalised, float32 (b, ...): for evaluation and new samples."""

    @abstractmethod
    def perturbed(self, batch: Tensor, key: int, positions_b: Tensor) -> Tensor:
        """The samples as by `plain`, float32 (b, ...), each slightly perturbed.

        `key` and the positions determine how. The amounts do not depend on the config, so that runs
        with different views can be compared.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that `plain` needs besides the samples, as JSON values."""
