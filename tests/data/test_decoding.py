"""Decoding of encoded images: channels, sizes and images that are broken."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.decoding import conformed
from conr_ray.data.store import open_data
from conr_ray.errors import UserError


class TestDecoding:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Any:
        def save_image(name: str, mode: str, size: tuple[int, int] = (6, 6)) -> dict[str, Any]:
            Image.linear_gradient("L").resize(size).convert(mode).save(tmp_path / name)
            return {"source": "folder", "path": str(tmp_path)}

        return save_image

    def test_one_channel_exactly_if_all_are_grey(self, save: Any, read: Any) -> None:
        save("a.png", "L")
        config = DataConfig(**save("b.png", "1"))
        assert read(config)[1].shape == (2, 1, 6, 6)
        save("c.png", "RGBA")
        assert read(config)[1].shape == (3, 3, 6, 6)

    def test_modes_become_rgb(self, save: Any, read: Any) -> None:
        for mode in ("RGBA", "P", "LA", "CMYK", "L"):
            settings = save(f"{mode}.{'tif' if mode == 'CMYK' else 'png'}", mode)
        assert read(DataConfig(**settings))[1].shape == (5, 3, 6, 6)

    def test_sizes_that_differ_become_squares_of_the_median_short_side(
        self, save: Any, read: Any, tmp_path: Path
    ) -> None:
        save("a.png", "RGB", (8, 6))
        save("b.png", "RGB", (8, 6))
        settings = save("c.png", "RGB", (4, 9))
        config = DataConfig(**settings)
        contents, images = read(config)
        assert contents.row_shape == (3, 6, 6) and images.shape == (3, 3, 6, 6)
        np.testing.assert_array_equal(images, read(DataConfig(**settings, stored_size=6))[1])
        line = open_data(config, tmp_path / "cache").line
        assert line == "data: 3 images 6x6 RGB, from 4x9 to 8x6, no labels"
        save("d.png", "RGB", (900, 600))
        save("e.png", "RGB", (900, 600))
        save("f.png", "RGB", (900, 600))
        save("g.png", "RGB", (900, 600))
        assert read(config)[1].shape == (7, 3, 256, 256)

    def test_stored_size_resizes_the_short_side_and_crops_the_centre(
        self, save: Any, read: Any
    ) -> None:
        settings = save("a.png", "RGB", (30, 20))
        _, images = read(DataConfig(**settings, stored_size=10))
        with Image.open(Path(settings["path"], "a.png")) as image:
            wide = image.resize((15, 10), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images[0], np.asarray(wide)[:, 2:12].transpose(2, 0, 1))

    @pytest.mark.parametrize("stored_size", [None, 10])
    def test_new_images_become_what_the_source_would_have_stored(
        self, save: Any, read: Any, stored_size: int | None
    ) -> None:
        size = (10, 10) if stored_size is None else (30, 20)
        settings = save("a.png", "RGB", size)
        _, stored = read(DataConfig(**settings, stored_size=stored_size))
        with Image.open(Path(settings["path"], "a.png")) as image:
            np.testing.assert_array_equal(conformed(image, (3, 10, 10), stored_size), stored[0])
            grey = conformed(image.resize((300, 7)), (1, 12, 10), stored_size)
        assert grey.shape == (1, 12, 10) and grey.std() > 0

    def test_a_line_of_pixels_is_not_blown_up(self, tmp_path: Path, read: Any) -> None:
        for name, size in (("a.png", (1, 65_000)), ("b.png", (65_000, 1))):
            Image.linear_gradient("L").resize(size).save(tmp_path / name)
        _, images = read(DataConfig(source="folder", path=str(tmp_path), stored_size=512))
        assert images.shape == (2, 1, 512, 512)
        # The middle of the gradient.
        assert abs(images.astype(int) - 127).max() <= 2

    def test_a_small_file_cannot_ask_for_any_number_of_pixels(
        self, tmp_path: Path, read: Any, message: Any
    ) -> None:
        settings = {"source": "folder", "path": str(tmp_path)}
        Image.new("1", (5000, 5000)).save(tmp_path / "a.png")
        told = message(**settings)
        assert (
            "row 0 (a.png) has 5000x5000 pixels, more than 16,777,216; set data.stored_size" in told
        )
        assert read(DataConfig(**settings, stored_size=8))[1].shape == (1, 1, 8, 8)
        # PIL would only warn of it.
        Image.new("1", (12_000, 12_000)).save(tmp_path / "a.png")
        told = message(**settings, stored_size=8)
        assert "row 0 (a.png) cannot be decoded (12000x12000 pixels, more than 134,217,728)" in told
        Image.new("1", (2, 200_000)).save(tmp_path / "a.png")
        told = message(**settings, stored_size=8)
        assert "row 0 (a.png) cannot be decoded (2x200000 pixels, a side of over 131,072)" in told
        with (tmp_path / "a.png").open("wb") as file:
            file.truncate(2**40)
        told = message(**settings, stored_size=8)
        assert "cannot be decoded (1,099,511,627,776 bytes, more than 536,870,912)" in told

    def test_a_file_that_other_programs_would_run_is_no_image(
        self, tmp_path: Path, message: Any
    ) -> None:
        Image.new("RGB", (4, 4)).save(tmp_path / "a.eps")
        (tmp_path / "a.eps").rename(tmp_path / "a.png")
        told = message(source="folder", path=str(tmp_path))
        assert "row 0 (a.png) cannot be decoded (unknown image format)" in told

    def test_a_changed_bit_of_a_png_file_is_found(
        self, save: Any, read: Any, tmp_path: Path
    ) -> None:
        settings = save("a.png", "RGB", (9, 9))
        whole, pixels = (tmp_path / "a.png").read_bytes(), read(DataConfig(**settings))[1]
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << place % 8
            (tmp_path / "a.png").write_bytes(changed)
            with suppress(UserError):
                np.testing.assert_array_equal(read(DataConfig(**settings))[1], pixels)

    def test_images_that_do_not_decode(self, save: Any, tmp_path: Path, message: Any) -> None:
        for index in range(40):
            settings = save(f"{index:02}.png", "RGB")
        buffer = io.BytesIO()
        Image.effect_noise((6, 6), 50).convert("RGB").save(buffer, "PNG")
        (tmp_path / "33.png").write_bytes(buffer.getvalue()[:70])
        text = message(**settings)
        assert f"data.path={tmp_path}: row 33 (33.png) cannot be decoded" in text
        assert text.endswith("; remove or repair it, or set data.on_error=skip to leave it out")
        for index in (7, 36):
            (tmp_path / f"{index:02}.png").write_bytes(b"<html>404</html>")
        assert message(**settings) == (
            f"data.path={tmp_path}: row 7 (07.png) cannot be decoded (unknown image format), nor "
            "can row 33 (33.png), row 36 (36.png); remove or repair them, or set "
            "data.on_error=skip to leave them out"
        )

    def test_folders_that_hold_nothing(self, tmp_path: Path, message: Any) -> None:
        (tmp_path / "file").touch()
        for path, problem in (
            (tmp_path / "gone", "no such folder"),
            (tmp_path / "file", "not a folder"),
            (tmp_path, "no images"),
        ):
            text = message(source="folder", path=str(path))
            assert text.startswith(f"data.path={path}: {problem}; name a folder")
