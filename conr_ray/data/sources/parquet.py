"""Images in a column of Parquet files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

from PIL import Image

from conr_ray.config import MOST_STORED_PIXELS
from conr_ray.data.decoders import Encoded, Opened
from conr_ray.data.decoding import Mode
from conr_ray.data.sources.base import Contents, listed
from conr_ray.data.sources.encoded import EncodedSource, PendingImage
from conr_ray.data.sources.image_column import holds_images, images_in
from conr_ray.data.sources.parquet_table import ParquetTable
from conr_ray.errors import UserError
from conr_ray.fields import short

_LONGEST_SHAPE = 100


class ParquetSource(ParquetTable, EncodedSource):
    """The images of Parquet files.

    `data.image_column` holds encoded images (PNG, JPEG, WebP ...) or pixels; see `holds_images`. If
    the schema metadata has a `shape` of "h,w" or "h,w,c", its bytes are raw uint8 pixels.
    """

    column_field = "image_column"

    def contents(self) -> Contents:
        """Number of rows, the shape of the first image, and labels; no other image is decoded."""
        num_rows = self._num_kept()
        return Contents(num_rows, self.image_shape, *self._labels())

    @property
    def has_files(self) -> bool:
        """Unless the schema tells that they are raw pixels."""
        return self._raw_shape is None

    def check_column(self) -> None:
        """Raise UserError unless the column is there and holds images."""
        super().check_column()
        # What the file says of raw pixels is refused before any is read.
        _ = self._raw_shape
        name, columns = self._column, self._columns
        kind = self._files.type_of(name)
        if not holds_images(kind):
            raise UserError(
                f"data.image_column={name}: holds {short(str(kind))}, not the bytes of images; "
                f"choose from {listed(columns)}"
            )

    @cached_property
    def _raw_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of raw pixels, None if images are encoded."""
        metadata = self._schema.metadata or {}
        if b"shape" not in metadata:
            return None
        shape = metadata[b"shape"].decode(errors="replace")
        dtype = metadata.get(b"dtype", b"uint8").decode(errors="replace")
        sides = [int(side) for side in re.findall(r"[0-9]+", shape[:_LONGEST_SHAPE])]
        height, width, channels = sides if len(sides) == 3 else [*sides, 1, 0, 0][:3]
        if (
            not 0 < height * width <= MOST_STORED_PIXELS
            or channels not in (1, 3)
            or len(sides) > 3
            or dtype != "uint8"
        ):
            raise UserError(
                f"data.path={self.config.path}: schema metadata shape={short(shape)}, "
                f"dtype={short(dtype)} does not describe images; write h,w or h,w,c with 1 or 3 "
                f"channels of uint8"
            )
        return height, width, channels

    @cached_property
    def _mode(self) -> Mode:
        if self._raw_shape is None:
            return super()._mode
        return "L" if self._raw_shape[2] == 1 else "RGB"

    def _pending(self) -> Iterator[PendingImage]:
        self.check_column()
        for row, column, offsets in self._kept_parts():
            opened = self.images_in(column)
            for offset in offsets.tolist():
                yield PendingImage(self.place(row + offset), opened[offset])

    def images_in(self, part: Any) -> list[Opened]:
        """For each row of a part of the column, what opens its image."""
        return images_in(part, Encoded if self._raw_shape is None else self._raw)

    def _raw(self, read: Callable[[], bytes]) -> Opened:
        assert self._raw_shape is not None
        return partial(_of_pixels, read, self._raw_shape)


def _of_pixels(read: Callable[[], bytes], shape: tuple[int, int, int]) -> Image.Image:
    """The image of raw pixels of a shape (h, w, c)."""
    pixels, (height, width, channels) = read(), shape
    if len(pixels) != height * width * channels:
        raise ValueError(f"{len(pixels)} bytes, not {height}x{width}x{channels}")
    return Image.frombytes("L" if channels == 1 else "RGB", (width, height), pixels)
