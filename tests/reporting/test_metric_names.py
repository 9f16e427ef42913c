from __future__ import annotations

from pathlib import Path

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.metric_names import (
    COST_METRICS,
    LABEL_FREE_METRICS,
    LABEL_FREE_SCORES,
    LABELLED_METRICS,
    MADE_SMALL,
    MEANINGS,
)
from conr_ray.reporting import names, wandb_workspace


def test_the_metrics_of_a_run_have_meanings(finished_run: Path) -> None:
    rows = RunDirectory(finished_run).metric_rows()
    reported = {name for row in rows for name in row} - {"epoch", "stage"}
    assert reported == set(MEANINGS)


def test_what_is_asked_for_by_name_is_a_metric() -> None:
    optimised = {*LABELLED_METRICS, *LABEL_FREE_METRICS, *COST_METRICS}
    assert set(MADE_SMALL) <= optimised <= set(MEANINGS)
    assert set(names._FIRST) | set(wandb_workspace._TRAINING) <= set(MEANINGS)
    assert set(LABEL_FREE_SCORES) < set(LABEL_FREE_METRICS)
