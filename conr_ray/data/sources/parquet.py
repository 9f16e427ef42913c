"""Any Parquet file with a column of images, local or in an object store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.sources.base import (
    Contents,
    Int64Array,
    check_label_column,
    choose_splits,
    listed,
)
from conr_ray.data.sources.encoded import EncodedSource, Mode, PendingImage, open_encoded
from conr_ray.data.sources.files import locate, one_line
from conr_ray.errors import UserError

_BATCH_ROWS = 256
_SPLIT_COLUMN = "split"
_DEFAULT_LABEL_COLUMN = DataConfig.model_fields["label_column"].default


class ParquetSource(EncodedSource):
    """The rows of one Parquet file, in file order, read a few hundred at a time.

    `data.image_column` holds encoded images (PNG, JPEG, WebP ...) as bytes, or as Hugging Face's
    struct of `bytes` and `path`; or, where the schema metadata have a `shape` of "h,w" or "h,w,c",
    raw uint8 pixels. `data.splits` keeps the rows with these values in the column `split`.
    `data.label_column` holds integers, which are kept, or strings, which are numbered in sorted
    order; null and -1 are unlabelled. The default column `label` may be absent.
    """

    selecting_fields = frozenset({"splits", "image_column"})

    def __init__(self, config: DataConfig) -> None:
        """Find the file system of `data.path`; the file is not opened yet."""
        super().__init__(config)
        assert config.path is not None, "checked by RunConfig"
        self._location = locate(config.path)

    def identity(self) -> dict[str, object]:
        """The file with its size and time of change, and what is read of it."""
        with _file_errors(self._location.text):
            info = self._location.filesystem.get_file_info(self._location.path)
        splits = self.config.splits
        return {
            "source": "parquet",
            "path": self._location.identity,
            "size": info.size,
            "mtime_ns": info.mtime_ns,
            "splits": None if splits is None else sorted(set(splits)),
            "image_column": self.config.image_column,
            "label_column": self.config.label_column,
            "stored_size": self.config.stored_size,
        }

    def contents(self) -> Contents:
        """Number of rows, the shape of the first image, and labels; no other image is decoded."""
        num_images = int(self._kept.sum())
        if not num_images:
            raise UserError(f"data.path={self.config.path}: no rows; name a file with images")
        labels, class_names = self._labels()
        return Contents(num_images, self.image_shape, labels, class_names)

    @cached_property
    def _file(self) -> Any:
        location = self._location
        try:
            return pq.ParquetFile(location.filesystem.open_input_file(location.path))
        except FileNotFoundError:
            problem = "no such file"
        except (pa.ArrowException, OSError) as error:
            problem = f"not a Parquet file ({one_line(error)})"
        raise UserError(f"data.path={location.text}: {problem}; name a Parquet file of images")

    @cached_property
    def _kept(self) -> NDArray[np.bool_]:
        """Which rows of the file are read."""
        if self.config.splits is None:
            return np.ones(self._file.metadata.num_rows, np.bool_)
        if _SPLIT_COLUMN not in self._columns:
            raise UserError(
                f"data.splits={listed(self.config.splits)}: {self.config.path} has no column "
                f"{_SPLIT_COLUMN}, only {listed(self._columns)}; leave data.splits out"
            )
        column = self._read_column(_SPLIT_COLUMN).cast(pa.string())
        available = sorted(pc.unique(column.drop_null()).to_pylist())
        splits = choose_splits(self.config, available)
        kept: NDArray[np.bool_] = pc.is_in(column, value_set=pa.array(splits)).to_numpy()
        return kept

    @property
    def _columns(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def _read_column(self, name: str) -> Any:
        """A whole column, dictionaries unpacked and strings of one type."""
        with _file_errors(self._location.text):
            column = self._file.read(columns=[name]).column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return column.cast(pa.string() if pa.types.is_large_string(kind) else kind)

    def _check_image_column(self) -> None:
        name, columns = self.config.image_column, self._columns
        if name not in columns:
            raise UserError(
                f"data.image_column={name}: {self.config.path} has no such column; choose from "
                f"{listed(columns)}"
            )
        kind = self._file.schema_arrow.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not is_bytes and not pa.types.is_fixed_size_binary(kind):
            raise UserError(
                f"data.image_column={name}: holds {kind}, not the bytes of images; choose from "
                f"{listed(columns)}"
            )

    @cached_property
    def _raw_shape(self) -> tuple[int, int, int] | None:
        """Height, width and channels of raw pixels, None where images are encoded."""
        metadata = self._file.schema_arrow.metadata or {}
        if b"shape" not in metadata:
            return None
        shape, dtype = metadata[b"shape"].decode(), metadata.get(b"dtype", b"uint8").decode()
        sides = tuple(int(side) for side in re.findall(r"\d+", shape))
        height, width, channels = sides if len(sides) == 3 else (*sides, 1, 0, 0)[:3]
        if height * width == 0 or channels not in (1, 3) or len(sides) > 3 or dtype != "uint8":
            raise UserError(
                f"data.path={self.config.path}: schema metadata shape={shape}, dtype={dtype} is "
                f"no image; write h,w or h,w,c with 1 or 3 channels of uint8"
            )
        return height, width, channels

    @cached_property
    def _mode(self) -> Mode:
        if self._raw_shape is None:
            return super()._mode
        return "L" if self._raw_shape[2] == 1 else "RGB"

    def _pending(self) -> Iterator[PendingImage]:
        self._check_image_column()
        start, name = 0, self.config.image_column
        for group in range(self._file.num_row_groups):
            end = start + self._file.metadata.row_group(group).num_rows
            if self._kept[start:end].any():
                with _file_errors(self._location.text):
                    batches = self._file.iter_batches(
                        _BATCH_ROWS, row_groups=[group], columns=[name]
                    )
                row = start
                while (batch := self._next_batch(batches)) is not None:
                    column = batch.column(0)
                    if pa.types.is_struct(column.type):
                        column = pc.struct_field(column, "bytes")
                    images = column.to_pylist()
                    for offset in np.flatnonzero(self._kept[row : row + len(batch)]).tolist():
                        opened = partial(self._open, images[offset])
                        yield PendingImage(f"row {row + offset}", opened)
                    row += len(batch)
            start = end

    def _next_batch(self, batches: Iterator[Any]) -> Any:
        with _file_errors(self._location.text):
            return next(batches, None)

    def _open(self, encoded: bytes | None) -> Image.Image:
        if encoded is None:
            raise ValueError("no bytes")
        if self._raw_shape is None:
            return open_encoded(encoded)
        height, width, channels = self._raw_shape
        if len(encoded) != height * width * channels:
            raise ValueError(f"{len(encoded)} bytes, not {height}x{width}x{channels}")
        return Image.frombytes(self._mode, (width, height), encoded)

    def _labels(self) -> tuple[Int64Array | None, tuple[str, ...] | None]:
        name = self.config.label_column
        if name is None or (name == _DEFAULT_LABEL_COLUMN and name not in self._columns):
            return None, None
        check_label_column(self.config, self._columns)
        column = self._read_column(name).filter(pa.array(self._kept))
        class_names: tuple[str, ...] | None = None
        if pa.types.is_string(column.type):
            class_names = tuple(sorted(pc.unique(column.drop_null()).to_pylist()))
            column = pc.index_in(column, value_set=pa.array(class_names, pa.string()))
        elif not pa.types.is_integer(column.type):
            raise UserError(
                f"data.label_column={name}: holds {column.type}; name a column of integers or "
                f"strings, or null to ignore labels"
            )
        labels: Int64Array = column.cast(pa.int64()).fill_null(-1).to_numpy().astype(np.int64)
        if labels.min() < -1:
            raise UserError(
                f"data.label_column={name}: holds {labels.min()}; write -1 for an unlabelled image"
            )
        if class_names is None:
            class_names = _names_in_schema(self._file.schema_arrow.metadata or {}, name)
            if class_names is not None and labels.max() >= len(class_names):
                class_names = None
        return labels, class_names


@contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """Turn what Arrow raises over damaged or unreachable data into a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"data.path={path}: cannot be read ({one_line(error)}); repair or replace it"
        ) from None


def _names_in_schema(metadata: dict[bytes, bytes], column: str) -> tuple[str, ...] | None:
    """Class names of an integer column: Hugging Face's ClassLabel, or a JSON list.

    The list stands under `classes` for a column `label`, `coarse_classes` for `coarse_label`.
    """
    try:
        plain = json.loads(metadata.get(column.replace("label", "classes").encode(), b"null"))
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        plain = features[column]["names"] if plain is None else plain
    except (ValueError, KeyError, TypeError):
        pass
    return tuple(str(name) for name in plain) if isinstance(plain, list) else None
