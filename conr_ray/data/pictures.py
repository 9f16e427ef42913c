"""Images as small files, for display."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image


def as_png(image_chw: npt.NDArray[np.uint8], most_pixels: int = 64) -> bytes:
    """A grey or RGB image as the bytes of a PNG file, shrunk if a side is longer."""
    pixels_hwc = np.ascontiguousarray(np.moveaxis(image_chw, 0, -1))
    picture = Image.fromarray(pixels_hwc[..., 0] if pixels_hwc.shape[-1] == 1 else pixels_hwc)
    picture.thumbnail((most_pixels, most_pixels))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
