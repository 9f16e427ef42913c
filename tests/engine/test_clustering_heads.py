"""Runs of clustering heads: on vectors, from the command line to predictions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import conr_ray.recluster
from conr_ray import Clusterer, TrainedRun, UserError
from conr_ray.config import ModelConfig, RunConfig
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import on_vectors, run_here, tiny_config

# Three groups of unequal size.
CLASSES = np.repeat(np.arange(3), [120, 60, 60])
VECTORS = np.random.default_rng(0).normal(size=(240, 6)) + 5 * np.eye(3, 6)[CLASSES]


def config_of(folder: Path, **changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        **on_vectors(folder / "vectors.parquet", VECTORS.astype(np.float32), CLASSES),
        "model__framework": "heads",
        "model__backbone": "identity",
        "model__widths": ModelConfig.default_of("widths"),
        "views__dropout": 0.0,
        "neighborhood__pool": "data",
        "bank__size": 0,
        "heads__num_heads": 4,
        "heads__balance": 1.0,
        "clustering__num_clusters": 3,
        "optim__batch_size": 24,
        "optim__lr": 10.0,
        "schedule__epochs": 16,
        "schedule__group_start": 0,
        "schedule__relax_epochs": 0,
        "boundary__initial_fraction": 1.0,
    }
    return tiny_config(**{**fields, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("heads")
    config = config_of(folder)
    RunDirectory(folder / "run").claim(config, resume=False)
    rows = run_here(config, folder / "run")
    assert float(rows[-1]["acc"] or 0) > 0.95
    return folder / "run"


def test_new_samples_get_the_clusters_of_the_run(folder: Path) -> None:
    run = TrainedRun.load(folder)
    clusters, _ = run.assign(VECTORS.astype(np.float32))
    assert clusters.tolist() == pq.read_table(folder / "assignments.parquet")["cluster"].to_pylist()
    prototypes = run.state.framework.cluster_centers
    assert prototypes is not None and run.state.centers is not None
    # In the order in which the run has found its clusters.
    order = (run.state.centers @ prototypes.T).argmax(1)
    assert sorted(order.tolist()) == list(range(len(prototypes)))
    torch.testing.assert_close(run.state.centers, prototypes[order])


def test_in_its_own_number_a_run_keeps_what_its_heads_found(folder: Path) -> None:
    for number in ("3", "4"):
        conr_ray.recluster.main(["--run", str(folder), "--clusters", number])
    own = (folder / "assignments.parquet").read_bytes()
    assert (folder / "recluster" / "3" / "assignments.parquet").read_bytes() == own
    found = pq.read_table(folder / "recluster" / "4" / "assignments.parquet")
    assert len(set(found["cluster"].to_pylist())) == 4


def test_the_boundary_filter_keeps_the_share_that_rises(tmp_path: Path) -> None:
    changes = {"boundary__initial_fraction": 0.5, "schedule__relax_epochs": 4}
    rows = run_here(config_of(tmp_path, **changes), tmp_path / "run")
    kept = [float(row["kept"] or 0) for row in rows]
    assert kept[:8] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1], abs=0.01)


def test_clusters_are_found_when_they_are_due_only(tmp_path: Path) -> None:
    config = config_of(tmp_path, evaluation__every=4)
    rows = run_here(config, tmp_path / "run")
    assert [row["epoch"] for row in rows if "acc" in row] == [0, 3, 7, 11, 15]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"neighborhood__pool": "batch"},
            "neighborhood.pool=batch: model.framework=heads does not work with it: set "
            "neighborhood.pool=data, or schedule.group_start=never",
        ),
        (
            {"neighborhood__k1": 241},
            "neighborhood.k1=241 exceeds the 240 vectors: lower it or add vectors",
        ),
        (
            {"neighborhood__k": 300},
            "neighborhood.k=300 exceeds the 240 vectors: lower it or add vectors",
        ),
        (
            {"bank__size": 64},
            "bank.size=64: neighborhood.pool=data finds neighbours in all data, without a bank: "
            "leave it out",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises((UserError, ValueError), match=re.escape(told)):
        run_here(config_of(tmp_path, **changes), tmp_path / "run")


def test_another_framework_can_be_pulled_toward_neighbours_in_all_data(tmp_path: Path) -> None:
    changes = {"neighborhood__pool": "data", "bank__size": 0, "neighborhood__k1": 40}
    rows = run_here(tiny_config(**changes), tmp_path)
    assert [row["stage"] for row in rows] == ["instance"] * 2 + ["group"] * 2
    assert float(rows[-1]["neighbor_purity"] or 0) > float(rows[-2]["neighbor_purity"] or 0) - 0.2
    assert np.isfinite(float(rows[-1]["loss"] or 0)) and float(rows[-1]["kept"] or 0) == 1


def test_clusterer_saves_and_loads_heads(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    data = open_data(config.data)
    settings = {
        "model__framework": "heads",
        "neighborhood__pool": "data",
        "schedule__epochs": 6,
        "schedule__group_start": 0,
        "schedule__warmup_epochs": 1,
        "optim__lr": 2.0,
        "neighborhood__k1": 20,
    }
    clusterer = Clusterer(num_clusters=3, **settings)
    found = clusterer.fit_predict(data.rows)
    clusterer.save(tmp_path / "saved")
    assert Clusterer.load(tmp_path / "saved").predict(data.rows).tolist() == found.tolist()


@pytest.mark.slow
def test_an_export_of_heads_is_the_run(folder: Path, tmp_path: Path) -> None:
    import onnxruntime

    import conr_ray.export

    conr_ray.export.main(["--run", str(folder), "--out", str(tmp_path / "out"), "--format", "onnx"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    name = session.get_inputs()[0].name
    told = dict(
        zip(
            [output.name for output in session.get_outputs()],
            session.run(None, {name: VECTORS.astype(np.float32)}),
            strict=True,
        )
    )
    wanted = pq.read_table(folder / "assignments.parquet")["cluster"].to_pylist()
    assert told["cluster"].tolist() == wanted
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["head_hidden_dim"] == 0 and written["embedding_dim"] == 6


def test_a_framework_whose_views_are_of_one_sample_keeps_to_batches() -> None:
    with pytest.raises(UserError, match=r"model.framework=propos does not work with it: set"):
        tiny_config(model__framework="propos", neighborhood__pool="data", bank__size=0)
