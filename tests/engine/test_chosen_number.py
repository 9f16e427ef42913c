"""Runs that choose their number of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from conr_ray import Clusterer, TrainedRun, UserError
from conr_ray.engine.run_directory import RunDirectory
from tests.engine.test_clustering_heads import CLASSES, VECTORS, config_of
from tests.tiny_runs import run_here, run_step_by_step, tiny_config

CHOOSES = {"clustering__num_clusters": "3..12", "evaluation__every": 1}


def _run(folder: Path, **changes: Any) -> list[Any]:
    config = tiny_config(**{**CHOOSES, **changes})
    RunDirectory(folder).claim(config, resume=False)
    return run_here(config, folder)


def test_the_number_may_change_from_epoch_to_epoch_and_is_told(tmp_path: Path) -> None:
    rows = _run(tmp_path / "run")
    numbers = [row["num_clusters"] for row in rows]
    assert len(set(numbers)) > 1 and all(3 <= int(number or 0) <= 12 for number in numbers)
    run = TrainedRun.load(tmp_path / "run")
    assert run.num_clusters == numbers[-1] == run.state.num_clusters
    table = RunDirectory(tmp_path / "run").read_table("assignments.parquet")
    assert table is not None and max(table.column("cluster").to_pylist()) < int(numbers[-1] or 0)


def test_a_resumed_run_chooses_as_one_that_never_stopped(tmp_path: Path) -> None:
    rows = _run(tmp_path / "whole")
    config = tiny_config(**CHOOSES)
    RunDirectory(tmp_path / "parts").claim(config, resume=False)
    resumed, _ = run_step_by_step(config, tmp_path / "parts")
    same = ("loss", "num_clusters", "acc")
    assert [[row[one] for one in same] for row in resumed] == [
        [row[one] for one in same] for row in rows
    ]
    left, right = TrainedRun.load(tmp_path / "whole"), TrainedRun.load(tmp_path / "parts")
    assert left.state.centers is not None and right.state.centers is not None
    assert torch.equal(left.state.centers, right.state.centers)


def test_heads_take_the_number_of_their_vectors_and_keep_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, clustering__num_clusters="3..4", schedule__epochs=2)
    RunDirectory(tmp_path / "run").claim(config, resume=False)
    rows, _ = run_step_by_step(config, tmp_path / "run")
    assert {row["num_clusters"] for row in rows if "num_clusters" in row} <= {3, 4}
    run = TrainedRun.load(tmp_path / "run")
    assert run.num_clusters == rows[-1]["num_clusters"]
    found = Clusterer.load(tmp_path / "run")
    assert len(found.cluster_centers_) == run.num_clusters
    assert len(found.predict(VECTORS)) == len(CLASSES)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"num_clusters=400 exceeds the 300 images"):
        _run(tmp_path / "many", clustering__num_clusters="5..400")
