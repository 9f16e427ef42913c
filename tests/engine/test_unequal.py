"""Runs on clusters of unequal sizes: cut, filter by cluster, batches that see rare ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conr_ray.config import RunConfig, override
from conr_ray.engine.extend import extended_config
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.method.stages.boundary import kept_mask
from tests.gloo_workers import run_workers
from tests.tiny_runs import framework_config, run_here, run_step_by_step, tiny_config, without_times


def unequal_config(**changes: Any) -> RunConfig:
    return tiny_config(
        data__imbalance=5,
        data__limit=None,
        clustering__kind="cut",
        clustering__evenness=0.5,
        clustering__restarts=2,
        boundary__per="cluster",
        **changes,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, without_times(run_here(unequal_config(), folder))


def test_stopped_after_each_step_it_equals_never_stopped(
    whole_run: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    rows, told = run_step_by_step(unequal_config(), tmp_path)
    assert len(told) > 8
    assert without_times(rows) == whole_run[1]


def test_its_metrics_are_of_rare_classes_too(whole_run: tuple[Path, list[Any]]) -> None:
    last = whole_run[1][-1]
    assert 0 < last["balanced_acc"] <= 1 and 0 < last["neighbor_stability"] <= 1
    written = RunDirectory(whole_run[0]).metric_rows()[-1]
    assert written["balanced_acc"] == last["balanced_acc"]


def test_the_filter_keeps_the_share_of_each_cluster(whole_run: tuple[Path, list[Any]]) -> None:
    folder, rows = whole_run
    table = RunDirectory(folder).read_table("assignments.parquet")
    assert table is not None
    clusters, kept = table.column("cluster").to_numpy(), table.column("kept").to_numpy()
    ratios = torch.from_numpy(table.column("boundary_ratio").to_numpy().copy())
    expected = kept_mask(ratios, rows[-1]["fraction"], torch.from_numpy(clusters.copy()))
    assert np.array_equal(kept, expected.numpy())


def test_new_images_go_where_the_run_has_put_its_own(whole_run: tuple[Path, list[Any]]) -> None:
    from conr_ray.data.store import open_data

    folder, _ = whole_run
    table = RunDirectory(folder).read_table("assignments.parquet")
    assert table is not None
    data = open_data(unequal_config().data)
    placed = TrainedRun.load(folder).place(np.asarray(data.rows))
    assert placed.clusters_n.tolist() == table.column("cluster").to_pylist()


def test_a_run_that_is_extended_takes_all_samples(
    whole_run: tuple[Path, list[Any]],
) -> None:
    run = TrainedRun.load(whole_run[0])
    changes = {"data.source": "folder", "data.path": "here", "data.limit": 9, "data.imbalance": 3}
    wider = extended_config(replace(run, config=override(run.config, changes)), "there").data
    assert (wider.path, wider.limit, wider.imbalance) == ("there", None, None)


def _on_worker(folder: str) -> list[dict[str, Any]]:
    return without_times(run_here(unequal_config(), Path(folder)))


def test_two_workers_train_as_one_does(whole_run: tuple[Path, list[Any]], tmp_path: Path) -> None:
    first, second = run_workers(_on_worker, 2, str(tmp_path))
    assert first == second
    for row, alone in zip(first, whole_run[1], strict=True):
        assert row["loss"] == pytest.approx(alone["loss"], abs=1e-3)


def test_each_field_changes_the_group_stage_alone(
    whole_run: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    for name, value in (("boundary__per", "batch"), ("clustering__evenness", 0.0)):
        changed = unequal_config().model_copy()
        section, leaf = name.split("__")
        part = getattr(changed, section).model_copy(update={leaf: value})
        rows = without_times(run_here(changed.model_copy(update={section: part}), tmp_path / name))
        losses = [[row["loss"] for row in found] for found in (rows, whole_run[1])]
        start = unequal_config().group_start_epoch
        assert losses[0][:start] == losses[1][:start]
        assert losses[0][start:] != losses[1][start:]


def test_heads_learn_by_the_cut_on_batches_that_see_rare_clusters(tmp_path: Path) -> None:
    changes = {"heads__objective": "cut", "clustering__evenness": 1.0, "boundary__per": "cluster"}
    rows = run_here(framework_config("heads", **changes), tmp_path)
    # Minus the share of neighbours that stay, summed over ten clusters.
    assert all(-10 < float(row["loss"] or 0) < 0 for row in rows)
    again, _ = run_step_by_step(framework_config("heads", **changes), tmp_path / "stopped")
    assert without_times(again) == without_times(rows)
