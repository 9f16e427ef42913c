"""The interface of all sources.

Shapes: n samples, c channels (1 grey or 3 RGB), h and w pixels, d features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.decoding import Form
from conr_ray.data.inventory import Inventory, Skipped
from conr_ray.data.records import Record
from conr_ray.errors import UserError

UInt8Array = NDArray[np.uint8]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a source holds, known before its samples are decoded.

    Attributes:
        num_rows: number of samples, n.
        row_shape: (c, h, w) of images, (d,) of vectors.
        labels: int64 (n,), -1 for unlabelled samples; None if the source has no labels.
        class_names: by label; None if only numbers are known.
        names: paths of the images inside the source; None if samples have no paths.
    """

    num_rows: int
    row_shape: tuple[int, ...]
    labels: Int64Array | None = None
    class_names: tuple[str, ...] | None = None
    names: list[str] | None = None


class Source(ABC):
    """Samples of one `DataConfig`, always in the same order.

    Raises UserError, on construction or later, if the settings and the files do not agree.

    Args:
        config: the section `data` of a run's config.
    """

    def __init__(self, config: DataConfig) -> None:
        """Keep the settings."""
        self.config = config

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything that determines samples, labels and their order, as JSON values.

        Cheap enough for every process of every run: files enter with size and modification time.
        """

    @abstractmethod
    def contents(self) -> Contents:
        """Number, shape, labels and names of the samples."""

    def look(self, most: int | None = None) -> None:  # noqa: B027
        """Look at samples before they are read, so that what becomes of their sizes is known.

        Args:
            most: samples to look at, whose sizes may differ; None looks at all, whose sizes do.
        """

    def inventory(self) -> Inventory:
        """What was found besides the samples; complete after `contents`."""
        return Inventory(labels_from=self.labels_from)

    @property
    def labels_from(self) -> str:
        """Where labels are from, for people."""
        return f"column {self.config.label_column}"

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Samples that the last reading of all blocks has left out, since they cannot be read."""
        return ()

    @abstractmethod
    def blocks(self) -> Iterator[NDArray[Any]]:
        """All samples in order, in blocks that fit in memory.

        Images are uint8 (b, c, h, w), vectors float32 (b, d).
        """

    @property
    def form(self) -> Form:
        """What images are brought to."""
        channels, height, width = self.contents().row_shape
        return Form("L" if channels == 1 else "RGB", None, (channels, height, width))

    def recorded(self) -> Iterator[tuple[UInt8Array, Sequence[Record]]]:
        """The blocks of images, uint8 (b, c, h, w), with what each can be decoded from again."""
        for block in self.blocks():
            yield block, [Record.of(pixels) for pixels in block]


def listed(words: Collection[str], most: int = 20) -> str:
    """`words` for a message, shortened if there are more than `most`, or if they are long."""
    shown = [word if len(word) <= 40 else f"{word[:30]}...{word[-7:]}" for word in words]
    while most > 1 and sum(map(len, shown[:most])) > 300:
        most -= 1
    text = ", ".join(shown[:most])
    return f"{text}, ... ({len(words)} in all)" if len(words) > most else text


def choose_splits(config: DataConfig, available: Collection[str]) -> tuple[str, ...]:
    """The splits to read, in the order of `available`; all of them if `data.splits` is unset.

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
    """Raise UserError if `data.label_column` is set and is not one of `available`."""
    if config.label_column is not None and config.label_column not in available:
        raise UserError(
            f"data.label_column={config.label_column}: there is no such column; choose from "
            f"{listed(available)}, or null to ignore labels"
        )
