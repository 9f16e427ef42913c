from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from conr_ray.config import load_preset
from conr_ray.config.shortened import shortened, told_of_shortened
from conr_ray.data.store import open_data
from conr_ray.engine import raw_pixels
from conr_ray.engine.outline import GROUP_STAGE_BEGINS, outline
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.tracking.progress import RunProgress
from tests.tiny_runs import run_here

NEVER = {"schedule.group_start": "never"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {},
            [
                "1,797 images into 10 clusters; epochs 1 to 30 of the instance stage (byol alone), "
                "then epochs 31 to 60 of the group stage (10 contextual neighbours in the batch); "
                "14 steps of 128 images each"
            ],
        ),
        ({"schedule.group_start": "never"}, ["; epochs 1 to 60 of the instance stage", "; 14 st"]),
        ({"schedule.group_start": 0}, ["into 10 clusters; epochs 1 to 60 of the group stage"]),
        ({"schedule.group_start": 59}, ["epochs 1 to 59 of", "then epoch 60 of the group stage"]),
        ({"bank.size": 512}, ["neighbours in the batch and the bank)"]),
        ({"clustering.num_clusters": "5..30"}, ["into 5 to 30 clusters, as many as the data"]),
        ({"clustering.num_clusters": None}, ["into 10 clusters, one for each label"]),
    ],
)
def test_a_run_says_what_it_will_do(changes: dict[str, Any], parts: list[str]) -> None:
    told = outline(load_preset("digits", changes), 1797, 10, "images")
    assert all(part in told for part in parts), told
    again = outline(load_preset("digits", changes), 1797, 10, "images", 12)
    assert again.count("12 epochs are trained already") == 1


def test_the_jump_of_the_loss_is_explained_once() -> None:
    def shown(stages: list[str], inherited: int = 0) -> str:
        console = Console(file=io.StringIO(), width=300)
        rows: list[Any] = [
            {"epoch": i, "stage": stage, "loss": 1.0} for i, stage in enumerate(stages)
        ]
        with RunProgress(len(rows), 0, console) as progress:
            progress.inherit(rows[:inherited])
            for row in rows[inherited:]:
                progress.epoch(row)
        text: str = console.file.getvalue()  # type: ignore[attr-defined]
        return text

    stages = ["instance", "instance", "group", "group"]
    text = shown(stages)
    assert text.count(GROUP_STAGE_BEGINS) == 1
    assert shown(stages, 2).count(GROUP_STAGE_BEGINS) == 1
    assert GROUP_STAGE_BEGINS not in shown(stages, 3)
    assert GROUP_STAGE_BEGINS not in shown(["group", "group"])
    assert GROUP_STAGE_BEGINS not in shown(["instance", "instance"])


@pytest.mark.parametrize("preset", ["digits", "cifar10", "cifar10_fast", "photos"])
@pytest.mark.parametrize("epochs", [1, 2, 3, 7])
def test_a_preset_fits_into_fewer_epochs(preset: str, epochs: int) -> None:
    asked = {"schedule.epochs": epochs}
    changed = shortened(preset, asked)
    schedule = load_preset(preset, asked | changed).schedule
    assert schedule.epochs == epochs and schedule.warmup_epochs <= epochs
    assert all(
        f"{name}={value}" in told_of_shortened(changed, epochs) for name, value in changed.items()
    )


def test_only_what_does_not_fit_and_nobody_set_is_changed() -> None:
    assert shortened("digits", {}) == {}
    assert shortened("digits", {"schedule.epochs": 40}) == {}
    assert shortened("digits", {"schedule.epochs": 90}) == {}
    assert shortened("digits", {"schedule.epochs": 4, "schedule.group_start": "never"}) == {
        "schedule.relax_epochs": 0,
        "schedule.warmup_epochs": 0,
    }
    kept = {"schedule.epochs": 20, "schedule.group_start": 10, "schedule.warmup_epochs": 3}
    assert shortened("digits", kept) == {}
    assert shortened("digits", {"schedule.epochs": 20})["schedule.group_start"] == 10


def test_a_run_that_is_too_short_says_so_and_a_good_one_does_not(tmp_path: Path) -> None:
    config = load_preset("digits", {"schedule.epochs": 1, "schedule.warmup_epochs": 0} | NEVER)
    data, directory = open_data(config.data), RunDirectory(tmp_path / "run")
    directory.claim(config, resume=False)
    rows = run_here(config, tmp_path / "run")
    told = raw_pixels.against_raw_pixels(config, data, directory)
    assert told is not None and told.startswith("no better than k-means on raw pixels: NMI 0.")
    assert float(rows[-1]["nmi"] or 0) == pytest.approx(float(told.split()[8].strip(",")), abs=1e-3)
    assert "schedule.epochs=1 (14 steps)" in told
    unlabelled = replace(data, labels=None)
    told = raw_pixels.against_raw_pixels(config, unlabelled, directory)
    assert told is not None and told.startswith("a short run: 14 steps in schedule.epochs=1;")
    assert raw_pixels.against_raw_pixels(load_preset("digits"), unlabelled, directory) is None
    # As good a clustering as there is.
    table = directory.read_table("assignments.parquet")
    assert table is not None and data.labels is not None
    place = table.column_names.index("cluster")
    directory.write_table(
        "assignments.parquet", table.set_column(place, "cluster", [np.asarray(data.labels)])
    )
    assert raw_pixels.against_raw_pixels(config, data, directory) is None
