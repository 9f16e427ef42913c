"""Image decoding, shared by the sources of encoded images.

Images keep one channel only if all of them are grey (8-bit or bilevel grey without alpha);
otherwise all are converted to RGB, without alpha. To decide, headers are read up to the first
colour image: a single header if the first image has colour, all headers if all are grey. EXIF
orientation is not applied, as in torchvision's ImageFolder.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from conr_ray.cores import usable_cores
from conr_ray.data.sources.base import Source, UInt8Array
from conr_ray.data.sources.files import one_line
from conr_ray.errors import UserError

Mode = Literal["L", "RGB"]
T = TypeVar("T")

_GREY_MODES = ("1", "L")
_BLOCK_IMAGES = 256
_BLOCK_BYTES = 64 * 2**20
_TASK_IMAGES = 16
_NUM_THREADS = min(16, max(4, usable_cores()))


@dataclass(frozen=True)
class PendingImage:
    """An image not decoded yet: `place` locates it in messages, `open` reads it."""

    place: str
    open: Callable[[], Image.Image]


class EncodedSource(Source):
    """A source whose images PIL decodes block by block, in a few threads."""

    @abstractmethod
    def _pending(self) -> Iterator[PendingImage]:
        """All images in order, read lazily."""

    @cached_property
    def _mode(self) -> Mode:
        # For most sources the first image decides.
        if not self._is_grey(next(self._pending())):
            return "RGB"
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for block in _batched(self._pending(), _BLOCK_IMAGES):
                if not all(pool.map(self._is_grey, block)):
                    return "RGB"
        return "L"

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first image."""
        image = self._decode(next(self._pending()), self._mode)
        return (len(image.getbands()), image.height, image.width)

    def blocks(self) -> Iterator[UInt8Array]:
        """All images in order, in blocks (b, c, h, w).

        Raises UserError, naming the first image that cannot be decoded or differs in size.
        """
        num_channels, height, width = self.image_shape
        image_bytes = num_channels * height * width
        block_images = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // image_bytes))
        decode = partial(self._decode_task, mode=self._mode)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for block in _batched(self._pending(), block_images):
                yield np.concatenate(list(pool.map(decode, _batched(block, _TASK_IMAGES))))

    def _decode_task(self, task: Sequence[PendingImage], mode: Mode) -> UInt8Array:
        images = np.empty((len(task), *self.image_shape), np.uint8)
        _, height, width = self.image_shape
        for row, pending in enumerate(task):
            image = self._decode(pending, mode)
            if image.size != (width, height):
                raise UserError(
                    f"data.path={self.config.path}: {pending.place} has "
                    f"{image.width}x{image.height} pixels, but the first image has "
                    f"{width}x{height}; set data.stored_size={min(width, height)} to resize all"
                )
            images[row] = to_array(image)
        return images

    def _decode(self, pending: PendingImage, mode: Mode) -> Image.Image:
        with _named_errors(self.config.path, pending.place):
            return fit(_to_mode(pending.open(), mode), self.config.stored_size)

    def _is_grey(self, pending: PendingImage) -> bool:
        with _named_errors(self.config.path, pending.place):
            return pending.open().mode in _GREY_MODES


@contextmanager
def _named_errors(path: str | None, place: str) -> Iterator[None]:
    """Turn whatever reading an image raises into a UserError that names the image."""
    try:
        yield
    except UnidentifiedImageError:
        # PIL's own message contains the address of a buffer.
        reason = "unknown image format"
    # Decoders raise many kinds of errors on broken bytes: OSError, SyntaxError, struct.error.
    except Exception as error:
        reason = one_line(error)
    else:
        return
    raise UserError(f"data.path={path}: {place} cannot be decoded ({reason}); remove or repair it")


def open_encoded(encoded: bytes) -> Image.Image:
    """The image in the bytes of a PNG, JPEG, WebP ... file; pixels are decoded on use."""
    return Image.open(BytesIO(encoded))


def _to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"pixels of mode {image.mode} do not fit into 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        # PIL warns when it drops a palette's transparency in one step.
        image = image.convert("RGBA")
    return image.convert(mode)


def fit(image: Image.Image, stored_size: int | None) -> Image.Image:
    """`image` with its short side resized to `stored_size` (bicubic), then centre-cropped."""
    if stored_size is None:
        return image
    scale = stored_size / min(image.size)
    width, height = (max(stored_size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - stored_size) // 2, (height - stored_size) // 2
    return image.crop((left, top, left + stored_size, top + stored_size))


def to_array(image: Image.Image) -> UInt8Array:
    """The pixels of a grey or RGB image as (c, h, w)."""
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def fit_arrays(images: UInt8Array, stored_size: int | None) -> UInt8Array:
    """`fit` for decoded images, (n, c, h, w) with 1 or 3 channels."""
    if stored_size is None:
        return images
    # PIL expects a trailing channel axis for colour images and none for grey ones.
    pictures = images[:, 0] if images.shape[1] == 1 else images.transpose(0, 2, 3, 1)
    return np.stack([to_array(fit(Image.fromarray(p), stored_size)) for p in pictures])


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
