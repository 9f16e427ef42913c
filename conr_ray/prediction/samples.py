"""New samples: what there is to predict, in pieces, and how a piece is read.

A piece is a small table of what to read. A batch is a table of samples that are read, with the
columns of its piece, and

reason     why the sample could not be read, else null
samples    its bytes, of fixed size: those of an array like the run's samples

Shapes: n samples of a batch; (c, h, w) of an image, (d,) of a vector.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from conr_ray.cores import usable_cores
from conr_ray.data.decoding import batched, conformed, reason_of
from conr_ray.data.inventory import counted

Kind = Literal["images", "vectors"]
_BATCH_ROWS, _BATCH_BYTES = 256, 32 * 2**20
# Threads gain little where decoding is all that they do, much where they wait for a store.
_NUM_THREADS = min(16, max(2, usable_cores()))


@dataclass(frozen=True)
class SampleForm:
    """The form of a run's samples.

    Attributes:
        shape: (c, h, w) of images, (d,) of vectors.
        stored_size: `data.stored_size` of the run.
    """

    shape: tuple[int, ...]
    stored_size: int | None

    @property
    def kind(self) -> Kind:
        """What the samples are."""
        return "vectors" if len(self.shape) == 1 else "images"

    @property
    def dtype(self) -> type[Any]:
        """float32 of vectors, uint8 of images."""
        return np.float32 if self.kind == "vectors" else np.uint8

    @property
    def batch_rows(self) -> int:
        """Samples of a batch."""
        num_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return max(1, min(_BATCH_ROWS, _BATCH_BYTES // num_bytes))

    def batch(self, piece: pa.Table, values: NDArray[Any], reasons: Sequence[str | None]) -> Any:
        """A batch of samples (n, *shape) that are read."""
        flat = np.ascontiguousarray(values, self.dtype).reshape(len(values), -1)
        width = flat.shape[1] * flat.itemsize
        column = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(width), len(flat), [None, pa.py_buffer(flat.data)]
        )
        piece = piece.append_column("reason", pa.array(reasons, pa.string()))
        return piece.append_column("samples", column)

    def values(self, batch: pa.Table) -> NDArray[Any]:
        """The samples of a batch, (n, *shape)."""
        column = batch.column("samples").combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks)
        size = column.type.byte_width
        data = column.buffers()[1].slice(column.offset * size, len(column) * size)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape)


class NewSamples(ABC):
    """Samples to predict; picklable.

    Attributes:
        form: of the run's samples, to which these are brought.
    """

    keys: tuple[str, ...]
    """Columns that tell a sample from all others."""

    def __init__(self, form: SampleForm) -> None:
        """Keep the form; nothing is opened."""
        self.form = form

    @property
    @abstractmethod
    def what(self) -> str:
        """Kind of samples: `folder`, `parquet` or `dataset NAME`."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where they are, the same however that is written."""

    @abstractmethod
    def count(self) -> int:
        """How many there are.

        Raises:
            UserError: there are none, or they cannot be listed.
        """

    def line(self, count: int, more: str = "") -> str:
        """What was found, in a line; `count` is how many there are, `more` what they are."""
        kind = self.form.kind
        return f"data: {counted(count, kind[:-1], kind)}{more}"

    @abstractmethod
    def pieces(self) -> Iterator[pa.Table]:
        """Tables of what to read, with the columns `keys`; lazily, in the same order each time."""

    @abstractmethod
    def read(self, piece: pa.Table) -> Iterator[pa.Table]:
        """The batches of a piece, or of some rows of it."""

    def decoded(self, rows: pa.Table, opened: Sequence[Callable[[], Image.Image]]) -> pa.Table:
        """A batch of images, each `opened` and brought to the form of the run's."""
        values = np.zeros((len(opened), *self.form.shape), np.uint8)
        tasks = batched(range(len(opened)), 32)
        parts = _pool().map(partial(_decode, values, opened, self.form), tasks)
        return self.form.batch(rows, values, [reason for part in parts for reason in part])


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_THREADS, "decode")


def _decode(
    values: NDArray[np.uint8],
    opened: Sequence[Callable[[], Image.Image]],
    form: SampleForm,
    rows: Sequence[int],
) -> list[str | None]:
    """Decode images into rows of `values`; returns what is wrong with each."""
    channels, height, width = form.shape
    reasons: list[str | None] = []
    for row in rows:
        reason = None
        try:
            values[row] = conformed(opened[row](), (channels, height, width), form.stored_size)
        # Decoders and stores raise errors of many kinds.
        except Exception as error:
            reason = reason_of(error)
        reasons.append(reason)
    return reasons
