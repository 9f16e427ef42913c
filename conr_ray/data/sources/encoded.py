"""Image decoding, shared by the sources of encoded images.

Images keep one channel only if all of them are grey (8-bit or bilevel grey without alpha);
otherwise all are converted to RGB, without alpha. To decide, headers are read up to the first
colour image: a single header if the first image has colour, all headers if all are grey. EXIF
orientation is not applied, as in torchvision's ImageFolder.

A small file can ask for any amount of memory. So formats, pixels of a picture and pixels of what is
kept of it are bounded.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from io import BytesIO
from itertools import islice
from typing import Literal, TypeVar
from zlib import crc32

import numpy as np
from PIL import Image, UnidentifiedImageError

from conr_ray.config import MOST_STORED_PIXELS
from conr_ray.cores import usable_cores
from conr_ray.data.sources.base import Source, UInt8Array, listed
from conr_ray.errors import UserError, one_line

Mode = Literal["L", "RGB"]
T = TypeVar("T")

# Not those that run another program (EPS), or that no camera, scanner or data set writes.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
# Of a picture, decoded: half a GB. PIL warns above 2/3 of this, and refuses more than 4/3.
_MOST_PIXELS = 2**27
MOST_BYTES = 2**29
# Pixels of a side. A damaged header may ask for a line of millions, which takes seconds to decode.
_LONGEST_SIDE = 2**17
# A picture that is longer, in short sides, is cropped before it is resized: a line of 1 x 65,000
# pixels, made 224 high, would have 3 billion.
_LONGEST = 4
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
GREY_MODES = ("1", "L")
_BLOCK_IMAGES = 256
_BLOCK_BYTES = 64 * 2**20
_TASK_IMAGES = 16
# After so many, no more are looked for.
_MOST_BROKEN = 20
_NUM_THREADS = min(16, max(4, usable_cores()))
# Pictures within our bound are no cause for lines on a terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


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
            for block in batched(self._pending(), _BLOCK_IMAGES):
                if not all(pool.map(self._is_grey, block)):
                    return "RGB"
        return "L"

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the first image."""
        first = next(self._pending())
        image = self._decode(first, self._mode)
        if image.width * image.height > MOST_STORED_PIXELS:
            raise UserError(
                f"data.path={self.config.path}: {first.place} has {image.width}x{image.height} "
                f"pixels, more than {MOST_STORED_PIXELS:,}; set data.stored_size to resize all"
            )
        return (len(image.getbands()), image.height, image.width)

    def blocks(self) -> Iterator[UInt8Array]:
        """All images in order, in blocks (b, c, h, w).

        Raises UserError, naming the first image that differs in size, or those that cannot be
        decoded; all of these if they are few.
        """
        num_channels, height, width = self.image_shape
        image_bytes = num_channels * height * width
        block_images = max(1, min(_BLOCK_IMAGES, _BLOCK_BYTES // image_bytes))
        decode = partial(self._decode_task, mode=self._mode)
        broken: list[_Broken] = []
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            for block in batched(self._pending(), block_images):
                parts = list(pool.map(decode, batched(block, _TASK_IMAGES)))
                broken += [one for _, some in parts for one in some]
                if len(broken) > _MOST_BROKEN:
                    break
                if not broken:
                    yield np.concatenate([images for images, _ in parts])
        if broken:
            raise _together(broken)

    def _decode_task(
        self, task: Sequence[PendingImage], mode: Mode
    ) -> tuple[UInt8Array, list[_Broken]]:
        images = np.empty((len(task), *self.image_shape), np.uint8)
        broken: list[_Broken] = []
        _, height, width = self.image_shape
        for row, pending in enumerate(task):
            try:
                image = self._decode(pending, mode)
            except _Broken as error:
                broken.append(error)
                continue
            if image.size != (width, height):
                raise UserError(
                    f"data.path={self.config.path}: {pending.place} has "
                    f"{image.width}x{image.height} pixels, but the first image has "
                    f"{width}x{height}; set data.stored_size={min(width, height)} to resize all"
                )
            images[row] = to_array(image)
        return images, broken

    def _decode(self, pending: PendingImage, mode: Mode) -> Image.Image:
        with _named_errors(self.config.path, pending.place):
            return fit(_to_mode(pending.open(), mode), self.config.stored_size)

    def _is_grey(self, pending: PendingImage) -> bool:
        with _named_errors(self.config.path, pending.place):
            return pending.open().mode in GREY_MODES


class _Broken(UserError):
    """An image that cannot be decoded; `place` locates it."""

    # An error that comes from another process is made with its message alone.
    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


def _together(broken: Sequence[_Broken]) -> UserError:
    """One error for all of them."""
    first, *others = broken
    if not others:
        return first
    told = str(first).rpartition("; ")[0]
    places = listed([one.place for one in others])
    return UserError(f"{told}, nor can {places}; remove or repair them")


@contextmanager
def _named_errors(path: str | None, place: str) -> Iterator[None]:
    """Turn whatever reading an image raises into an error that names the image."""
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
    raise _Broken(
        f"data.path={path}: {place} cannot be decoded ({reason}); remove or repair it", place
    )


def open_encoded(encoded: bytes) -> Image.Image:
    """The image in the bytes of a PNG, JPEG, WebP ... file; pixels are decoded on use."""
    image = Image.open(BytesIO(encoded), formats=_formats())
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {_MOST_PIXELS:,}")
    if max(image.size) > _LONGEST_SIDE:
        raise ValueError(f"{image.width}x{image.height} pixels, a side of over {_LONGEST_SIDE:,}")
    if image.format == "PNG":
        _check_pixels_of_png(memoryview(encoded))
    return image


def _check_pixels_of_png(encoded: memoryview) -> None:
    """Raise ValueError if the checksum of a chunk of pixels is wrong; PIL checks the other ones."""
    place = len(_PNG_BEGIN)
    while (end := place + 8 + int.from_bytes(encoded[place : place + 4], "big")) + 4 <= len(
        encoded
    ):
        chunk, checksum = encoded[place + 4 : end], encoded[end : end + 4]
        if bytes(chunk[:4]) == b"IDAT" and crc32(chunk) != int.from_bytes(checksum, "big"):
            raise ValueError("the checksum of its pixels does not match")
        place = end + 4


@cache
def _formats() -> tuple[str, ...]:
    """Those of the known formats that this PIL has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


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
    longest = _LONGEST * min(image.size)
    if max(image.size) > longest:
        image = _center(image, min(image.width, longest), min(image.height, longest))
    scale = stored_size / min(image.size)
    width, height = (max(stored_size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _center(image, stored_size, stored_size)


def conformed(
    image: Image.Image, shape: tuple[int, int, int], stored_size: int | None
) -> UInt8Array:
    """`image` as a source with `stored_size` would store it among images of `shape` (c, h, w).

    One of another size than theirs is resized until it covers it, then centre-cropped.

    Raises:
        Exception: of many kinds, if the image cannot be decoded.
    """
    channels, height, width = shape
    image = fit(_to_mode(image, "L" if channels == 1 else "RGB"), stored_size)
    if image.size != (width, height):
        longest = _LONGEST * min(image.size)
        image = _center(image, min(image.width, longest), min(image.height, longest))
        scale = max(width / image.width, height / image.height)
        covering = max(width, round(scale * image.width)), max(height, round(scale * image.height))
        image = _center(image.resize(covering, Image.Resampling.BICUBIC), width, height)
    return to_array(image)


def _center(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
