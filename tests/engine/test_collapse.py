"""Runs whose embeddings collapse, and runs whose embeddings do not."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conr_ray.config import RunConfig
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.collapse import collapse, has_collapsed
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import within_ranges
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import RunCollapsed
from conr_ray.metric_names import SPREAD
from tests.gloo_workers import run_workers
from tests.tiny_runs import COLLAPSING, run_here, tiny_config


def _row(cosine: float, stage: str = "instance") -> dict[str, Any]:
    return {"epoch": 12, "stage": stage, "mean_cosine": cosine, "effective_rank": 1.0}


def test_a_collapsed_run_ends_with_its_cause_and_keeps_its_metrics(tmp_path: Path) -> None:
    config = tiny_config(**COLLAPSING)
    told = (
        r"^the embeddings collapsed at epoch \d+ \(mean cosine \d\.\d+, effective rank 1\.\d+\): "
        r"optim\.weight_decay=3 .*: lower it; byol\.momentum=0 .*; newest checkpoint: .*$"
    )
    with pytest.raises(RunCollapsed, match=told) as first:
        run_here(config, tmp_path)
    directory = RunDirectory(tmp_path)
    rows = directory.metric_rows()
    assert [has_collapsed(row) for row in rows] == [False] * (len(rows) - 1) + [True]
    assert set(SPREAD) <= set(rows[-1])
    with pytest.raises(RunCollapsed, match="the embeddings collapsed"):
        directory.raise_failure()
    # No state of a collapse is kept, so that going on is no success.
    assert len(rows) not in directory.checkpoint_epochs()
    with pytest.raises(RunCollapsed) as again:
        run_here(config, tmp_path)
    assert str(again.value) == str(first.value)


def _train_collapsing(folder: str) -> str:
    try:
        run_here(tiny_config(**COLLAPSING), Path(folder))
    except RunCollapsed as error:
        return str(error)
    return "trained"


def test_all_workers_end_alike(tmp_path: Path) -> None:
    told = run_workers(_train_collapsing, 2, str(tmp_path))
    assert told[0] == told[1] and told[0].startswith("the embeddings collapsed at epoch")


def test_a_run_that_is_only_to_warn_trains_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(evaluation__on_collapse="warn", **COLLAPSING)
    with caplog.at_level(logging.WARNING):
        rows = run_here(config, tmp_path)
    assert len(rows) == config.schedule.epochs
    warned = [record.message for record in caplog.records if "collapsed" in record.message]
    assert len(warned) == sum(bool(has_collapsed(row)) for row in rows) > 0


@pytest.mark.parametrize("framework", ["byol", "moco", "simsiam", "propos"])
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_runs_do_not_end(tmp_path: Path, framework: str, seed: int) -> None:
    rows = run_here(tiny_config(model__framework=framework, seed=seed), tmp_path)
    assert [has_collapsed(row) for row in rows] == [False] * 4
    # Ten times as far from a collapse as what ends a run.
    assert all(1 - float(row["mean_cosine"] or 0) > 1e-3 for row in rows)


def test_epochs_without_evaluation_say_nothing() -> None:
    assert has_collapsed({"epoch": 0, "loss": 1.0}) is None
    assert has_collapsed(_row(1.0)) and not has_collapsed(_row(0.9998))


@pytest.mark.parametrize(
    ("changes", "stage", "told"),
    [
        ({"optim__weight_decay": 0.1}, "instance", "optim.weight_decay=0.1 shrinks"),
        ({"byol__momentum": 0}, "instance", "byol.momentum=0 leaves no slower target"),
        ({"byol__predictor_lr_factor": 0.01}, "instance", "byol.predictor_lr_factor=0.01 leaves"),
        (
            {"model__framework": "moco", "moco__temperature": 9},
            "instance",
            "moco.temperature=9 leaves negatives",
        ),
        ({"optim__lr": 3}, "instance", "optim.lr=3 is too high"),
        ({"neighborhood__k": 40}, "group", "neighborhood.k=40 exceeds the 19 samples"),
        ({"neighborhood__k": 40}, "instance", "no setting stands out"),
        ({}, "group", "no setting stands out"),
    ],
)
def test_the_cause_is_one_that_the_config_shows(
    changes: dict[str, Any], stage: str, told: str
) -> None:
    config: RunConfig = tiny_config(**changes)
    error = str(collapse(config, _row(1.0, stage), 10, "none yet"))
    assert f": {told}" in error
    assert "collapsed at epoch 12" in error and "\n" not in error


def test_a_score_outside_its_range_is_an_error_and_rounding_is_cut_off() -> None:
    assert within_ranges({"silhouette": 1 + 1e-7, "nmi": -1e-17}) == {"silhouette": 1, "nmi": 0}
    for wrong in (3550.0, float("nan"), -1.1):
        with pytest.raises(FloatingPointError, match=r"silhouette=.* is outside \[-1, 1\]"):
            within_ranges({"silhouette": wrong})


class _Vanished(nn.Module):
    """Puts out rows that are shorter than `normalize` can scale, and some of length 0."""

    def embed(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)[:, :4] + torch.arange(4.0)
        rows[1] = 0
        return nn.functional.normalize(rows * 1e-14)


def test_embeddings_of_almost_no_length_are_stretched() -> None:
    data = open_data(tiny_config().data)
    inputs = make_inputs(tiny_config(), data, torch.device("cpu"))
    embedder = Embedder(_Vanished(), inputs, Acceleration(torch.device("cpu")))  # type: ignore[arg-type]
    rows = embedder.plain(torch.arange(5))
    assert torch.allclose(rows.norm(dim=1), torch.ones(5))
    assert rows[1].tolist() == [1, 0, 0, 0]
