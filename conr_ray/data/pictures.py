"""Images as small files, for display."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from conr_ray.data.decoding import is_grey, to_mode

MOST_PIXELS = 128
# A larger picture is a JPEG file: a fifth of the size of a PNG of a photograph.
_MOST_IN_PNG = 40


def as_picture(image_chw: npt.NDArray[np.uint8]) -> bytes:
    """A grey or RGB image as the bytes of a PNG or JPEG file, shrunk if a side is longer."""
    pixels_hwc = np.ascontiguousarray(np.moveaxis(image_chw, 0, -1))
    return small_file(Image.fromarray(pixels_hwc[..., 0] if len(image_chw) == 1 else pixels_hwc))


def small_file(picture: Image.Image) -> bytes:
    """The same of a picture of any kind, converted as those that are trained on.

    Raises:
        Exception: of many kinds, if it cannot be decoded.
    """
    # JPEG is decoded at a fraction of its size, if it is much larger.
    picture.draft(None, (2 * MOST_PIXELS, 2 * MOST_PIXELS))
    picture = to_mode(picture, "L" if is_grey(picture) else "RGB")
    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
    buffer = io.BytesIO()
    if max(picture.size) > _MOST_IN_PNG:
        picture.save(buffer, "JPEG", quality=85)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
