"""What becomes of pictures of every kind: the same for training and for new pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.decoding import conformed, open_encoded, to_array, to_mode
from conr_ray.data.pictures import small_file
from conr_ray.data.store import open_data


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def gradient(height: int = 6, width: int = 8) -> Any:
    """Colour pixels (h, w, 3) of which no two are equal."""
    levels = np.arange(height * width, dtype=np.uint8).reshape(height, width) * 5
    return np.stack([levels, 255 - levels, levels // 2], -1)


def decoded(data: bytes, mode: Any = "RGB") -> Any:
    return to_array(to_mode(open_encoded(data), mode))


class TestModes:
    def test_alpha_is_laid_over_white(self) -> None:
        pixels = np.dstack([gradient(), np.full((6, 8), 255, np.uint8)])
        pixels[0, :, 3] = 0
        pixels[1, :, 3] = 128
        found = decoded(encoded(Image.fromarray(pixels)))
        assert (found[:, 0] == 255).all()
        expected = gradient().transpose(2, 0, 1)
        np.testing.assert_array_equal(found[:, 2:], expected[:, 2:])
        half = 255 + (expected[:, 1].astype(float) - 255) * 128 / 255
        assert abs(found[:, 1] - half).max() <= 1

    def test_a_transparent_colour_of_a_palette_and_of_rgb(self) -> None:
        levels = Image.fromarray(gradient()).quantize(64)
        clear = levels.getpixel((3, 2))
        found = decoded(encoded(levels, transparency=clear))
        assert (found[:, 2, 3] == 255).all()
        np.testing.assert_array_equal(found[:, 5], to_array(levels.convert("RGB"))[:, 5])
        found = decoded(encoded(Image.fromarray(gradient()), transparency=(0, 255, 0)))
        assert (found[:, 0, 0] == 255).all() and found[0, 0, 1] == 5

    def test_sixteen_bits(self) -> None:
        levels = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
        expected = np.round(levels / 257).astype(np.uint8)[None]
        for kind in ("PNG", "TIFF", "PPM"):
            found = decoded(encoded(Image.fromarray(levels), kind), "L")
            np.testing.assert_array_equal(found, expected, err_msg=kind)
        colour = decoded(encoded(Image.fromarray(levels)))
        np.testing.assert_array_equal(colour, np.repeat(expected, 3, 0))

    @pytest.mark.parametrize("most", [1, 255])
    def test_floats(self, most: int) -> None:
        levels = np.linspace(0, most, 48, dtype=np.float32).reshape(6, 8)
        found = decoded(encoded(Image.fromarray(levels), "TIFF"), "L")
        np.testing.assert_array_equal(found[0], np.round(levels * (255 / most)))

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ([0.0, -0.5], "its pixels go from -0.5 to 0: give floats from 0 to 1, or from 0 to 25"),
            ([0.0, 300.0], "its pixels go from 0 to 300: give floats"),
            ([0.0, float("nan")], "its pixels go from nan to nan: give floats"),
            ([0, 70000], "its pixels go from 0 to 70000: give whole numbers from 0 to 65535"),
        ],
    )
    def test_pixels_that_do_not_fit(
        self, values: list[Any], told: str, tmp_path: Path, message: Any
    ) -> None:
        kind = np.int32 if isinstance(values[0], int) else np.float32
        Image.fromarray(np.array([values], kind)).save(tmp_path / "a.tif")
        text = message(source="folder", path=str(tmp_path))
        assert f"row 0 (a.tif) cannot be decoded ({told}" in text

    def test_cmyk_is_as_pillow_has_it(self) -> None:
        image = Image.fromarray(gradient()).convert("CMYK")
        found = decoded(encoded(image, "TIFF"))
        np.testing.assert_array_equal(found, to_array(image.convert("RGB")))

    @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
    def test_the_first_frame_of_several(self, kind: str) -> None:
        frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "lime")]
        lossless = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **lossless)
        assert open_encoded(data).n_frames == 3
        assert decoded(data)[:, 3, 3].tolist() == [255, 0, 0]

    def test_grey_sets_have_one_channel_of_all_depths(self, tmp_path: Path, read: Any) -> None:
        for name, kind in (("a", np.uint8), ("b", np.uint16), ("c", np.int32), ("d", np.float32)):
            most = {"b": 65535, "c": 65535, "d": 1}.get(name, 255)
            Image.fromarray(np.full((4, 4), most, kind)).save(tmp_path / f"{name}.tif")
        images = read(DataConfig(source="folder", path=str(tmp_path)))[1]
        assert images.shape == (4, 1, 4, 4) and (images == 255).all()


class TestOrientation:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO", "AVIF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_pictures_are_upright(self, kind: str, orientation: int) -> None:
        # What the camera's sensor has seen, of a picture that is red at the top and blue at the
        # left below.
        scene = np.full((24, 32, 3), 128, np.uint8)
        scene[:8] = 255, 0, 0
        scene[8:, :8] = 0, 0, 255
        turn: dict[int, Any] = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.transpose(1, 0, 2),
            6: lambda a: np.rot90(a),
            7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
            8: lambda a: np.rot90(a, -1),
        }
        sensor = Image.fromarray(np.ascontiguousarray(turn[orientation](scene)))
        exif = Image.Exif()
        exif[0x0112] = orientation
        how: dict[str, Any] = {"exif": exif}
        if kind in ("JPEG", "MPO", "AVIF"):
            how["quality"] = 95
        if kind == "WEBP":
            how["lossless"] = True
        found = decoded(encoded(sensor, kind, **how))
        assert found.shape == (3, 24, 32)
        assert abs(found.astype(int) - scene.transpose(2, 0, 1)).mean() < 6

    def test_broken_exif_is_no_reason_to_refuse(self) -> None:
        image = Image.fromarray(gradient())
        for exif in (b"Exif\x00\x00nonsense", b"", b"\xff" * 50):
            assert decoded(encoded(image, "JPEG", exif=exif)).shape == (3, 6, 8)

    def test_a_tag_behind_the_pixels_of_a_png(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(gradient(6, 8))
        turned = encoded(image.transpose(Image.Transpose.ROTATE_90), exif=exif)
        start = turned.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(turned[start : start + 4], "big")
        late = turned[:start] + turned[end:-12] + turned[start:end] + turned[-12:]
        assert decoded(late).shape == (3, 6, 8)
        (tmp_path / "a.png").write_bytes(encoded(image.transpose(Image.Transpose.ROTATE_90)))
        (tmp_path / "b.png").write_bytes(late)
        config = DataConfig(source="folder", path=str(tmp_path))
        assert open_data(config, tmp_path / "cache").row_shape == (3, 6, 6)

    def test_sizes_are_those_of_upright_pictures(self, tmp_path: Path, read: Any) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(gradient(6, 8))
        image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.jpg", exif=exif)
        image.save(tmp_path / "b.jpg")
        assert read(DataConfig(source="folder", path=str(tmp_path)))[1].shape == (2, 3, 6, 8)


def samples() -> dict[str, bytes]:
    """One picture of each kind, 8 x 6 when upright."""
    image, exif = Image.fromarray(gradient()), Image.Exif()
    exif[0x0112] = 8
    alpha = Image.fromarray(np.dstack([gradient(), gradient()[..., 0]]))
    levels = np.linspace(0, 65535, 48).reshape(6, 8).astype(np.uint16)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    return {
        "rgb.png": encoded(image),
        "alpha.png": encoded(alpha),
        "clear.webp": encoded(alpha, "WEBP", lossless=True),
        "palette.png": encoded(image.quantize(16)),
        "cmyk.tif": encoded(image.convert("CMYK"), "TIFF"),
        "deep.png": encoded(Image.fromarray(levels)),
        "float.tif": encoded(Image.fromarray((levels / 65535).astype(np.float32)), "TIFF"),
        "phone.jpg": encoded(turned, "JPEG", exif=exif),
        "moving.gif": encoded(image, "GIF", save_all=True, append_images=[image]),
    }


@pytest.mark.parametrize("stored_size", [None, 4])
def test_new_pictures_become_what_training_has_stored(
    tmp_path: Path, read: Any, stored_size: int | None
) -> None:
    kinds = samples()
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
    config = DataConfig(source="folder", path=str(tmp_path), stored_size=stored_size)
    contents, stored = read(config)
    assert stored.shape[0] == len(kinds)
    for name, pixels in zip(contents.names or (), stored, strict=True):
        new = conformed(open_encoded(kinds[name]), contents.row_shape, stored_size)
        np.testing.assert_array_equal(new, pixels, err_msg=name)
        shown = Image.open(io.BytesIO(small_file(open_encoded(kinds[name]))))
        assert shown.size == (8, 6)


def test_pictures_of_several_sizes_too(tmp_path: Path, read: Any) -> None:
    for number, (width, height) in enumerate(((40, 30), (30, 40), (500, 20), (31, 57))):
        image = Image.fromarray(gradient(height, width))
        image.save(tmp_path / f"{number}.png")
    contents, stored = read(DataConfig(source="folder", path=str(tmp_path)))
    assert contents.row_shape == (3, 30, 30)
    for name, pixels in zip(contents.names or (), stored, strict=True):
        new = conformed(open_encoded((tmp_path / name).read_bytes()), (3, 30, 30), None)
        np.testing.assert_array_equal(new, pixels, err_msg=name)
