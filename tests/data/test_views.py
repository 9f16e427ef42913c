from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as reference

from conr_ray.config import ViewsConfig
from conr_ray.data.views import Views
from conr_ray.method import keyed_random

NOTHING: dict[str, Any] = {
    "size": 16,
    "crop_scale": (1, 1),
    "crop_scale_group_stage": (1, 1),
    "crop_ratio": (1, 1),
    "flip_probability": 0,
    "jitter_probability": 1,
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "hue": 0,
    "grayscale_probability": 0,
}
EVERYTHING: dict[str, Any] = {
    "size": 15,
    "crop_scale": (0.2, 1),
    "crop_scale_group_stage": (0.5, 1),
    "rotation": 0.2,
    "zoom": 0.2,
    "shear": 0.1,
    "shift": 0.1,
    "blur_probability": 0.5,
    "noise": 0.1,
}


def _views(channels: int = 3, **settings: Any) -> Views:
    """Views that change nothing but what `settings` says, in the range 0 to 1."""
    return Views(ViewsConfig(**{**NOTHING, **settings}), [0.0] * channels, [1.0] * channels)


def _images(*shape: int) -> Tensor:
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    return torch.from_numpy(pixels)


def _random(views: Views, images: Tensor, key: int = 5, *, group_stage: bool = False) -> Tensor:
    return views.random(images, key, torch.arange(len(images)), group_stage=group_stage)


@pytest.fixture(params=["lowest", "highest"])
def end(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Every random parameter at one end of its interval: -1 or 1."""
    number = 0.0 if request.param == "lowest" else 1 - 2.0**-24

    def constant(key: int, positions: Tensor, num_draws: int) -> Tensor:
        return torch.full((len(positions), num_draws), number)

    monkeypatch.setattr(keyed_random, "uniform", constant)
    return -1.0 if request.param == "lowest" else 1.0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("group_stage", [False, True])
def test_a_subset_of_positions_gets_the_views_of_the_whole_batch(
    channels: int, group_stage: bool
) -> None:
    views = Views(ViewsConfig(**EVERYTHING), [0.4] * channels, [0.2] * channels)
    images, positions = _images(12, channels, 18, 18), torch.arange(12)
    whole = views.random(images, 9, positions, group_stage=group_stage)
    assert whole.shape == (12, channels, 15, 15)
    assert whole.dtype == torch.float32
    for rows in (slice(0, 5), slice(5, 12), slice(7, 8)):
        part = views.random(images[rows], 9, positions[rows], group_stage=group_stage)
        torch.testing.assert_close(part, whole[rows], rtol=1e-5, atol=1e-5)


def test_views_are_decided_by_key_and_position() -> None:
    views = Views(ViewsConfig(**EVERYTHING), [0.4] * 3, [0.2] * 3)
    images = _images(1, 3, 18, 18).repeat(6, 1, 1, 1)
    first = _random(views, images)
    torch.manual_seed(3)
    assert torch.equal(_random(views, images), first)
    other = _random(views, images, key=6)
    for left in range(6):
        assert (first[left] - other[left]).abs().mean() > 0.01
        for right in range(left):
            assert (first[left] - first[right]).abs().mean() > 0.01


@pytest.mark.parametrize("side", [7, 40])
def test_views_of_another_size_are_those_of_a_config_with_it(side: int) -> None:
    views, other = (
        Views(ViewsConfig(**{**EVERYTHING, "size": size}), [0.4] * 3, [0.2] * 3)
        for size in (15, side)
    )
    images = _images(4, 3, 18, 18)
    found = views.random(images, 5, torch.arange(4), group_stage=False, size=side)
    assert torch.equal(found, _random(other, images))


def test_views_are_as_large_as_their_epoch_says() -> None:
    config = ViewsConfig(size=32, sizes=((2, 16), (5, 24), (6, 32)))
    assert [config.size_in(epoch) for epoch in range(8)] == [32, 32, 16, 16, 16, 24, 32, 32]
    assert ViewsConfig(size=28).size_in(3) == 28


def test_images_are_not_changed() -> None:
    images = _images(4, 3, 18, 18)
    before = images.clone()
    views = Views(ViewsConfig(**EVERYTHING), [0.4] * 3, [0.2] * 3)
    _random(views, images)
    views.plain(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 11, 16])
def test_with_nothing_switched_on_a_view_is_the_plain_image(channels: int, side: int) -> None:
    views, images = _views(channels), _images(5, channels, side, side)
    torch.testing.assert_close(_random(views, images), views.plain(images), rtol=0, atol=1e-5)


def test_normalisation_is_by_the_channels_of_the_data_set() -> None:
    mean, std = [0.1, 0.5, 0.9], [0.5, 0.25, 2.0]
    images = _images(4, 3, 16, 16)
    views = Views(ViewsConfig(**NOTHING), mean, std)
    expected = torch.stack([reference.normalize(x.float() / 255, mean, std) for x in images])
    torch.testing.assert_close(views.plain(images), expected)
    torch.testing.assert_close(_random(views, images), expected, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_stays_finite() -> None:
    views = Views(ViewsConfig(**NOTHING), [0.2], [0.0])
    images = torch.full((2, 1, 16, 16), 51, dtype=torch.uint8)
    assert views.plain(images).abs().max() < 1e-4
    assert views.plain(images + 1) == pytest.approx(1, abs=1e-4)


def test_plain_crops_the_centre_of_larger_images() -> None:
    images = _images(2, 3, 21, 24)
    expected = images[:, :, 2:18, 4:20].float() / 255
    assert torch.equal(_views().plain(images), expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 12), (40, 10)])
def test_plain_resizes_smaller_images_by_their_short_side_and_crops(
    height: int, width: int
) -> None:
    images = _images(2, 3, height, width)
    resized = reference.resize(images.float() / 255, [16], antialias=False)
    expected = reference.center_crop(resized, [16, 16])
    torch.testing.assert_close(_views().plain(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(15, 11), (1, 1), (16, 3), (17, 16)])
def test_plain_has_the_size_of_a_view_whatever_the_image(height: int, width: int) -> None:
    assert _views().plain(_images(2, 3, height, width)).shape == (2, 3, 16, 16)


def test_flip_mirrors_left_and_right() -> None:
    images = _images(4, 3, 16, 16)
    found = _random(_views(flip_probability=1), images)
    torch.testing.assert_close(found, _views().plain(images).flip(3), rtol=0, atol=1e-4)


def test_flip_happens_with_its_probability() -> None:
    images = _images(1, 1, 16, 16).repeat(2000, 1, 1, 1)
    views = _views(1, flip_probability=0.3)
    flipped = (_random(views, images) - views.plain(images)).abs().amax((1, 2, 3)) > 0.1
    assert float(flipped.float().mean()) == pytest.approx(0.3, abs=0.04)


def _ramps(count: int, side: int) -> Tensor:
    """Images whose channels hold x and y, from 0 to side - 1."""
    numbers = torch.arange(side, dtype=torch.uint8)
    x, y = numbers.expand(side, side), numbers[:, None].expand(side, side)
    return torch.stack([x, y, torch.zeros_like(x)]).expand(count, 3, side, side)


def _windows(views: Views, side: int, *, group_stage: bool = False) -> tuple[Tensor, ...]:
    """Edges of many crops' windows as shares of the image: left, right, top, bottom."""
    crops = 255 * _random(views, _ramps(500, side), group_stage=group_stage)
    steps_x, steps_y = crops[:, 0, 0, 1:].diff(dim=1), crops[:, 1, 1:, 0].diff(dim=1)
    # Neighbouring view pixels lie a window / size apart; medians leave out the image's edge.
    width = steps_x.median(1).values * views.config.size / side
    height = steps_y.median(1).values * views.config.size / side
    middle = views.config.size // 2
    centers = crops[:, :2, middle - 1 : middle + 1, middle - 1 : middle + 1].mean((2, 3))
    x, y = ((centers + 0.5) / side).unbind(1)
    return x - width / 2, x + width / 2, y - height / 2, y + height / 2


@pytest.mark.parametrize("size", [16, 64])
def test_crops_have_the_area_and_ratio_asked_for_and_lie_anywhere_inside(size: int) -> None:
    views = _views(size=size, crop_scale=(0.2, 0.4), crop_ratio=(0.5, 2))
    left, right, top, bottom = _windows(views, 64)
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top)
    assert 0.2 - 1e-3 < area.min() < 0.21
    assert 0.39 < area.max() < 0.4 + 1e-3
    assert float(area.mean()) == pytest.approx(0.3, abs=0.01)
    assert 0.5 - 1e-3 < ratio.min() < 0.53
    assert 1.9 < ratio.max() < 2 + 1e-3
    # Uniform in the logarithm: as often upright as lying.
    assert float(ratio.log().mean()) == pytest.approx(0, abs=0.06)
    for low, high in ((left, right), (top, bottom)):
        assert -1e-3 < low.min() < 0.03
        assert 0.97 < high.max() < 1 + 1e-3
        assert float(((low + high) / 2).mean()) == pytest.approx(0.5, abs=0.02)


def test_a_crop_is_never_larger_than_the_image() -> None:
    left, right, top, bottom = _windows(_views(crop_scale=(0.9, 1), crop_ratio=(0.5, 2)), 64)
    for edge in (left, right, top, bottom):
        assert edge.min() > -1e-3
        assert edge.max() < 1 + 1e-3


def test_the_group_stage_has_a_crop_scale_of_its_own() -> None:
    views = _views(crop_scale=(0.1, 0.2), crop_scale_group_stage=(0.5, 0.6))
    for group_stage, low, high in ((False, 0.1, 0.2), (True, 0.5, 0.6)):
        left, right, top, bottom = _windows(views, 64, group_stage=group_stage)
        area = (right - left) * (bottom - top)
        assert low - 1e-3 < area.min()
        assert area.max() < high + 1e-3


def test_a_crop_at_the_edge_is_the_enlarged_part_of_the_image(end: float) -> None:
    images = _images(3, 3, 16, 16)
    found = _random(_views(crop_scale=(0.25, 0.25)), images)
    corner = images[:, :, :8, :8] if end < 0 else images[:, :, 8:, 8:]
    expected = reference.resize(corner.float() / 255, [16, 16], antialias=False)
    # The crop may look at the pixel behind its inner edge, the reference may not.
    inside = slice(0, 15) if end < 0 else slice(1, 16)
    torch.testing.assert_close(
        found[:, :, inside, inside], expected[:, :, inside, inside], rtol=1e-4, atol=1e-4
    )


def test_shift_moves_by_half_widths_and_leaves_black(end: float) -> None:
    images = _images(2, 3, 16, 16)
    found = _random(_views(shift=0.25), images)
    expected = torch.zeros(2, 3, 16, 16)
    if end > 0:
        expected[:, :, :14, :14] = images[:, :, 2:, 2:].float() / 255
    else:
        expected[:, :, 2:, 2:] = images[:, :, :14, :14].float() / 255
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_rotation_turns_the_image(end: float) -> None:
    images = _images(2, 3, 16, 16)
    found = _random(_views(rotation=np.pi / 2), images)
    expected = torch.rot90(images.float() / 255, int(end), (2, 3))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_zoom_scales_about_the_centre(end: float) -> None:
    images = _ramps(1, 16)
    found = 255 * _random(_views(zoom=0.25), images)[0]
    middle = torch.arange(4, 12) - 7.5
    torch.testing.assert_close(
        found[0, 8, 4:12], 7.5 + (1 + 0.25 * end) * middle, rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        found[1, 4:12, 8], 7.5 + (1 + 0.25 * end) * middle, rtol=0, atol=1e-3
    )


def test_shear_moves_rows_in_proportion_to_their_height(end: float) -> None:
    found = 255 * _random(_views(shear=0.25), _ramps(1, 16))[0]
    column = torch.arange(4, 12) - 7.5
    torch.testing.assert_close(found[0, 4:12, 8], 8 + 0.25 * end * column, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[1, 4:12, 8], 7.5 + column, rtol=0, atol=1e-3)


JITTERS = [
    ({"brightness": 0.4}, lambda x, end: reference.adjust_brightness(x, 1 + 0.4 * end)),
    ({"contrast": 0.7}, lambda x, end: reference.adjust_contrast(x, 1 + 0.7 * end)),
    ({"saturation": 0.9}, lambda x, end: reference.adjust_saturation(x, 1 + 0.9 * end)),
    ({"hue": 0.1}, lambda x, end: reference.adjust_hue(x, 0.1 * end)),
    ({"hue": 0.5}, lambda x, end: reference.adjust_hue(x, 0.5 * end)),
    ({"brightness": 1.5}, lambda x, end: reference.adjust_brightness(x, max(0, 1 + 1.5 * end))),
]


@pytest.mark.parametrize(("amounts", "change"), JITTERS)
def test_each_jitter_is_that_of_torchvision(amounts: Any, change: Any, end: float) -> None:
    images = _images(6, 3, 16, 16)
    # Grey, black, white and equal extremes are the special cases of hue.
    images[0], images[1], images[2] = 77, 0, 255
    images[3, 1] = images[3, 0]
    found = _random(_views(**amounts), images)
    expected = torch.stack([change(image, end) for image in images.float() / 255])
    # torchvision's weight of red is 0.2989, and ours 0.299.
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


def test_jitters_are_made_in_the_order_of_the_fields(end: float) -> None:
    images = _images(6, 3, 16, 16)
    expected = images.float() / 255
    for _, change in JITTERS[:4]:
        expected = torch.stack([change(image, end) for image in expected])
    amounts = {name: value for setting, _ in JITTERS[:4] for name, value in setting.items()}
    found = _random(_views(**amounts), images)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)


def test_brightness_and_contrast_of_grey_images_are_those_of_equal_colour_channels(
    end: float,
) -> None:
    images = _images(4, 1, 16, 16)
    amounts = {"brightness": 0.3, "contrast": 0.5, "saturation": 0.5, "hue": 0.2}
    grey = _random(_views(1, **amounts, grayscale_probability=1), images)
    colour = _random(_views(3, **amounts), images.expand(4, 3, 16, 16))
    torch.testing.assert_close(grey.expand_as(colour), colour, rtol=0, atol=1e-4)


def test_grayscale_is_that_of_torchvision() -> None:
    images = _images(4, 3, 16, 16)
    found = _random(_views(grayscale_probability=1), images)
    expected = reference.rgb_to_grayscale(images.float() / 255, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    "settings",
    [{"brightness": 0.5, "jitter_probability": 0.2}, {"grayscale_probability": 0.2}],
    ids=["jitter", "grayscale"],
)
def test_jitter_and_grayscale_happen_with_their_probability(settings: dict[str, float]) -> None:
    images, views = _images(1, 3, 16, 16).repeat(1500, 1, 1, 1), _views(**settings)
    changed = (_random(views, images) - views.plain(images)).abs().amax((1, 2, 3)) > 1e-3
    assert float(changed.float().mean()) == pytest.approx(0.2, abs=0.04)


def test_blur_keeps_constant_images_and_roughly_the_mean() -> None:
    views = _views(blur_probability=1, blur_sigma=(0.1, 2), size=40)
    constant = torch.full((5, 3, 40, 40), 90, dtype=torch.uint8)
    torch.testing.assert_close(_random(views, constant), constant.float() / 255, rtol=0, atol=1e-4)
    noise = _images(5, 3, 40, 40)
    found, before = _random(views, noise), noise.float() / 255
    torch.testing.assert_close(found.mean((2, 3)), before.mean((2, 3)), rtol=0, atol=0.02)
    assert (found.std((2, 3)) < before.std((2, 3)) + 1e-4).all()
    assert found.std() < 0.8 * before.std()


def test_blur_is_the_gaussian_of_torchvision_with_a_width_for_each_image() -> None:
    images, settings = _images(2, 3, 40, 40), {"blur_probability": 1, "size": 40}
    for sigma in (0.5, 1.7):
        found = _random(_views(**settings, blur_sigma=(sigma, sigma)), images)
        expected = reference.gaussian_blur(images.float() / 255, [5, 5], [sigma, sigma])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    same = images[:1].expand(20, 3, 40, 40)
    deviations = _random(_views(**settings, blur_sigma=(0.3, 3)), same).std((1, 2, 3))
    assert len(deviations.unique()) == 20


def test_noise_has_the_deviation_asked_for_and_differs_by_pixel() -> None:
    images = torch.full((50, 3, 15, 15), 128, dtype=torch.uint8)
    noise = _random(_views(noise=0.1, size=15), images) - 128 / 255
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=2e-3)
    assert len(noise.unique()) > 0.9 * noise.numel() / 2
    flat = noise.flatten(1)
    assert (
        abs(float(torch.corrcoef(torch.stack([flat[:-1].ravel(), flat[1:].ravel()]))[0, 1])) < 0.03
    )


def test_the_strength_of_the_group_stage_scales_amplitudes(end: float) -> None:
    images, factor = _images(3, 3, 16, 16), 0.5
    amounts = {
        "rotation": 0.3,
        "zoom": 0.2,
        "shear": 0.2,
        "shift": 0.2,
        "brightness": 0.2,
        "contrast": 0.3,
        "saturation": 0.4,
        "hue": 0.1,
        "noise": 0.1,
    }
    strong = _views(**amounts, group_stage_strength=factor)
    weak = _views(**{name: factor * amount for name, amount in amounts.items()})
    expected = _random(weak, images)
    torch.testing.assert_close(
        _random(strong, images, group_stage=True), expected, rtol=0, atol=1e-4
    )
    assert (_random(strong, images) - expected).abs().mean() > 0.01
    off = _views(**amounts, group_stage_strength=0)
    torch.testing.assert_close(
        _random(off, images, group_stage=True), off.plain(images), rtol=0, atol=1e-4
    )


def test_relit_is_the_jitter_of_the_paper_whatever_the_config() -> None:
    images = _images(6, 3, 20, 18)
    positions = torch.arange(6)
    found = Views(ViewsConfig(**EVERYTHING), [0.0] * 3, [1.0] * 3).relit(images, 5, positions)
    jitter = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "size": 15}
    assert torch.equal(found, _views(**jitter).relit(images, 5, positions))
    assert torch.equal(found[2:4], _views(**jitter).relit(images[2:4], 5, positions[2:4]))
    plain = _views(size=15).plain(images)
    assert found.shape == plain.shape
    assert ((found - plain).abs().amax((1, 2, 3)) > 0.01).all()
    # Each image is changed in a way of its own, and where nothing varies nothing can.
    same = _views(size=15).relit(images[:1].expand(6, 3, 20, 18), 5, positions)
    assert len(same.mean((1, 2, 3)).unique()) == 6
    black = torch.zeros(2, 1, 15, 15, dtype=torch.uint8)
    assert torch.equal(_views(1, size=15).relit(black, 5, positions[:2]), black.float())
