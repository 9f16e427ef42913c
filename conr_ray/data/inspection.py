"""What a data set holds, found before anything is trained.

Shapes: n samples.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conr_ray.config import DataConfig
from conr_ray.data.cache import cache_limit, default_cache_dir, size_of
from conr_ray.data.copies import num_bytes
from conr_ray.data.inventory import Skipped, counted, line_of
from conr_ray.data.looks import DIGEST_BYTES, Look
from conr_ray.data.progress import Lines
from conr_ray.data.sources import Source, make_source
from conr_ray.data.sources.encoded import EncodedSource
from conr_ray.errors import UserError, printable

# That lines name; the JSON has all.
_MOST_NAMED = 10
_MOST_CLASSES = 30


@dataclass
class Inspection:
    """What a data set holds.

    Attributes:
        line: what the data are, as commands tell it; empty if nothing can be read.
        refused: why nothing could be trained on them as they are; empty if it could.
        num_samples: those that were found, also such as cannot be read.
        num_bytes: of their files, or of their pixels or numbers.
        formats, modes: Pillow's names of formats and of what pixels are, and how many.
        sizes: width and height, and how many.
        broken: what cannot be read.
        copies: groups of places whose samples are equal.
        num_conflicts: groups of copies that do not have one label.
        labels_from, why_no_labels: as of an inventory.
        balance: of each class that occurs, how many; None without labels.
        num_unlabelled: samples without a label, where others have some.
        left_out: what is no sample, and how many of each kind.
        shape: of what is decoded, (n, c, h, w) or (n, d); empty if that is not known.
    """

    line: str = ""
    refused: str = ""
    num_samples: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    broken: list[Skipped] = field(default_factory=list)
    copies: list[list[str]] = field(default_factory=list)
    num_conflicts: int = 0
    labels_from: str = ""
    why_no_labels: str = ""
    balance: dict[str, int] | None = None
    num_unlabelled: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    shape: tuple[int, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """As JSON values, with where the decoded copy would be and whether it fits there."""
        sizes = [[*size, count] for size, count in self.sizes.most_common()]
        return {
            **self.__dict__,
            "sizes": sizes,
            "broken": [one._asdict() for one in self.broken],
            "decoded": self._decoded() if self.shape else None,
        }

    def _decoded(self) -> dict[str, Any]:
        root = default_cache_dir()
        there = next(one for one in (root, *root.absolute().parents) if one.is_dir())
        return {
            "bytes": num_bytes(self.shape),
            "cache": str(root),
            "free_bytes": shutil.disk_usage(there).free,
            "limit_bytes": cache_limit(root),
            "free_memory_bytes": _free_memory(),
        }

    def lines(self) -> Iterator[str]:
        """The same for people."""
        if self.line:
            yield self.line
        if self.formats:
            kinds = f"{_told(self.formats)}; pixels: {_told(self.modes)}"
            yield f"files: {kinds}; {size_of(self.num_bytes)}"
            yield f"sizes: {self._told_of_sizes()}"
        yield from self._lines_of_labels()
        yield from self._lines_of_copies()
        for one in self.broken[:_MOST_NAMED]:
            yield f"cannot be read: {printable(one.place)} ({printable(one.reason)})"
        if (rest := len(self.broken) - _MOST_NAMED) > 0:
            yield f"cannot be read: {rest:,} more; --json names all"
        if self.shape:
            yield self._line_of_room()
        if self.refused:
            yield f"a run would stop: {self.refused}"

    def _told_of_sizes(self) -> str:
        areas = sorted(self.sizes, key=lambda size: (size[0] * size[1], size))
        names = [f"{width}x{height}" for width, height in (areas[0], areas[-1])]
        if len(areas) == 1:
            return f"all {names[0]}"
        become = f"; they become {self.shape[3]}x{self.shape[2]}" if self.shape else ""
        return f"{len(areas):,} from {names[0]} to {names[1]}{become}"

    def _lines_of_labels(self) -> Iterator[str]:
        if self.balance is None:
            return
        counts = sorted(self.balance.items(), key=lambda one: (-one[1], one[0]))
        (most, largest), (least, smallest) = counts[0], counts[-1]
        told = f"{smallest:,} to {largest:,} samples"
        if smallest == largest:
            told = f"{counted(largest, 'sample', 'samples')} each"
        elif smallest:
            told += f", {largest / smallest:.1f} to 1"
        if len(counts) <= _MOST_CLASSES:
            names = ", ".join(f"{printable(name)} {count:,}" for name, count in counts)
        else:
            names = f"most of {printable(most)}, least of {printable(least)}"
        yield f"classes: {told} ({names})"

    def _lines_of_copies(self) -> Iterator[str]:
        if not self.copies:
            yield "copies: none"
            return
        extra = sum(map(len, self.copies)) - len(self.copies)
        labels = (
            f"; {self.num_conflicts:,} of them have copies with other labels"
            if self.num_conflicts
            else ""
        )
        yield (
            f"copies: {counted(extra, 'sample is', 'samples are')} an exact copy of another, in "
            f"{counted(len(self.copies), 'group', 'groups')}{labels}"
        )
        for group in self.copies[:_MOST_NAMED]:
            shown = " = ".join(printable(place) for place in group[:4])
            yield f"  {shown}" + (f" = {len(group) - 4:,} more" if len(group) > 4 else "")

    def _line_of_room(self) -> str:
        room = self._decoded()
        needed, limit = room["bytes"], room["limit_bytes"]
        fits = "it fits" if needed <= room["free_bytes"] else "it does not fit"
        if limit is not None and needed > limit:
            fits = f"more than CONR_RAY_CACHE_LIMIT allows, {size_of(limit)}"
        memory = ""
        if (free := room["free_memory_bytes"]) is not None:
            memory = f"; {size_of(free)} of memory are free"
        return (
            f"decoded: {size_of(needed)}, in {room['cache']} with {size_of(room['free_bytes'])} "
            f"free: {fits}{memory}"
        )


def inspect(config: DataConfig) -> Inspection:
    """Read all samples of a data set and tell what they are; nothing is written.

    Raises:
        UserError: the source cannot be read at all.
    """
    source, found = make_source(config), Inspection()
    if isinstance(source, EncodedSource):
        places, digests = _look_at_images(source, found)
        if len(found.sizes) > 1:
            source.look()
    else:
        places, digests = _look_at_rows(source, found)
    labels = None
    try:
        contents = source.contents()
        labels = contents.labels
        found.shape = (found.num_samples - len(found.broken), *contents.row_shape)
        _describe_labels(found, source, labels, contents.class_names)
        inventory = source.inventory()
        if config.on_error == "skip":
            inventory = replace(inventory, skipped=tuple(found.broken))
        found.line = line_of(
            found.num_samples - len(inventory.skipped),
            contents.row_shape,
            labels,
            None if found.balance is None else len(found.balance),
            inventory,
        )
    except UserError as error:
        found.refused = str(error)
    if found.broken and config.on_error == "stop" and not found.refused:
        them = counted(len(found.broken), "sample", "samples")
        found.refused = f"{them} cannot be read: repair or remove them, or set data.on_error=skip"
    _find_copies(found, places, digests, labels)
    return found


def _look_at_images(
    source: EncodedSource, found: Inspection
) -> tuple[list[str], NDArray[np.uint64]]:
    places: list[str] = []
    digests = bytearray()
    lines = Lines("looked at", None)
    for row, (place, look) in enumerate(source.looks()):
        places.append(place)
        digests += look.digest
        found.num_bytes += look.num_bytes
        _count(found, row, place, look)
        lines.worked(1)
    found.num_samples = len(places)
    return places, _numbers(digests)


def _count(found: Inspection, row: int, place: str, look: Look) -> None:
    if look.reason:
        found.broken.append(Skipped(row, place, look.reason))
        return
    found.formats[look.format] += 1
    found.modes[look.mode] += 1
    found.sizes[look.size] += 1


def _look_at_rows(source: Source, found: Inspection) -> tuple[list[str], NDArray[np.uint64]]:
    digests = bytearray()
    for block in source.blocks():
        for row in np.ascontiguousarray(block):
            digests += blake2b(row.data, digest_size=DIGEST_BYTES).digest()
        found.num_bytes += block.nbytes
        if block.ndim == 4:
            found.sizes[block.shape[3], block.shape[2]] += len(block)
        found.num_samples += len(block)
    return [f"row {row}" for row in range(found.num_samples)], _numbers(digests)


def _numbers(digests: bytearray) -> NDArray[np.uint64]:
    return np.frombuffer(bytes(digests), np.uint64).reshape(-1, DIGEST_BYTES // 8)


def _describe_labels(
    found: Inspection,
    source: Source,
    labels: NDArray[np.int64] | None,
    class_names: Sequence[str] | None,
) -> None:
    inventory = source.inventory()
    found.labels_from, found.why_no_labels = inventory.labels_from, inventory.why_no_labels
    found.left_out = dict(inventory.left_out)
    if labels is None or not (labels >= 0).any():
        found.labels_from = ""
        return
    values, counts = np.unique(labels[labels >= 0], return_counts=True)
    names = [str(v) if class_names is None else class_names[v] for v in values.tolist()]
    found.balance = dict(zip(names, counts.tolist(), strict=True))
    found.num_unlabelled = int((labels < 0).sum())


def _find_copies(
    found: Inspection,
    places: Sequence[str],
    digests: NDArray[np.uint64],
    labels: NDArray[np.int64] | None,
) -> None:
    readable = np.ones(len(places), np.bool_)
    readable[[one.row for one in found.broken]] = False
    rows = np.flatnonzero(readable)
    order = rows[np.lexsort(digests[rows].T)]
    same = (digests[order][1:] == digests[order][:-1]).all(1)
    # Groups begin where a digest differs from the one before.
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    lengths = np.diff(np.append(starts, len(order)))
    groups = [
        np.sort(order[start : start + length])
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        if length > 1
    ]
    for group in sorted(groups, key=lambda group: int(group[0])):
        found.copies.append([places[row] for row in group.tolist()])
        if labels is not None and len(set(labels[group].tolist())) > 1:
            found.num_conflicts += 1


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.most_common())


def _free_memory() -> int | None:
    """Bytes of memory that are free, as the system counts caches; None where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
