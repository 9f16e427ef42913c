"""Samples, images or vectors, and their metadata.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr_ray.data.encoded_rows import EncodedRows, Rows
from conr_ray.data.inventory import FILE, Inventory, line_of
from conr_ray.data.pictures import as_picture
from conr_ray.data.sources.base import Int64Array
from conr_ray.storage.files import Folder


@dataclass(frozen=True, eq=False)
class DataSet:
    """Samples, images or vectors, and their metadata.

    `rows` is uint8 (n, c, h, w) or float32 (n, d), read-only if memory-mapped; images may be
    decoded whenever they are needed (`is_streamed`). `labels` is int64 (n,), None if no sample is
    labelled; -1 marks unlabelled samples, which no metric counts.
    `class_names` are those of the classes that occur in the whole set.
    `names` are the images' paths inside a folder source. `sample_ids` is int64 (n,): each sample's
    row in the whole set, of which this may be a subset, or lack what cannot be read. For images,
    `mean` and `std` are per channel, of values scaled to 0..1; for vectors, `mean` is per feature,
    and `std` one number for all. `std` is 0 if all values are equal. `fingerprint` depends only on
    samples, labels and subset, not on the kind of source, and `rows_fingerprint` not on labels.

    Where a backbone that does not train has embedded images, the vectors are `rows`, those of
    random views `stored_views`, float32 (n, v, d), None without; `images` is what was embedded,
    `backbone` tells by what, and `embedded_in` is the folder in the cache: see `conr_ray.frozen`.
    `inventory` tells what else was found, and `num_in_all` of how many this is a subset.
    """

    rows: Rows
    labels: Int64Array | None
    class_names: tuple[str, ...] | None
    names: Sequence[str] | None
    sample_ids: Int64Array
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    rows_fingerprint: str
    stored_views: NDArray[Any] | None = None
    images: DataSet | None = None
    backbone: Mapping[str, Any] | None = None
    embedded_in: Path | None = None
    inventory: Inventory = field(default_factory=Inventory)
    num_in_all: int | None = None

    @property
    def line(self) -> str:
        """What the data are and what was left out, in a line for people."""
        if self.images is not None:
            return self.images.line
        told = line_of(
            self.num_rows,
            self.row_shape,
            self.labels,
            self.num_classes,
            self.inventory,
            self.num_in_all,
        )
        return f"{told}; decoded whenever needed" if self.is_streamed else told

    @property
    def is_streamed(self) -> bool:
        """Whether images are decoded whenever they are needed."""
        return isinstance(self.rows, EncodedRows)

    def write_inventory(self, folder: Folder) -> None:
        """Write what was found, and what was left out and skipped, into the folder of a run."""
        if self.images is not None:
            self.images.write_inventory(folder)
            return
        told = {"line": self.line, **self.inventory.as_json()}
        folder.write_text(FILE, json.dumps(told, indent=1) + "\n")

    @property
    def num_rows(self) -> int:
        """Number of samples."""
        return len(self.rows)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of a sample: (c, h, w), or (d,)."""
        return tuple(self.rows.shape[1:])

    @property
    def what(self) -> str:
        """The word "images" or "vectors", for messages: what the user has."""
        return "vectors" if self.rows.ndim == 2 and self.images is None else "images"

    def prepared_as(self, inputs_state: Mapping[str, Any]) -> DataSet:
        """The same, with the mean and deviation in `Inputs.state_dict` of a run."""
        mean, std = (tuple(inputs_state[name]) for name in ("mean", "std"))
        return replace(self, mean=mean, std=std)

    def picture(self, row: int) -> bytes | None:
        """The image of a row as a small PNG or JPEG file; None for vectors that are of no image."""
        if self.images is not None:
            return self.images.picture(row)
        return None if self.rows.ndim == 2 else as_picture(self.rows[row])

    @property
    def num_classes(self) -> int | None:
        """Number of classes by name, else of distinct labels; None without labels."""
        if self.labels is None:
            return None
        if self.class_names is not None:
            return len(self.class_names)
        return len(np.unique(self.labels[self.labels >= 0]))
