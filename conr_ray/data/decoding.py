"""Pictures of any kind to arrays of bytes: one conversion for training and for new pictures.

A set of pictures keeps one channel only if all of them are grey, without alpha; otherwise all
become RGB. docs/data.md has the table of what becomes of each kind.

A small file can ask for any amount of memory. So formats, pixels of a picture and pixels of what is
kept of it are bounded.

Shapes: n pictures, c channels (1 grey or 3 RGB), h and w pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from io import BytesIO
from itertools import islice
from typing import Literal, TypeVar
from zlib import crc32

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError, features

from conr_ray.errors import one_line

UInt8Array = npt.NDArray[np.uint8]
Mode = Literal["L", "RGB"]
T = TypeVar("T")

# Not those that run another program (EPS), or that no camera, scanner or data set writes.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF")
# Those that a Pillow may know by name and yet not read.
_OPTIONAL = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
# Of a picture, decoded: half a GB. PIL warns above 2/3 of this, and refuses more than 4/3.
_MOST_PIXELS = 2**27
MOST_BYTES = 2**29
# Pixels of a side. A damaged header may ask for a line of millions, which takes seconds to decode.
_LONGEST_SIDE = 2**17
# A picture that is longer, in short sides, is cropped before it is resized: a line of 1 x 65,000
# pixels, made 224 high, would have 3 billion.
_LONGEST = 4
_PNG_BEGIN = b"\x89PNG\r\n\x1a\n"
_GREY_MODES = ("1", "L", "I", "F")
_ORIENTATION = 0x0112
# What turns a picture upright, by the value of the EXIF tag.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pictures within our bound are no cause for lines on a terminal.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_encoded(encoded: bytes) -> Image.Image:
    """The first picture in the bytes of a PNG, JPEG, WebP ... file; pixels are decoded on use.

    Raises:
        Exception: of many kinds, if there is none; `reason_of` tells of them.
    """
    if not encoded:
        raise ValueError("it is empty")
    image = Image.open(BytesIO(encoded), formats=known_formats())
    if image.width * image.height > _MOST_PIXELS:
        raise ValueError(f"{image.width}x{image.height} pixels, more than {_MOST_PIXELS:,}")
    if max(image.size) > _LONGEST_SIDE:
        raise ValueError(f"{image.width}x{image.height} pixels, a side of over {_LONGEST_SIDE:,}")
    if image.format == "PNG":
        _check_pixels_of_png(memoryview(encoded))
    return image


def file_of(image: Image.Image) -> bytes | None:
    """The bytes that `open_encoded` has opened, until pixels are decoded; None without a file."""
    file = getattr(image, "fp", None)
    return file.getvalue() if isinstance(file, BytesIO) else None


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
def known_formats() -> tuple[str, ...]:
    """Those of the formats that this PIL reads, with its plug-in for HEIF if that is installed."""
    Image.init()
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return tuple(
        name
        for name in _FORMATS
        if name in Image.OPEN and (name not in _OPTIONAL or features.check(_OPTIONAL[name]))
    )


def has_format(name: str) -> bool:
    """Whether pictures of a format, such as HEIF, are read here."""
    return name in known_formats()


def reason_of(error: BaseException) -> str:
    """Why a picture cannot be decoded, in a line, of what reading it raised."""
    # PIL's own message contains the address of a buffer.
    return "unknown image format" if isinstance(error, UnidentifiedImageError) else one_line(error)


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has one channel: 8, 16 or 32 bits, or floats, without alpha."""
    return image.mode in _GREY_MODES or image.mode.startswith("I;")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture when it is upright, by its header."""
    turned = _orientation(image, image.info) >= 5
    return (image.height, image.width) if turned else image.size


def upright(image: Image.Image) -> Image.Image:
    """The first frame of a picture as its EXIF orientation has it; decodes its pixels."""
    # Pillow turns TIFF files itself, and then forgets the tag.
    image.load()
    turn = _UPRIGHT.get(_orientation(image, image.info))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image, info: dict[str | tuple[int, int], object]) -> int:
    """From 1 to 8; 1 if the picture does not tell, or tells nonsense."""
    if "exif" not in info and image.format not in ("MPO", "TIFF"):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # EXIF data are broken in many ways, and no reason to refuse a picture.
    except Exception:
        return 1


def to_mode(image: Image.Image, mode: Mode) -> Image.Image:
    """A picture of any kind as grey or RGB, upright, in 8 bits.

    Raises:
        Exception: of many kinds, if it cannot be decoded.
        ValueError: its pixels do not fit into 8 bits.
    """
    image = upright(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _in_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == mode else image.convert(mode)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as shares of 65,535, and floats as shares of 1 or of 255."""
    pixels = np.asarray(image).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if image.mode == "F":
        most = 1.0 if high <= 1 else 255.0
        wanted = "floats from 0 to 1, or from 0 to 255"
    else:
        most, wanted = 65535.0, "whole numbers from 0 to 65535"
    if not (low >= 0 and high <= most):
        raise ValueError(f"its pixels go from {low:g} to {high:g}: give {wanted}")
    return Image.fromarray(np.round(pixels * (255 / most)).astype(np.uint8))


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


@dataclass(frozen=True)
class Form:
    """What the images of a set are brought to: mode, `stored_size`, and their shape (c, h, w)."""

    mode: Mode
    stored_size: int | None
    shape: tuple[int, int, int]

    def fitted(self, image: Image.Image) -> Image.Image:
        """An image in this form, but that without a `stored_size` it may be of another size.

        Raises:
            Exception: of many kinds, if the image cannot be decoded.
        """
        return fit(to_mode(image, self.mode), self.stored_size)


def conformed(
    image: Image.Image, shape: tuple[int, int, int], stored_size: int | None
) -> UInt8Array:
    """`image` as a source with `stored_size` would store it among images of `shape` (c, h, w).

    One of another size than theirs is resized until it covers it, then centre-cropped.

    Raises:
        Exception: of many kinds, if the image cannot be decoded.
    """
    channels, height, width = shape
    image = fit(to_mode(image, "L" if channels == 1 else "RGB"), stored_size)
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
