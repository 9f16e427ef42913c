"""Searches on disk as a search leaves them, with an Optuna study, but without the training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_attributes import TRIAL_ID
from conr_ray.storage.files import Folder

K1_K2: dict[str, Any] = {
    "neighborhood.k1": {"int": [5, 40]},
    "neighborhood.k2": {"int": [1, "neighborhood.k1"]},
}
FRACTION: dict[str, Any] = {"boundary.initial_fraction": {"float": [0.5, 1.0], "step": 0.1}}
SEEDS: dict[str, Any] = {"seed": {"choice": [0, 1, 2]}}


def make_search(
    folder: Path | str,
    states: Sequence[str] = ("complete",) * 6,
    *,
    metric: str | list[str] = "nmi",
    fields: dict[str, Any] | None = None,
    labelled: bool = True,
    epochs: int = 20,
    start: int = 12,
    **changes: Any,
) -> SearchDirectory:
    """A search with a trial for each state: complete, stopped, failed or running.

    `folder` may be a URI.
    """
    tree = {
        "preset": "digits",
        "metric": metric,
        "trials": len(states) or 1,
        "fixed": {
            "schedule.epochs": epochs,
            "schedule.warmup_epochs": 1,
            "schedule.relax_epochs": 2,
        },
        "search": fields or {**K1_K2, **FRACTION},
        "first": [{}],
        **changes,
    }
    if "schedule.group_start" not in tree["search"]:
        tree["fixed"]["schedule.group_start"] = start
    space = SearchSpace.model_validate({k: v for k, v in tree.items() if v is not None})
    directory = SearchDirectory(Folder(folder))
    directory.claim(space, resume=False)
    study = directory.open_study(space)
    for number, state in enumerate(states):
        trial = study.ask()
        point = space(trial)
        name = f"{number:04d}-made"
        trial.set_user_attr(TRIAL_ID, name)
        run = RunDirectory(f"{folder}/trials/{name}")
        config = space.config(point)
        run.write_text("config.yaml", config.to_yaml())
        begin = config.group_start_epoch
        if state == "failed":
            run.write_text(
                "failure.json", json.dumps({"kind": "RunFailed", "message": f"no luck {number}"})
            )
            study.tell(trial, state=TrialState.FAIL)
            continue
        if begin:
            origin = {"trunk": "made", "epoch": begin, "built_epochs": 0 if number else begin}
            run.write_text("origin.json", json.dumps(origin))
        length = epochs if state == "complete" else max(2, epochs - 4)
        rows = made_rows(length, begin, number, labelled=labelled)
        run.write_metrics(rows)
        if state == "complete":
            study.tell(trial, [rows[-1][name] for name in space.metrics])
        elif state == "stopped":
            study.tell(trial, state=TrialState.PRUNED)
    return directory


def made_rows(
    epochs: int, start: int | None, seed: int, *, labelled: bool = True
) -> list[dict[str, Any]]:
    """Rows of metrics.parquet that look like a run's."""
    numbers = random.Random(seed)
    level = 0.8 + 0.15 * numbers.random()
    rows = []
    for epoch in range(epochs):
        grouped = start is not None and epoch >= start
        height = level * (1 - math.exp(-(epoch + 1) / (epochs / 5)))
        row: dict[str, Any] = {
            "epoch": epoch,
            "stage": "group" if grouped else "instance",
            "loss": -height,
            "fraction": 0.9 if grouped else 1.0,
            "lr": 0.1,
            "epoch_time_s": 0.5,
            "train_time_s": 0.5 * (epoch + 1),
        }
        if grouped or epoch % 2 or epoch == epochs - 1:
            row |= {"label_free": height - 0.1, "silhouette": height / 2}
            row |= {"neighbor_consistency": height - 0.2}
            if labelled:
                row |= {"acc": height, "nmi": height - 0.05, "ari": height - 0.1}
                row |= {"neighbor_purity": height} if grouped else {}
        rows.append(row)
    return rows
