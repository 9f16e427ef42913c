"""Decoding of encoded images: channels, sizes and images that are broken."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conr_ray.config import DataConfig


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

    def test_sixteen_bits_are_refused(self, save: Any, message: Any) -> None:
        text = message(**save("a.png", "I;16"))
        assert "row 0 (a.png) cannot be decoded" in text and "8 bits" in text

    def test_sizes_that_differ(self, save: Any, read: Any, message: Any) -> None:
        save("a.png", "RGB", (8, 6))
        save("b.png", "RGB", (8, 6))
        settings = save("c.png", "RGB", (6, 8))
        text = message(**settings)
        assert "row 2 (c.png) has 6x8 pixels" in text and "set data.stored_size=6" in text
        assert read(DataConfig(**settings, stored_size=6))[1].shape == (3, 3, 6, 6)

    def test_stored_size_resizes_the_short_side_and_crops_the_centre(
        self, save: Any, read: Any
    ) -> None:
        settings = save("a.png", "RGB", (30, 20))
        _, images = read(DataConfig(**settings, stored_size=10))
        with Image.open(Path(settings["path"], "a.png")) as image:
            wide = image.resize((15, 10), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(images[0], np.asarray(wide)[:, 2:12].transpose(2, 0, 1))

    def test_images_that_do_not_decode(self, save: Any, tmp_path: Path, message: Any) -> None:
        for index in range(40):
            settings = save(f"{index:02}.png", "RGB")
        buffer = io.BytesIO()
        Image.effect_noise((6, 6), 50).convert("RGB").save(buffer, "PNG")
        (tmp_path / "33.png").write_bytes(buffer.getvalue()[:70])
        text = message(**settings)
        assert f"data.path={tmp_path}: row 33 (33.png) cannot be decoded" in text
        assert text.endswith("remove or repair it")

    def test_folders_that_hold_nothing(self, tmp_path: Path, message: Any) -> None:
        (tmp_path / "file").touch()
        for path, problem in (
            (tmp_path / "gone", "no such folder"),
            (tmp_path / "file", "not a folder"),
            (tmp_path, "no images"),
        ):
            text = message(source="folder", path=str(path))
            assert text.startswith(f"data.path={path}: {problem}; name a folder")
