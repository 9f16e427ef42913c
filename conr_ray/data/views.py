"""Random views of a batch of images, made on their device, each with its own parameters.

Differences from the torchvision transforms of the released code: a crop larger than the image is
clamped to it instead of redrawn; crops are resampled bilinearly without anti-aliasing (they enlarge
or shrink only slightly); brightness, contrast, saturation and hue are changed in this order, not in
a random one.

Shapes: b images of a worker, c channels, h x w pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, conv2d, grid_sample, interpolate, pad

from conr_ray.config import OWN_SIDE, ViewsConfig
from conr_ray.method import keyed_random
from conr_ray.pretrained import Preparation
from conr_ray.pretrained.preparation import colours

# The paper's jitter, on every image.
_OTHER_LIGHT = ViewsConfig(
    jitter_probability=1,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.1,
    grayscale_probability=0,
)


class Views:
    """Makes float views, normalised by mean and deviation of channels, from uint8 images.

    For a network that others have trained, they are as its `preparation` says: plain views show the
    whole picture at its size, and all views have three channels.
    """

    def __init__(
        self,
        config: ViewsConfig,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | None = None,
        preparation: Preparation | None = None,
    ) -> None:
        """Make views of images whose channels have this `mean` and `std`, of values from 0 to 1.

        With a `preparation`, its size, mean and deviation replace those of the other arguments.
        """
        self.config, self._preparation = config, preparation
        self.size = config.size or OWN_SIDE
        if preparation is not None:
            self.size, mean, std = preparation.size, preparation.mean, preparation.std
        self._mean_and_std = list(mean), list(std)
        self._mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        # Avoids division by zero for a constant channel.
        self._std = torch.tensor(std, device=device).view(1, -1, 1, 1).clamp_min(1 / 255)

    def state_dict(self) -> dict[str, Any]:
        """What `plain` depends on."""
        if self._preparation is not None:
            return self._preparation.as_json()
        mean, std = self._mean_and_std
        return {"size": self.size, "mean": mean, "std": std}

    def plain(self, images: Tensor) -> Tensor:
        """The images as they are, for evaluation: centre-cropped or resized to the view's size.

        With a preparation they are what `Preparation.prepare` makes.
        """
        return self._normalized(self._centered(images))

    def relit(self, images: Tensor, key: int, positions: Tensor) -> Tensor:
        """The images of `plain`, each with its own random brightness, contrast and colour.

        Uses the paper's jitter whatever the config says, so that runs with different views can be
        compared. Arguments are those of `random`.
        """
        draw = _Draws(_Draws.numbers(key, positions))
        pixels = _jittered(self._centered(images), draw, _OTHER_LIGHT, 1.0)
        return self._normalized(pixels)

    def random(
        self,
        images: Tensor,
        key: int,
        positions: Tensor,
        *,
        group_stage: bool,
        size: int | None = None,
    ) -> Tensor:
        """One random view of each image, (b, c, size, size) float32; c is 3 with a preparation.

        Args:
            images: (b, c, h, w) uint8.
            key: determines the randomness, with the positions; one key per step and view.
            positions: (b,) int64 positions in the global batch.
            group_stage: whether the settings of the group stage apply.
            size: side of a view, pixels; that of the settings if None.
        """
        images, noise = self._coloured(images), None
        size = size or self.size
        if self.config.noise:
            count = images.shape[1] * size**2
            noise = keyed_random.normal(keyed_random.fold(key, "noise"), positions, count)
        return self._changed(images, _Draws.numbers(key, positions), noise, group_stage, size)

    def compile(self, compiled: Callable[[Callable[..., Tensor]], Callable[..., Tensor]]) -> None:
        """Let `compiled` replace the program behind `random`; keys stay outside of it."""
        self._changed = compiled(self._changed)  # type: ignore[method-assign]

    def _changed(
        self, images: Tensor, numbers: Tensor, noise: Tensor | None, group_stage: bool, size: int
    ) -> Tensor:
        """`random` with its random numbers drawn."""
        draw = _Draws(numbers)
        strength = self.config.group_stage_strength if group_stage else 1.0
        pixels = self._warped(_to_unit_range(images), draw, strength, group_stage, size)
        pixels = _jittered(pixels, draw, self.config, strength)
        pixels = self._blurred(pixels, draw, size)
        if noise is not None:
            pixels = pixels + self.config.noise * strength * noise.view_as(pixels)
        return self._normalized(pixels)

    def _coloured(self, images: Tensor) -> Tensor:
        """With as many channels as the network takes; grey ones get theirs when normalised."""
        known = self._preparation is None or images.shape[1] == 1
        return images if known else colours(images)

    def _centered(self, images: Tensor) -> Tensor:
        size = self.size
        pixels = _to_unit_range(self._coloured(images))
        if self._preparation is not None:
            return self._preparation.resized(pixels)
        height, width = pixels.shape[2:]
        if min(height, width) < size:
            scale = size / min(height, width)
            shape = (max(size, round(height * scale)), max(size, round(width * scale)))
            pixels = interpolate(pixels, shape, mode="bilinear", align_corners=False)
            height, width = shape
        top, left = (height - size) // 2, (width - size) // 2
        return pixels[:, :, top : top + size, left : left + size]

    def _normalized(self, pixels: Tensor) -> Tensor:
        # One channel becomes the three of a mean of three.
        return (pixels - self._mean) / self._std

    def _warped(
        self, pixels: Tensor, draw: _Draws, strength: float, group_stage: bool, size: int
    ) -> Tensor:
        """Crop, flip, rotation, zoom, shear and shift as one affine map."""
        config = self.config
        low, high = config.crop_scale_group_stage if group_stage else config.crop_scale
        area = draw.between(low, high)
        ratio = draw.between(*(math.log(end) for end in config.crop_ratio)).exp()
        crop_w = (area * ratio).sqrt().clamp_max(1)
        crop_h = (area / ratio).sqrt().clamp_max(1)
        center_x, center_y = draw.between(-1, 1) * (1 - crop_w), draw.between(-1, 1) * (1 - crop_h)
        flip = 1 - 2 * draw.happens(config.flip_probability).float()
        angle = draw.around(config.rotation * strength)
        zoom_x = 1 + draw.around(config.zoom * strength)
        zoom_y = 1 + draw.around(config.zoom * strength)
        shear = draw.around(config.shear * strength)
        shift_x, shift_y = (
            draw.around(config.shift * strength),
            draw.around(config.shift * strength),
        )
        cos, sin = angle.cos(), angle.sin()
        # Output to input coordinates: crop o flip o rotation o (zoom, shear), then the shift.
        rows = [
            crop_w * flip * cos * zoom_x,
            crop_w * flip * (cos * shear - sin) * zoom_y,
            center_x + shift_x,
            crop_h * sin * zoom_x,
            crop_h * (sin * shear + cos) * zoom_y,
            center_y + shift_y,
        ]
        theta = torch.stack(rows, dim=1).view(-1, 2, 3)
        shape = [*pixels.shape[:2], size, size]
        grid = affine_grid(theta, shape, align_corners=False)
        # A crop alone stays inside the image, whose outermost pixels extend to its edge; what other
        # transformations move in from outside is black.
        moved = config.rotation or config.zoom or config.shear or config.shift
        padding = "zeros" if moved else "border"
        return grid_sample(pixels, grid, padding_mode=padding, align_corners=False)

    def _blurred(self, pixels: Tensor, draw: _Draws, size: int) -> Tensor:
        """Gaussian blur, with a random width per image; the kernel spans a tenth of a view."""
        config = self.config
        if not config.blur_probability:
            return pixels
        chosen = draw.happens(config.blur_probability).view(-1, 1, 1, 1)
        sigma = draw.between(*config.blur_sigma)
        radius = max(1, size // 20)
        offsets = torch.arange(-radius, radius + 1, device=pixels.device)
        kernel = (-0.5 * (offsets / sigma[:, None]).square()).exp()
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(pixels.shape[1], 0)
        flat = pixels.reshape(1, -1, *pixels.shape[2:])
        flat = pad(flat, [radius] * 4, mode="reflect")
        flat = conv2d(flat, kernel[:, None, None, :], groups=flat.shape[1])
        flat = conv2d(flat, kernel[:, None, :, None], groups=flat.shape[1])
        return torch.where(chosen, flat.view_as(pixels), pixels)


class _Draws:
    """The random parameters of one view, (b,) each, in a fixed order."""

    _MOST = 32

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = iter(numbers.unbind(1))

    @classmethod
    def numbers(cls, key: int, positions: Tensor) -> Tensor:
        """The numbers in [0, 1) that `key` stands for, (b, 32)."""
        return keyed_random.uniform(key, positions, cls._MOST)

    def between(self, low: float, high: float) -> Tensor:
        return low + (high - low) * next(self._numbers)

    def around(self, amount: float) -> Tensor:
        """In [-amount, amount]."""
        return self.between(-amount, amount)

    def factor(self, amount: float) -> Tensor:
        """In [max(0, 1 - amount), 1 + amount], as (b, 1, 1, 1)."""
        return self.between(max(0.0, 1 - amount), 1 + amount).view(-1, 1, 1, 1)

    def happens(self, probability: float) -> Tensor:
        return next(self._numbers) < probability


def _jittered(pixels: Tensor, draw: _Draws, config: ViewsConfig, strength: float) -> Tensor:
    amounts = [strength * a for a in (config.brightness, config.contrast)]
    brightness, contrast = (draw.factor(amount) for amount in amounts)
    chosen = draw.happens(config.jitter_probability).view(-1, 1, 1, 1)
    changed = pixels
    if config.brightness:
        changed = (changed * brightness).clamp(0, 1)
    if config.contrast:
        mean = _gray(changed).mean((1, 2, 3), keepdim=True)
        changed = (mean + (changed - mean) * contrast).clamp(0, 1)
    if pixels.shape[1] == 3:
        saturation = draw.factor(strength * config.saturation)
        turn = draw.around(strength * config.hue).view(-1, 1, 1, 1)
        if config.saturation:
            gray = _gray(changed)
            changed = (gray + (changed - gray) * saturation).clamp(0, 1)
        if config.hue:
            changed = _turned_hue(changed, turn)
    if changed is not pixels:
        pixels = torch.where(chosen, changed, pixels)
    if pixels.shape[1] == 3 and config.grayscale_probability:
        chosen = draw.happens(config.grayscale_probability).view(-1, 1, 1, 1)
        pixels = torch.where(chosen, _gray(pixels), pixels)
    return pixels


def _to_unit_range(images: Tensor) -> Tensor:
    return images.float() / 255


def _gray(pixels: Tensor) -> Tensor:
    if pixels.shape[1] == 1:
        return pixels
    # Luma of ITU-R 601; numbers, since a tensor would be copied to the device each time.
    red, green, blue = pixels.split(1, dim=1)  # type: ignore[no-untyped-call]
    return cast(Tensor, 0.299 * red + 0.587 * green + 0.114 * blue)


def _turned_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Hue moved by `turn` full circles, (b, 1, 1, 1), at equal saturation and value (HSV)."""
    value, _ = pixels.max(1, keepdim=True)
    low, _ = pixels.min(1, keepdim=True)
    chroma = value - low
    red, green, blue = pixels.unbind(1)
    safe = chroma.squeeze(1).clamp_min(1e-12)
    top = value.squeeze(1)
    sector = torch.where(
        top == red,
        (green - blue) / safe,
        torch.where(top == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    # Each channel of an HSV colour is value - chroma * clamp(min(t, 4 - t), 0, 1) at its offset t.
    offsets = torch.arange(5.0, 0.0, -2.0, device=pixels.device).view(1, 3, 1, 1)
    phase = (offsets + sector[:, None] + 6 * turn) % 6
    return value - chroma * torch.minimum(phase, 4 - phase).clamp(0, 1)
