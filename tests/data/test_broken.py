"""Pictures that are broken in the ten ways of the benchmark: all named, none stops or hangs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import conr_ray.train
from conr_ray.config import DataConfig
from conr_ray.data.store import open_data

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def ways() -> Any:
    path = ROOT / "benchmarks" / "broken_images.py"
    spec = importlib.util.spec_from_file_location("broken_images", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_are_named_at_once_or_left_out(ways: Any, tmp_path: Path) -> None:
    broken = ways.write(tmp_path / "photos", 400, 40)
    assert ways.missed_by_stop(tmp_path / "photos", broken, tmp_path / "cache") == []
    data = ways.skipped(tmp_path / "photos", tmp_path / "cache")
    assert [one.place.split("(")[1].rstrip(")") for one in data.inventory.skipped] == broken
    assert data.num_rows == 360 and len(set(data.sample_ids.tolist())) == 360
    reasons = {one.reason for one in data.inventory.skipped}
    assert len(reasons) >= 7 and all("\n" not in reason for reason in reasons)
    for name in broken:
        (tmp_path / "photos" / name).unlink()
    sound = open_data(DataConfig(source="folder", path=str(tmp_path / "photos")), tmp_path / "c")
    assert sound.fingerprint == data.fingerprint


def test_the_first_and_only_ones(ways: Any, tmp_path: Path, message: Any) -> None:
    for number, (ending, content) in enumerate(ways.WAYS.values()):
        (tmp_path / f"{number}.{ending}").write_bytes(content(number))
    told = message(source="folder", path=str(tmp_path), on_error="skip")
    assert told.startswith(f"data.path={tmp_path}: row 0 (0.png) cannot be decoded (it is empty)")
    assert told.endswith("; remove or repair them")
    (tmp_path / "9.jpg").write_bytes(ways.sound(9, "JPEG"))
    config = DataConfig(source="folder", path=str(tmp_path), on_error="skip")
    data = open_data(config, tmp_path.parent / "cache")
    assert data.names == ["9.jpg"] and len(data.inventory.skipped) == len(ways.WAYS)


@pytest.mark.slow
def test_a_run_with_skip_trains_and_lists_them(
    ways: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = ways.write(tmp_path / "photos", 100, 10)
    fields = {
        "data.source": "folder",
        "data.path": tmp_path / "photos",
        "data.on_error": "skip",
        "data.stored_size": 8,
        "optim.batch_size": 32,
        "schedule.epochs": 1,
        "schedule.group_start": "never",
        "schedule.warmup_epochs": 0,
        "clustering.num_clusters": 2,
    }
    words = [word for name, value in fields.items() for word in ("--set", f"{name}={value}")]
    where = ["--local", "--storage", str(tmp_path / "runs"), "--name", "a"]
    conr_ray.train.main(["--preset", "digits", *where, *words])
    line = "data: 90 images 8x8 RGB, no labels; skipped: 10 that cannot be read"
    assert line in capsys.readouterr().out
    found = json.loads((tmp_path / "runs/a/data.json").read_text())
    assert found["line"] == line
    assert [place.split("(")[1].rstrip(")") for _, place, _ in found["skipped"]] == broken
