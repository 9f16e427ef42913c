"""Sources of encoded images: how many channels, of what size, and which cannot be read.

Images keep one channel only if all of them are grey; to decide, headers are read up to the first
colour image. If sizes differ, all become squares; that they do shows when they are decoded, and
then all headers are read. So images of one size and colour are read once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TypeVar

import numpy as np

from conr_ray.config import MOST_STORED_PIXELS, DataConfig
from conr_ray.cores import usable_cores
from conr_ray.data.decoders import Decoders, Opened, decode, in_order
from conr_ray.data.decoding import (
    Form,
    Mode,
    batched,
    fit,
    is_grey,
    reason_of,
    to_mode,
    upright_size,
)
from conr_ray.data.inventory import Inventory, Skipped
from conr_ray.data.looks import Look, look_at
from conr_ray.data.records import Record
from conr_ray.data.sources.base import Source, UInt8Array, listed
from conr_ray.errors import StorageError, UserError

# Side of the squares that images of several sizes become, at most; larger ones are asked for.
LARGEST_DEFAULT_SIDE = 256
# Whose headers are looked at at a time.
_LOOK_IMAGES = 256
# What is handed to a core at once: so little that memory is used again rather than asked for anew.
_TASK_IMAGES = 64
_TASK_BYTES = 2 * 2**20
_NUM_THREADS = min(16, max(4, usable_cores()))
# What waits for a store or a server needs no core: so many images are asked for at a time, in tasks
# of which each asks for one after another.
_NUM_REQUESTS = 16
_TASK_REQUESTS = 4
R = TypeVar("R")


@dataclass(frozen=True)
class PendingImage:
    """An image not decoded yet.

    Attributes:
        place: where it is, for messages.
        open: reads it.
        path: of its file, if that is on this machine and holds nothing else.
    """

    place: str
    open: Opened
    path: bytes | None = None


class SizesDiffer(Exception):
    """Images are not of one size, as far as they were looked at."""


class Unreadable(UserError):
    """Images that cannot be read, and why: `images`."""

    # An error that comes from another process is made with its message alone.
    def __init__(self, message: str, images: Sequence[Skipped] = ()) -> None:
        super().__init__(message)
        self.images = images


class EncodedSource(Source):
    """A source whose images PIL decodes block by block, on all cores.

    With `data.on_error=skip`, images that cannot be read are left out.
    """

    def __init__(self, config: DataConfig) -> None:
        """Keep the settings."""
        super().__init__(config)
        self._looked_at: Form | None = None
        self._sizes = ""
        self._skipped: list[Skipped] = []

    @abstractmethod
    def _pending(self) -> Iterator[PendingImage]:
        """All images in order, read lazily."""

    @property
    def is_remote(self) -> bool:
        """Whether images come from a store or a server."""
        return False

    @property
    def _num_threads(self) -> int:
        return max(_NUM_THREADS, _NUM_REQUESTS) if self.is_remote else _NUM_THREADS

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images, if they are of one size, or after a look."""
        return self.form.shape

    @property
    def has_files(self) -> bool:
        """Whether images are files, which may take less than their pixels."""
        return True

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Those that the last reading of all blocks has left out."""
        return self._skipped

    def inventory(self) -> Inventory:
        """The sizes of images, if a look at all has found several."""
        return replace(super().inventory(), sizes=self._sizes)

    def look(self, most: int | None = None) -> None:
        """Read headers: what images become since sizes differ, or if the first `most` ones do."""
        sizes: list[tuple[int, int]] = []
        with ThreadPoolExecutor(self._num_threads) as pool:
            for block in batched(islice(self._pending(), most), _LOOK_IMAGES):
                sizes += [size for size in pool.map(_size_of, block) if size is not None]
        # A header may tell nothing of what decoding has shown: a tag behind the pixels of a PNG.
        if not sizes or (most is not None and len(set(sizes)) < 2):
            return
        areas = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
        smallest, largest = ("x".join(map(str, areas[place])) for place in (0, -1))
        # A few small ones among many large ones do not make all small.
        side = int(np.median([min(size) for size in sizes]))
        stored_size = self.config.stored_size or max(1, min(side, LARGEST_DEFAULT_SIDE))
        channels = 1 if self._mode == "L" else 3
        shape = channels, stored_size, stored_size
        self._looked_at = Form(self._mode, stored_size, shape)
        self._sizes = f"{smallest} to {largest}"

    @cached_property
    def _mode(self) -> Mode:
        looked = False
        with ThreadPoolExecutor(self._num_threads) as pool:
            # For most sources the first image decides.
            for block in batched(self._pending(), 1):
                found = _grey_of(block[0])
                looked = looked or found is not None
                if found is False:
                    return "RGB"
                if looked:
                    break
            for block in batched(self._pending(), _LOOK_IMAGES):
                if any(found is False for found in pool.map(_grey_of, block)):
                    return "RGB"
        return "L"

    @property
    def form(self) -> Form:
        """What images are brought to, if they are of one size, or after a look."""
        return self._looked_at or self._first_form

    @cached_property
    def _first_form(self) -> Form:
        """By the first image that can be read."""
        broken: list[Skipped] = []
        stored_size = self.config.stored_size
        for row, pending in enumerate(self._pending()):
            try:
                image = fit(to_mode(pending.open(), self._mode), stored_size)
            except StorageError:
                raise
            except Exception as error:
                broken.append(Skipped(row, pending.place, reason_of(error)))
                continue
            if image.width * image.height > MOST_STORED_PIXELS:
                raise UserError(
                    f"data.path={self.config.path}: {pending.place} has {image.width}x"
                    f"{image.height} pixels, more than {MOST_STORED_PIXELS:,}; set "
                    "data.stored_size to resize all"
                )
            channels = len(image.getbands())
            return Form(self._mode, stored_size, (channels, image.height, image.width))
        raise self._unreadable(broken)

    def blocks(self) -> Iterator[UInt8Array]:
        """All images that can be read in order, in blocks (b, c, h, w).

        Raises:
            Unreadable: some cannot, and are not to be skipped; all are named.
            SizesDiffer: not all are of one size, and `look` was not called.
        """
        for images, _ in self._decoded_blocks(keeps=False):
            yield images

    def recorded(self) -> Iterator[tuple[UInt8Array, Sequence[Record]]]:
        """The same, with their files."""
        return self._decoded_blocks(keeps=True)

    def _decoded_blocks(self, *, keeps: bool) -> Iterator[tuple[UInt8Array, Sequence[Record]]]:
        form = self.form
        task_images = max(1, min(_TASK_IMAGES, _TASK_BYTES // math.prod(form.shape)))
        skips = self.config.on_error == "skip"
        broken: list[Skipped] = []
        self._skipped = broken
        work = partial(decode, form=form, keeps=keeps)
        # An error that is handled keeps what has raised it, with its processes.
        with closing(self._worked(work, task_images)) as worked:
            for task, parts in worked:
                place = 0
                for images, failed, differs, files in parts:
                    if differs:
                        raise SizesDiffer
                    some = [(*task[place + one], why) for one, why in failed]
                    broken += [Skipped(row, pending.place, why) for row, pending, why in some]
                    begin, place = place, place + len(images) + len(failed)
                    if not len(images) or (broken and not skips):
                        continue
                    records: list[Record] = []
                    if keeps:
                        without = {row for row, _, _ in some}
                        read = [one for row, one in task[begin:place] if row not in without]
                        found = zip(images, files, read, strict=True)
                        records = [Record.of(pixels, file, one.path) for pixels, file, one in found]
                    yield images, records
        if broken and not skips:
            raise self._unreadable(broken)

    def looks(self) -> Iterator[tuple[str, Look]]:
        """Where each image is, and what it is, in order; all are decoded."""
        for task, parts in self._worked(look_at, _TASK_IMAGES):
            found = [one for part in parts for one in part]
            for (_, pending), one in zip(task, found, strict=True):
                yield pending.place, one

    def _worked(
        self, work: Callable[[list[bytes | Opened]], R], task_images: int
    ) -> Generator[tuple[list[tuple[int, PendingImage]], list[R]], None, None]:
        """Rows and images, so many at a time, and what some work on them has given, in parts."""
        with Decoders() as decoders, ThreadPoolExecutor(self._num_threads) as pool:

            def run(
                task: list[tuple[int, PendingImage]],
            ) -> tuple[list[tuple[int, PendingImage]], list[R]]:
                return task, decoders.run(work, [pending.open for _, pending in task])

            most = _TASK_REQUESTS if self.is_remote else task_images
            tasks = batched(enumerate(self._pending()), min(task_images, most))
            yield from in_order(pool, run, tasks, 2 * self._num_threads)

    def _unreadable(self, broken: Sequence[Skipped]) -> UserError:
        """One error for all of them."""
        path = self.config.path
        if not broken:
            return UserError(f"data.path={path}: no images; name others")
        first, *others = broken
        told = f"data.path={path}: {first.place} cannot be decoded ({first.reason})"
        if others:
            told += f", nor can {listed([one.place for one in others])}"
        them = "them" if others else "it"
        remedy = f"remove or repair {them}"
        if self.config.on_error == "stop":
            remedy += f", or set data.on_error=skip to leave {them} out"
        return Unreadable(f"{told}; {remedy}", broken)


def _size_of(pending: PendingImage) -> tuple[int, int] | None:
    """Width and height by the header; None if it cannot be read."""
    try:
        return upright_size(pending.open())
    except StorageError:
        raise
    except Exception:
        return None


def _grey_of(pending: PendingImage) -> bool | None:
    """Whether an image is grey, by its header; None if it cannot be read."""
    try:
        return is_grey(pending.open())
    except StorageError:
        raise
    except Exception:
        return None
