"""What every image source offers, whatever its files look like.

Shapes: n images, c channels (1 grey or 3 RGB), h and w pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.errors import UserError

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]

# Settings that decide which images are read. A source that does not know one of them refuses it
# instead of reading other images than were asked for.
_SELECTING_FIELDS = ("splits", "classes", "image_column")


@dataclass(frozen=True, eq=False)
class Contents:
    """What a source holds, known before its images are decoded.

    `labels` is int64 (n,) with -1 for an unlabelled image, None where the source has no labels.
    `class_names[label]` names a class, None where only numbers are known. `names` are the images'
    paths inside the source, None where images have no paths.
    """

    num_images: int
    image_shape: tuple[int, int, int]
    labels: Int64Array | None = None
    class_names: tuple[str, ...] | None = None
    names: list[str] | None = None


class ImageSource(ABC):
    """Images of one `DataConfig`, always in the same order.

    Raises UserError, on construction or later, where the settings and the files do not agree.
    """

    selecting_fields: ClassVar[frozenset[str]] = frozenset()
    """Those of `splits`, `classes` and `image_column` that this source knows."""

    def __init__(self, config: DataConfig) -> None:
        """Refuse the settings of `config` that this source does not know."""
        self.config = config
        for field in _SELECTING_FIELDS:
            value, default = getattr(config, field), DataConfig.model_fields[field].default
            if field not in self.selecting_fields and value != default:
                shown = listed(value) if isinstance(value, tuple) else value
                raise UserError(
                    f"data.{field}={shown}: data.source={config.source} does not know it; "
                    f"leave it out"
                )

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything that shapes pixels, labels and their order, as values JSON can hold.

        Cheap enough for every process of every run: files count with size and time of change.
        """

    @abstractmethod
    def contents(self) -> Contents:
        """Number, shape, labels and names of the images."""

    @abstractmethod
    def blocks(self) -> Iterator[UInt8Array]:
        """All images in order, in blocks (b, c, h, w) that fit in memory."""


def listed(words: Collection[str], most: int = 20) -> str:
    """`words` for a message, shortened where there are more than `most`."""
    shown = ", ".join(list(words)[:most])
    return f"{shown}, ... ({len(words)} in all)" if len(words) > most else shown


def choose_splits(config: DataConfig, available: Collection[str]) -> tuple[str, ...]:
    """The splits to read, in the order of `available`; all of them where `data.splits` is unset.

    Raises UserError for a split that is absent.
    """
    if config.splits is None:
        return tuple(available)
    absent = [split for split in config.splits if split not in available]
    if absent or not config.splits:
        what = f"there is no split {absent[0]}" if absent else "no split is named"
        raise UserError(
            f"data.splits={listed(config.splits)}: {what}; choose from {listed(available)}"
        )
    return tuple(split for split in available if split in config.splits)


def check_label_column(config: DataConfig, available: Collection[str]) -> None:
    """Raise UserError where `data.label_column` is set and is not one of `available`."""
    if config.label_column is not None and config.label_column not in available:
        raise UserError(
            f"data.label_column={config.label_column}: there is no such column; choose from "
            f"{listed(available)}, or null to ignore labels"
        )
