"""Images that stay encoded and are decoded when they are needed: an array of them, as it were.

Shapes: n images, b of them that are asked for, c channels (1 grey or 3 RGB), h and w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conr_ray.cores import usable_cores
from conr_ray.data.decoding import Form, open_encoded, reason_of, to_array
from conr_ray.data.records import Kind, RecordReader, StoredRecord
from conr_ray.errors import SampleLost

# Images of a task: enough that handing it over costs nothing beside them.
_TASK_IMAGES = 8
# Of one part of a large request, so that it does not become a million tasks.
_PART_IMAGES = 1024


class Rows(Protocol):
    """Samples as an array (n, ...) of them: one in memory, one that is memory-mapped, or these."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""

    @property
    def ndim(self) -> int:
        """As of an array."""

    @property
    def nbytes(self) -> int:
        """What all samples take, decoded."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The samples at a number, a slice, some numbers or where a mask is true."""


class EncodedRows:
    """Images (n, c, h, w), uint8, of a folder of records; they are read as those of an array are.

    Threads decode. Those of a batch that is announced by `expect` do while something else is done.
    What is read does not depend on that. One thread at a time may read.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        folder: Path,
        form: Form,
        places: Sequence[str] | None = None,
        rows: NDArray[np.int64] | None = None,
        num_threads: int | None = None,
        reader: RecordReader | None = None,
    ) -> None:
        """The images of a folder.

        Args:
            folder: with its records.
            form: what images are brought to.
            places: of all its images, for messages.
            rows: those of them that these are; all if None.
            num_threads: the most that decode; as many as this process may use cores if None.
            reader: of the records, if they are open.
        """
        self._folder, self._form, self._places = folder, form, places
        self.reader = reader or RecordReader(folder)
        self._rows = np.arange(len(self.reader), dtype=np.int64) if rows is None else rows
        self._num_threads = num_threads or usable_cores()
        self._pool: ThreadPoolExecutor | None = None
        self._expected: dict[bytes, _Batch] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the folder itself."""
        return type(self), (self._folder, self._form, self._places, self._rows, self._num_threads)

    @property
    def folder(self) -> Path:
        """Where the records are."""
        return self._folder

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, c, h, w)."""
        return (len(self._rows), *self._form.shape)

    @property
    def nbytes(self) -> int:
        """What all images take, decoded."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def part(self, rows: NDArray[np.int64]) -> EncodedRows:
        """Some of the images; nothing is read."""
        return EncodedRows(
            self._folder, self._form, self._places, self._rows[rows], self._num_threads, self.reader
        )

    def use_threads(self, count: int) -> None:
        """Decode in at most so many threads from now on."""
        self._num_threads = count
        self._pool = None

    def __getitem__(self, rows: Any) -> NDArray[np.uint8]:
        """Decoded images: one (c, h, w), or those of a slice, of numbers or of a mask, (b, ...).

        Raises:
            IndexError: there are none of these numbers.
            SampleLost: what an image is decoded from has gone, or has changed.
        """
        # NumPy has all the rules of what may be asked for, negative numbers among them.
        wanted = self._rows[rows]
        if wanted.ndim == 0:
            image: NDArray[np.uint8] = self._decoded(wanted[None])[0]
            return image
        if wanted.ndim != 1:
            raise IndexError(f"rows of {wanted.ndim} dimensions")
        if len(wanted) <= _PART_IMAGES or wanted.tobytes() in self._expected:
            return self._decoded(wanted)
        images = np.empty((len(wanted), *self._form.shape), np.uint8)
        for start in range(0, len(wanted), _PART_IMAGES):
            part = slice(start, start + _PART_IMAGES)
            images[part] = self._decoded(wanted[part])
        return images

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """One image after the other."""
        for start in range(0, len(self), _PART_IMAGES):
            yield from self[start : start + _PART_IMAGES]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All images in memory."""
        return np.asarray(self[:], dtype)

    def expect(self, rows: NDArray[np.int64]) -> None:
        """Begin to decode a batch that will be asked for next, by the same numbers."""
        wanted = self._rows[rows]
        if (key := wanted.tobytes()) not in self._expected:
            self._expected[key] = _Batch(self, wanted)

    def forget(self) -> None:
        """Give up what is expected."""
        for batch in self._expected.values():
            batch.cancel()
        self._expected.clear()

    def _decoded(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        batch = self._expected.pop(wanted.tobytes(), None) or _Batch(self, wanted)
        return batch.result()

    def submit(self, images: NDArray[np.uint8], wanted: NDArray[np.int64]) -> Future[None]:
        """Decode some images of the folder into an array, (b, c, h, w), in a thread."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._num_threads, "decode")
        return self._pool.submit(self._decode, images, wanted)

    def _decode(self, images: NDArray[np.uint8], wanted: NDArray[np.int64]) -> None:
        for place, record in enumerate(self.reader.stored(wanted)):
            try:
                images[place] = self._image(record)
            # Decoders raise errors of many kinds.
            except Exception as error:
                raise self._lost(int(wanted[place]), error) from error

    def _image(self, record: StoredRecord) -> NDArray[np.uint8]:
        content = self.reader.content(record)
        if record.kind == Kind.PIXELS:
            return np.frombuffer(content, np.uint8).reshape(self._form.shape)
        return to_array(self._form.fitted(open_encoded(content)))

    def _lost(self, row: int, error: Exception) -> SampleLost:
        record = self.reader.stored(np.array([row]))[0]
        name = f"image {row}" + (f" ({self._places[row]})" if self._places is not None else "")
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else reason_of(error)
        )
        if record.kind == Kind.PATH:
            remedy = "put back the file as it was, or start anew"
        else:
            remedy = f"delete {self._folder}, and it is made anew"
        return SampleLost(f"{name} was read before, and cannot be any more ({reason}): {remedy}")


class _Batch:
    """A batch that threads decode."""

    def __init__(self, rows: EncodedRows, wanted: NDArray[np.int64]) -> None:
        self._images = np.empty((len(wanted), *rows.shape[1:]), np.uint8)
        self._tasks = [
            rows.submit(
                self._images[start : start + _TASK_IMAGES], wanted[start : start + _TASK_IMAGES]
            )
            for start in range(0, len(wanted), _TASK_IMAGES)
        ]

    def result(self) -> NDArray[np.uint8]:
        """The images, as soon as all are decoded; the error of the first one that cannot be."""
        try:
            for task in self._tasks:
                task.result()
        except BaseException:
            self.cancel()
            raise
        return self._images

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
