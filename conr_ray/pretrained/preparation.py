"""How images become the inputs of a network that others have trained.

Shapes: b images, c channels, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

Numbers = tuple[float, float, float]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True)
class Preparation:
    """The size, colours and resampling that a network was trained with.

    Attributes:
        size: side of the network's images, pixels.
        mean: of each channel, of values from 0 to 1.
        std: standard deviation of each channel, likewise.
        interpolation: how pictures are resized; with anti-aliasing.
        crop_share: side of the square that is cut from the middle of a picture, as a share of its
            shorter side. 1 keeps a square picture whole.
    """

    size: int
    mean: Numbers
    std: Numbers
    interpolation: Interpolation = "bicubic"
    crop_share: float = 1.0

    def prepare(self, images: Tensor) -> Tensor:
        """uint8 (b, c, h, w) to float32 (b, 3, size, size), normalised, on the same device.

        Grey images (1 channel) become colour images of three equal channels. Of 4 channels the
        last, alpha, is dropped, as sources of pictures do.

        Raises:
            ValueError: c is none of 1, 3 and 4.
        """
        mean, std = (
            torch.tensor(numbers, device=images.device).view(1, 3, 1, 1)
            for numbers in (self.mean, self.std)
        )
        return (self.resized(colours(images).float() / 255) - mean) / std

    def resized(self, pixels: Tensor) -> Tensor:
        """The middle of float images from 0 to 1, (b, c, h, w) to (b, c, size, size)."""
        height, width = pixels.shape[2:]
        side = self.crop_side(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        middle = pixels[:, :, top : top + side, left : left + side]
        if side == self.size:
            return middle
        resized = interpolate(
            middle, (self.size, self.size), mode=self.interpolation, antialias=True
        )
        # Bicubic weights go below 0; in PIL, where pixels are bytes, they end there too.
        return resized.clamp(0, 1)

    def crop_side(self, height: int, width: int) -> int:
        """Side of the square that is cut from the middle of a picture, pixels."""
        return max(1, round(self.crop_share * min(height, width)))

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON values, which `from_json` reads."""
        return {
            "size": self.size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_share": self.crop_share,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> Preparation:
        """The inverse of `as_json`; other keys are ignored."""
        mean, std = (_three(state[name]) for name in ("mean", "std"))
        return cls(state["size"], mean, std, state["interpolation"], state["crop_share"])


def colours(images: Tensor) -> Tensor:
    """(b, 3, h, w) of images with 1, 3 or 4 channels: grey repeated, alpha dropped.

    Raises:
        ValueError: another number of channels.
    """
    channels = images.shape[1]
    if channels == 1:
        return images.expand(-1, 3, -1, -1)
    if channels not in (3, 4):
        raise ValueError(f"images of {channels} channels: give 1 (grey), 3 (RGB) or 4 (RGBA)")
    return images[:, :3]


def _three(numbers: Any) -> Numbers:
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue
