"""What was found where data were looked for, for people: one line, and a file with reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from conr_ray.errors import printable

FILE = "data.json"
# Kinds that the line names; the file has all.
_MOST_NAMED = 6


class Skipped(NamedTuple):
    """A sample that is not there, since it cannot be read: its row, where it is, and why."""

    row: int
    place: str
    reason: str


@dataclass(frozen=True)
class Inventory:
    """What a source found besides its samples.

    Attributes:
        labels_from: where labels are from, such as folders or column label; empty without labels.
        why_no_labels: what speaks against them where there might be some; empty if nothing does.
        left_out: what was found that is no sample, such as .txt, and how many.
        why_left_out: for some of these, the reason.
        sizes: of images that have several, as "600x400 to 4032x3024"; empty if all have one.
        skipped: samples that cannot be read.
    """

    labels_from: str = ""
    why_no_labels: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    why_left_out: Mapping[str, str] = field(default_factory=dict)
    sizes: str = ""
    skipped: tuple[Skipped, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "labels_from": self.labels_from,
            "why_no_labels": self.why_no_labels,
            "left_out": dict(self.left_out),
            "why_left_out": dict(self.why_left_out),
            "sizes": self.sizes,
            "skipped": [list(one) for one in self.skipped],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Inventory:
        """What `as_json` has made."""
        skipped = tuple(Skipped(*one) for one in found["skipped"])
        return cls(**{**found, "skipped": skipped})

    def of_labels(self, labels: NDArray[np.int64] | None, num_classes: int | None) -> str:
        """Whether there are labels, where from, and of how many classes."""
        if labels is None or num_classes is None:
            return "no labels" + (f" ({self.why_no_labels})" if self.why_no_labels else "")
        origin = f" from {self.labels_from}" if self.labels_from else ""
        told = f"labels{origin}: {counted(num_classes, 'class', 'classes')}"
        unlabelled = int((labels < 0).sum())
        return f"{told}, {unlabelled:,} unlabelled" if unlabelled else told

    def of_left_out(self) -> str:
        """What was left out and skipped, begun with a semicolon; empty for nothing."""
        told = ""
        if self.left_out:
            told += f"; left out: {told_of(self.left_out)}"
            # Only of endings something can be read, if something is done.
            whys = self.why_left_out.items()
            if remedies := [f"{kind}: {why}" for kind, why in whys if kind.startswith(".")]:
                told += f" ({'; '.join(remedies)})"
        if self.skipped:
            told += f"; skipped: {len(self.skipped):,} that cannot be read"
        return told


def counted(count: int, one: str, several: str) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else several}"


def told_of(left_out: Mapping[str, int]) -> str:
    """Counts of kinds, the greatest first, as "20 .jfif, 1 @eaDir/"."""
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))
    told = [f"{count:,} {printable(kind)}" for kind, count in kinds[:_MOST_NAMED]]
    if rest := kinds[_MOST_NAMED:]:
        told.append(f"{sum(count for _, count in rest):,} others")
    return ", ".join(told)


def told_of_shape(num_rows: int, row_shape: Sequence[int]) -> str:
    """As "48 images 8x8 grey" or "10,000 vectors of 512 numbers"."""
    if len(row_shape) == 1:
        return f"{counted(num_rows, 'vector', 'vectors')} of {row_shape[0]} numbers"
    channels, height, width = row_shape
    colour = "grey" if channels == 1 else "RGB"
    return f"{counted(num_rows, 'image', 'images')} {width}x{height} {colour}"


def line_of(
    num_rows: int,
    row_shape: Sequence[int],
    labels: NDArray[np.int64] | None,
    num_classes: int | None,
    found: Inventory,
    num_in_all: int | None = None,
) -> str:
    """What the data are and what was left out, in a line.

    Args:
        num_rows: number of samples.
        row_shape: of a sample, (c, h, w) or (d,).
        labels: (n,), -1 for unlabelled samples; None without labels.
        num_classes: those that occur; None without labels.
        found: what was found besides.
        num_in_all: of how many the samples are a subset.
    """
    told = told_of_shape(num_rows, row_shape)
    if num_in_all is not None:
        told += f", of {num_in_all:,}"
    if found.sizes:
        told += f", from {found.sizes}"
    return f"data: {told}, {found.of_labels(labels, num_classes)}{found.of_left_out()}"
