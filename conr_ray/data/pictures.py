"""Images as small files, for display."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

MOST_PIXELS = 128
# A larger picture is a JPEG file: a fifth of the size of a PNG of a photograph.
_MOST_IN_PNG = 40


def as_picture(image_chw: npt.NDArray[np.uint8]) -> bytes:
    """A grey or RGB image as the bytes of a PNG or JPEG file, shrunk if a side is longer."""
    pixels_hwc = np.ascontiguousarray(np.moveaxis(image_chw, 0, -1))
    return small_file(Image.fromarray(pixels_hwc[..., 0] if len(image_chw) == 1 else pixels_hwc))


def small_file(picture: Image.Image) -> bytes:
    """The same of a picture of any mode, which it shrinks in place."""
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    if picture.mode not in ("L", "RGB"):
        picture = picture.convert("RGB")
    buffer = io.BytesIO()
    if max(picture.size) > _MOST_IN_PNG:
        picture.save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
