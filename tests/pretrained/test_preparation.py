"""Pictures as a network that others have trained takes them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from conr_ray.config import ViewsConfig
from conr_ray.data.inputs import Images, inputs_from_state
from conr_ray.data.views import Views
from conr_ray.pretrained import Preparation, preparation_of
from tests.pretrained.models import SMALL, VIT

CPU = torch.device("cpu")
OTHERS = Preparation(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def _pictures(channels: int, height: int = 40, width: int = 40) -> torch.Tensor:
    """Smooth ones: of noise, rounding to bytes in between would be seen."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(3, channels, 7, 7, generator=generator) * 255
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine.to(torch.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [24, 56])
def test_it_is_what_pil_makes_of_the_picture(interpolation: str, size: int) -> None:
    how = Preparation(size, OTHERS.mean, OTHERS.std, interpolation)  # type: ignore[arg-type]
    images = _pictures(3)
    found = how.prepare(images)
    filters = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    for image, row in zip(images, found, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        resized = np.asarray(picture.resize((size, size), filters[interpolation])) / 255
        expected = (resized - np.array(how.mean)) / np.array(how.std)
        # It rounds to bytes after each direction.
        np.testing.assert_allclose(row.permute(1, 2, 0), expected, atol=1.5 / 255 / 0.2)
    assert found.dtype == torch.float32


def test_grey_is_repeated_alpha_dropped_and_other_channels_refused() -> None:
    grey, rgba = _pictures(1), _pictures(4)
    assert torch.equal(OTHERS.prepare(grey), OTHERS.prepare(grey.expand(-1, 3, -1, -1)))
    assert torch.equal(OTHERS.prepare(rgba), OTHERS.prepare(rgba[:, :3]))
    with pytest.raises(ValueError, match="images of 2 channels"):
        OTHERS.prepare(_pictures(2))


def test_the_middle_of_a_long_picture_is_taken() -> None:
    long = _pictures(3, 40, 90)
    assert torch.equal(OTHERS.prepare(long), OTHERS.prepare(long[:, :, :, 25:65]))
    half = Preparation(24, OTHERS.mean, OTHERS.std, crop_share=0.5)
    assert torch.equal(half.prepare(long), OTHERS.prepare(long[:, :, 10:30, 35:55]))


def test_it_is_timms() -> None:
    small = preparation_of(SMALL)
    assert (small.size, small.mean, small.std) == (
        160,
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )
    assert preparation_of(VIT, 96).size == 96
    assert Preparation.from_json(json.loads(json.dumps(small.as_json()))) == small


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_views_are_of_its_size_and_colours_and_the_state_keeps_them(channels: int) -> None:
    rows = _pictures(channels).numpy()
    views = Views(ViewsConfig(noise=0.1), [0.1] * channels, [0.3] * channels, CPU, OTHERS)
    inputs = Images(rows, views, CPU, on_device=False)
    ids = torch.arange(len(rows))
    batch = inputs.take(ids)
    assert torch.equal(inputs.plain(batch), OTHERS.prepare(batch))
    view = inputs.random(batch, 5, ids, mild=False)
    assert view.shape == (3, 3, 24, 24) and view.isfinite().all()
    assert inputs.perturbed(batch, 5, ids).shape == view.shape
    # Normalised as the network was trained, not by these samples.
    back = view * torch.tensor(OTHERS.std).view(3, 1, 1) + torch.tensor(OTHERS.mean).view(3, 1, 1)
    assert float(back.min()) > -0.6 and float(back.max()) < 1.6
    state = json.loads(json.dumps(inputs.state_dict()))
    again = inputs_from_state(state, rows, CPU)
    assert torch.equal(again.plain(again.take(ids)), inputs.plain(batch))
