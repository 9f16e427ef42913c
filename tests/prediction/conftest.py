"""Runs on samples of each kind, and the command that applies them."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import conr_ray.predict
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import run_here, tiny_config

NUM_IMAGES = 120
SMALL: dict[str, Any] = {"data__limit": None, "schedule__epochs": 3, "bank__size": 64}


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    """The bytes of an image file with `pixels` (h, w) or (h, w, 3)."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def digits() -> Any:
    """The first digits, (n, 8, 8)."""
    return open_data(tiny_config(data__limit=None).data).rows[:NUM_IMAGES, 0]


def train(folder: Path, **changes: Any) -> str:
    """A tiny run in `folder`; its path."""
    config = tiny_config(**{**SMALL, **changes})
    RunDirectory(folder).claim(config, resume=False)
    run_here(config, folder)
    return str(folder)


def predict(run: str, images: str, out: Path | str, *options: str) -> None:
    """The command, in this process."""
    conr_ray.predict.main(
        ["--run", run, "--images", images, "--out", str(out), "--local", *options]
    )


def rows_of(out: Path | str) -> list[dict[str, Any]]:
    """All rows of a prediction, by path or row."""
    rows = [
        row
        for file in sorted(Path(out, "predictions").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    key = next(name for name in ("path", "row") if name in rows[0])
    return sorted(rows, key=lambda row: (row.get("file", ""), row[key]))


def about(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "prediction.json").read_text()))


@pytest.fixture(scope="session")
def folder_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run on a folder of digits in two classes, and the folder."""
    folder = tmp_path_factory.mktemp("folder")
    for number, pixels in enumerate(digits()):
        file = folder / f"images/{'ab'[number % 2]}/{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(pixels))
    images = folder / "images"
    return train(folder / "run", data__source="folder", data__path=str(images)), images


@pytest.fixture
def copied(folder_run: tuple[str, Path], tmp_path: Path) -> Path:
    """A copy of the first 40 images of the folder, to be changed."""
    for file in sorted(folder_run[1].rglob("*.png"))[:40]:
        copy = tmp_path / "images" / file.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path / "images"


def parquet(file: Path, images: list[bytes] | Any, **metadata: str) -> str:
    """A Parquet file of images in row groups of 50; its path."""
    table = pa.table({"image": pa.array(images, pa.binary())})
    pq.write_table(table.replace_schema_metadata(metadata or None), file, row_group_size=50)
    return str(file)
