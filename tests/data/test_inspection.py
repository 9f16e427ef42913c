"""What is told of a data set before anything is trained."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conr_ray.config import DataConfig
from conr_ray.data.cache import cache_limit
from conr_ray.data.inspection import Inspection, inspect
from conr_ray.data.store import open_data
from conr_ray.data_commands import main
from conr_ray.errors import UserError


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CONR_RAY_CACHE_LIMIT", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of noise; copies within a class, over both, and in another format; one broken."""
    root = tmp_path / "photos"
    for folder in ("cat", "dog"):
        (root / folder).mkdir(parents=True)

    def noise(seed: int, side: int = 12) -> Image.Image:
        rng = np.random.default_rng(seed)
        return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))

    for seed in range(4):
        noise(seed).save(root / "cat" / f"{seed}.png")
    noise(9, 20).save(root / "dog" / "large.jpg")
    noise(0).save(root / "cat" / "again.bmp")
    noise(1).save(root / "dog" / "stray.png")
    Image.new("L", (12, 12), 7).save(root / "dog" / "grey.png")
    (root / "dog" / "empty.png").touch()
    (root / "dog" / "notes.txt").touch()
    return root


def of_folder(root: Path, **settings: Any) -> Inspection:
    return inspect(DataConfig(source="folder", path=str(root), **settings))


class TestImages:
    def test_all_that_there_is(self, photos: Path) -> None:
        found = of_folder(photos)
        assert found.num_samples == 9
        assert found.formats == {"PNG": 6, "BMP": 1, "JPEG": 1}
        assert found.modes == {"RGB": 7, "L": 1}
        assert found.sizes == {(12, 12): 7, (20, 20): 1}
        assert found.num_bytes == sum(
            path.stat().st_size for path in photos.rglob("*.*") if path.suffix != ".txt"
        )
        [broken] = found.broken
        assert broken.reason == "it is empty" and "dog/empty.png" in broken.place
        assert [[place.split("(")[1][:-1] for place in group] for group in found.copies] == [
            ["cat/0.png", "cat/again.bmp"],
            ["cat/1.png", "dog/stray.png"],
        ]
        assert found.num_conflicts == 1
        assert found.balance == {"cat": 5, "dog": 4} and found.labels_from == "folders"
        assert found.left_out == {".txt": 1} and found.shape == (8, 3, 12, 12)
        assert "set data.on_error=skip" in found.refused

    def test_it_tells_what_a_run_would_tell(self, photos: Path) -> None:
        config = DataConfig(source="folder", path=str(photos), on_error="skip")
        found = inspect(config)
        data = open_data(config)
        assert found.line == data.line and not found.refused
        assert found.shape == data.rows.shape

    def test_nothing_is_written(self, photos: Path, cache_dir: Path) -> None:
        before = {path: path.stat().st_mtime_ns for path in photos.rglob("*")}
        of_folder(photos)
        assert not cache_dir.exists()
        assert {path: path.stat().st_mtime_ns for path in photos.rglob("*")} == before

    def test_lines_for_people(self, photos: Path, cache_dir: Path) -> None:
        lines = list(of_folder(photos).lines())
        assert lines[0].startswith("data: 9 images 12x12 RGB, from 12x12 to 20x20, labels from ")
        assert lines[1].startswith("files: 6 PNG, 1 BMP, 1 JPEG; pixels: 7 RGB, 1 L; ")
        assert lines[2] == "sizes: 2 from 12x12 to 20x20; they become 12x12"
        assert lines[3] == "classes: 4 to 5 samples, 1.2 to 1 (cat 5, dog 4)"
        assert lines[4] == (
            "copies: 2 samples are an exact copy of another, in 2 groups; 1 of them have copies "
            "with other labels"
        )
        assert lines[5] == "  row 0 (cat/0.png) = row 4 (cat/again.bmp)"
        assert lines[7] == "cannot be read: row 5 (dog/empty.png) (it is empty)"
        assert lines[8].startswith(f"decoded: 3 KB, in {cache_dir} with ")
        assert "free: it fits; " in lines[8] and lines[8].endswith(" of memory are free")
        assert lines[9] == (
            "a run would stop: 1 sample cannot be read: repair or remove them, or set "
            "data.on_error=skip"
        )
        assert len(lines) == 10

    def test_where_all_are_broken(self, tmp_path: Path) -> None:
        (tmp_path / "set").mkdir()
        for number in range(12):
            (tmp_path / "set" / f"{number}.png").write_bytes(b"nothing")
        found = of_folder(tmp_path / "set")
        assert len(found.broken) == 12 and not found.shape and not found.copies
        lines = list(found.lines())
        assert sum(line.startswith("cannot be read: row") for line in lines) == 10
        assert "cannot be read: 2 more; --json names all" in lines
        assert "cannot be decoded (unknown image format)" in lines[-1]

    def test_why_there_are_no_labels(self, photos: Path) -> None:
        (photos / "cat").rename(photos / "2023")
        (photos / "dog").rename(photos / "2024")
        found = of_folder(photos)
        assert found.balance is None and "are dates" in found.why_no_labels
        assert "no labels (sub-folders 2023, 2024 are dates" in found.line

    def test_a_copy_that_does_not_fit(self, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONR_RAY_CACHE_LIMIT", "2KB")
        assert cache_limit(photos) == 2000
        lines = list(of_folder(photos).lines())
        assert any("more than CONR_RAY_CACHE_LIMIT allows, 2 KB" in line for line in lines)


class TestOtherSources:
    def test_parquet(self, tmp_path: Path, encode: Any, random_images: Callable[..., Any]) -> None:
        files = [encode(one) for one in random_images(50, 3, 8, 8)]
        files[30] = files[3]
        table = {"image": files, "label": pa.array([0, 5] * 25), "split": ["a", "b"] * 25}
        pq.write_table(pa.table(table), tmp_path / "f.parquet")
        config = DataConfig(source="parquet", path=str(tmp_path / "f.parquet"))
        found = inspect(config)
        assert found.copies == [["row 3", "row 30"]] and found.num_conflicts == 1
        assert found.balance == {"0": 25, "5": 25} and not found.refused
        assert "classes: 25 samples each (0 25, 5 25)" in list(found.lines())
        part = inspect(config.model_copy(update={"splits": ("a",)}))
        assert part.num_samples == 25 and part.copies == []

    def test_raw_pixels(self, tmp_path: Path) -> None:
        rows = [bytes([i % 9] * 16) for i in range(20)]
        table = pa.table({"image": rows}).replace_schema_metadata({"shape": "4,4"})
        pq.write_table(table, tmp_path / "f.parquet")
        found = inspect(DataConfig(source="parquet", path=str(tmp_path / "f.parquet")))
        assert found.formats == {"pixels": 20} and found.modes == {"L": 20}
        assert found.num_bytes == 320 and len(found.copies) == 9

    def test_digits(self) -> None:
        found = inspect(DataConfig(source="digits"))
        assert found.line.startswith("data: 1,797 images 8x8 grey, labels: 10 classes")
        assert found.balance is not None and sum(found.balance.values()) == 1797
        assert found.sizes == {(8, 8): 1797} and found.shape == (1797, 1, 8, 8)

    def test_vectors(self, tmp_path: Path) -> None:
        vectors = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
        vectors[7] = vectors[2]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 5)
        pq.write_table(pa.table({"embedding": column}), tmp_path / "v.parquet")
        found = inspect(DataConfig(source="vectors", path=str(tmp_path / "v.parquet")))
        assert found.copies == [["row 2", "row 7"]] and found.shape == (30, 5)
        assert found.line == "data: 30 vectors of 5 numbers, no labels"
        json.dumps(found.as_json())


class TestCommand:
    def test_json_has_all(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["inspect", str(photos), "--json"])
        told = json.loads(capsys.readouterr().out)
        assert told["num_samples"] == 9 and told["formats"]["PNG"] == 6
        assert told["sizes"] == [[12, 12, 7], [20, 20, 1]]
        assert told["broken"] == [
            {"row": 5, "place": "row 5 (dog/empty.png)", "reason": "it is empty"}
        ]
        assert told["decoded"]["bytes"] == 8 * 3 * 144 and told["balance"] == {"cat": 5, "dog": 4}

    def test_fields_are_set(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        settings = ["--set", "data.labels=none", "--set", "data.on_error=skip"]
        main(["inspect", str(photos), *settings])
        out = capsys.readouterr().out
        assert out.startswith("data: 8 images 12x12 RGB, from 12x12 to 20x20, no labels; left out")
        main(["inspect", "--set", "data.source=digits"])
        assert capsys.readouterr().out.startswith("data: 1,797 images")

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ([], "inspect: name the PATH of a data set"),
            (["p", "--set", "data.path=q"], "data.path=q: p is given too; leave out one"),
            (["p", "--set", "optim.lr=1"], "--set optim.lr: inspect takes fields of data only"),
            (["p", "--set", "data.on_error=no"], "data.on_error='no': input should be 'stop'"),
            (["p", "--set", "data.source=torchvision"], "data.name is not set"),
            (["/no/such/place"], "no/such/place"),
        ],
    )
    def test_slips_are_told(self, words: list[str], told: str) -> None:
        with pytest.raises(UserError) as caught:
            main(["inspect", *words])
        assert told in str(caught.value) and "\n" not in str(caught.value)


def test_many_are_looked_at_with_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conr_ray.data.progress._LINE_EVERY_S", 0.0)
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    pq.write_table(pa.table({"image": [buffer.getvalue()] * 300}), tmp_path / "f.parquet")
    config = DataConfig(source="parquet", path=str(tmp_path / "f.parquet"))
    inspect(config)
    assert "looked at 300 images, " in capsys.readouterr().err
    open_data(config)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("decoded 300 of 300 images, ") and line.endswith("/s, 0:00 left")
