"""Searches in which trials collapse: none of these is best, and all are told."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import yaml
from optuna.trial import TrialState
from rich.console import Console

from conr_ray.data.store import open_data
from conr_ray.metric_names import COST_METRICS, LABEL_FREE_METRICS, LABELLED_METRICS
from conr_ray.reporting.search_data import read_search
from conr_ray.scaling.cluster import start
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space_file import load_space
from conr_ray.searching.trial_table import Trial
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.tiny_runs import COLLAPSING, TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    start(WorkerResources(workers=2), dashboard=True)
    yield
    ray.shutdown()


def _search(
    folder: Path, metric: Any, num_seeds: int, **fixed: Any
) -> tuple[list[Trial], SearchDirectory]:
    """A grid in which the trials that do not decay are healthy."""
    changes = {name.replace("__", "."): value for name, value in {**COLLAPSING, **fixed}.items()}
    decay = changes.pop("optim.weight_decay")
    tree = {
        "preset": "digits",
        "metric": metric,
        "trials": 2 * num_seeds,
        "fixed": {**TINY, **changes},
        "search": {
            "seed": {"choice": list(range(num_seeds))},
            "optim.weight_decay": {"choice": [1e-4, decay]},
        },
        "sampler": "grid",
        "scheduler": None,
    }
    (folder / "space.yaml").write_text(yaml.safe_dump(tree))
    space = load_space(folder / "space.yaml")
    directory = SearchDirectory(Folder(folder / "search"))
    directory.claim(space, resume=False)
    trials = run_search(
        space,
        directory,
        WorkerResources(1),
        WandbSettings("off"),
        Console(file=io.StringIO()),
        num_trials=2 * num_seeds,
        fingerprint=open_data(space.config().data).fingerprint,
    )
    return trials, directory


def _check(trials: list[Trial], directory: SearchDirectory, num_seeds: int) -> None:
    failed = [trial for trial in trials if trial.state == "failed"]
    assert len(trials) == 2 * num_seeds and len(failed) == num_seeds
    assert {trial.point["optim.weight_decay"] for trial in failed} == {3.0}
    assert trials[0].state == "complete"
    assert not any(trial.in_pareto_set for trial in failed)
    study = directory.open_study(load_space(Path(directory.uri) / "space.yaml"))
    numbers = {trial.number for trial in failed}
    assert {t.number for t in study.trials if t.state == TrialState.FAIL} == numbers
    table = pq.read_table(f"{directory.uri}/trials.parquet").to_pylist()
    told = {row["number"]: row["failure"] for row in table if row["failure"]}
    assert set(told) == numbers
    assert all("the embeddings collapsed at epoch" in reason for reason in told.values())
    assert read_search(directory, draw_map=False).failures == told


def test_half_of_the_trials_collapse_and_none_is_best_by_any_metric(tmp_path: Path) -> None:
    metrics = [*LABELLED_METRICS, *LABEL_FREE_METRICS, *COST_METRICS]
    _check(*_search(tmp_path, metrics, 10), 10)


@pytest.mark.long
@pytest.mark.parametrize("metric", ["loss", "label_free"])
def test_a_collapse_that_is_only_warned_of_is_not_best(tmp_path: Path, metric: str) -> None:
    _check(*_search(tmp_path, metric, 1, evaluation__on_collapse="warn"), 1)
