"""What a benchmark set is: its official files, how many images it has, and its terms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from conr_ray.errors import UserError

_BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class Archive:
    """A file as its makers publish it.

    Attributes:
        name: of the file.
        url: where it is, or where it is to be asked for.
        num_bytes: its size.
        md5: its checksum.
        is_free: whether it may be fetched without asking.
        folder: what it becomes when it is unpacked, which does as well.
    """

    name: str
    url: str
    num_bytes: int
    md5: str
    is_free: bool = True
    folder: str = ""

    def remedy(self, root: Path) -> str:
        """What to put where."""
        unpacked = f", or its unpacked folder {self.folder}," if self.folder else ""
        return (
            f"put {self.name} ({self.num_bytes:,} bytes, MD5 {self.md5}){unpacked} into {root}; "
            f"it is at {self.url}"
        )

    def check(self, path: Path, *, whole: bool = True) -> None:
        """Raise UserError if a file is of another size, or if `whole` of another checksum."""
        found = path.stat().st_size
        if found != self.num_bytes:
            raise UserError(
                f"{path}: {found:,} bytes, not the {self.num_bytes:,} of the official file: fetch "
                f"it again from {self.url}"
            )
        if whole and (md5 := _md5(path)) != self.md5:
            raise UserError(
                f"{path}: its MD5 is {md5}, that of the official file {self.md5}: fetch it again "
                f"from {self.url}"
            )


def _md5(path: Path) -> str:
    # Not for security: it is the sum that the makers of the sets publish.
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Images:
    """Some images of one split.

    Attributes:
        split: such as train.
        images: files of images, or pixels, uint8 (b, h, w, c).
        labels: int64 (b,) by column; -1 for those without one.
        class_names: of columns of labels, where they are known; the same in all parts.
        names: paths in the official set; None if it has none.
    """

    split: str
    images: Sequence[bytes] | NDArray[np.uint8]
    labels: Mapping[str, NDArray[np.int64]]
    class_names: Mapping[str, Sequence[str]]
    names: Sequence[str] | None = None


class Reader(Protocol):
    """Reads the official files of a set."""

    def __call__(self, spec: BenchmarkSet, root: Path, options: Options) -> Iterable[Images]:
        """All images of the set below `root`, part by part, split by split.

        Raises:
            UserError: a file is missing, damaged, or cannot be fetched; with the remedy.
        """


@dataclass(frozen=True)
class Options:
    """What a person decides.

    Attributes:
        unlabelled: with the unlabelled images of a set that has some.
        download: fetch official files that are missing and may be fetched.
        verify: compare checksums that take minutes, too.
    """

    unlabelled: bool = False
    download: bool = True
    verify: bool = False


@dataclass(frozen=True)
class BenchmarkSet:
    """A set as the literature uses it.

    Attributes:
        name: on the command line.
        title: for people.
        read: reads its files.
        counts: images of each split; of one that is not told any number is right.
        classes: number of classes of each column of labels.
        per_class: fewest and most images of a class of the first column, by split.
        archive: the official file.
        licence: terms, in a few words.
        preset: the preset that trains on it; empty without one.
        shape: (h, w, c) of raw pixels; empty for files of images.
        wnids: the classes of ImageNet that it has, in order.
        num_unlabelled: images that it has besides, in a split unlabeled.
    """

    name: str
    title: str
    read: Reader
    counts: Mapping[str, int]
    classes: Mapping[str, int]
    per_class: Mapping[str, tuple[int, int]]
    archive: Archive
    licence: str
    preset: str = ""
    shape: tuple[int, ...] = ()
    wnids: tuple[str, ...] = ()
    num_unlabelled: int = 0


class Tally:
    """Counts images while they are read, and compares with what a set has."""

    def __init__(self, spec: BenchmarkSet) -> None:
        """Of no images yet."""
        self._spec = spec
        self._counts: dict[str, int] = {}
        self._of_class: dict[str, NDArray[np.int64]] = {}

    def add(self, part: Images) -> None:
        """Count some images."""
        split, spec = part.split, self._spec
        self._counts[split] = self._counts.get(split, 0) + len(part.images)
        column, num_classes = next(iter(spec.classes.items()))
        known = part.labels[column][part.labels[column] >= 0]
        counts = np.bincount(known, minlength=num_classes)
        self._of_class[split] = self._of_class.get(split, np.zeros(1, np.int64)) + counts

    def check(self, root: Path) -> None:
        """Raise UserError if there are other numbers of images than the set has."""
        spec = self._spec
        for split, expected in spec.counts.items():
            found = self._counts.get(split, 0)
            if found != expected:
                raise self._error(root, f"{split} has {found:,} images, not {expected:,}")
        for split, (fewest, most) in spec.per_class.items():
            for number, count in enumerate(self._of_class.get(split, np.zeros(1)).tolist()):
                if not fewest <= count <= most:
                    name = spec.wnids[number] if spec.wnids else f"class {number}"
                    told = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
                    raise self._error(root, f"{name} of {split} has {count:,} images, not {told}")

    def _error(self, root: Path, what: str) -> UserError:
        return UserError(f"{self._spec.title} in {root}: {what}: {self._spec.archive.remedy(root)}")

    def as_json(self) -> dict[str, Any]:
        """Number of images by split."""
        return dict(self._counts)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Parts of a sequence."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
