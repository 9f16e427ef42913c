"""The images of a run where the views are made."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor


class Pixels:
    """Rows of a uint8 array (n, c, h, w) as tensors on the device."""

    def __init__(
        self, images: npt.NDArray[np.uint8], device: torch.device, *, on_device: bool
    ) -> None:
        self._images = images
        self._device = device
        # On a CPU the memory map is as near as a copy, and shared by the workers of a node.
        self._resident = (
            torch.from_numpy(np.array(images)).to(device)
            if on_device and device.type != "cpu"
            else None
        )

    def take(self, rows: Tensor) -> Tensor:
        """The images at int64 `rows`, (b, c, h, w) uint8."""
        if self._resident is not None:
            return self._resident[rows.to(self._device)]
        return torch.from_numpy(self._images[rows.cpu().numpy()]).to(self._device)


def as_png(image_chw: npt.NDArray[np.uint8], most_pixels: int = 64) -> bytes:
    """A grey or RGB image as the bytes of a PNG file, made smaller where a side is longer."""
    pixels_hwc = np.ascontiguousarray(np.moveaxis(image_chw, 0, -1))
    picture = Image.fromarray(pixels_hwc[..., 0] if pixels_hwc.shape[-1] == 1 else pixels_hwc)
    picture.thumbnail((most_pixels, most_pixels))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
