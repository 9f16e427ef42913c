"""A search as a W&B run next to its trials' runs: tables, importances and best trial."""

from __future__ import annotations

import logging
import re
from typing import Any

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.searching.importances import parameter_importances
from conr_ray.searching.search_directory import SearchDirectory, as_tree
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.trial_table import Cost, Trial, best_trial, to_arrow
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_settings import WandbSettings

logger = logging.getLogger(__name__)


def search_run_id(name: str) -> str:
    """Id of a search's W&B run, with the characters that W&B allows."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def log_search(
    space: SearchSpace,
    directory: SearchDirectory,
    trials: list[Trial],
    settings: WandbSettings,
    *,
    workers: int = 1,
) -> None:
    """Log the current state of the search; a resumed search logs into the same run.

    Stopped trials with several `workers`, which Ray kills, are also finished in W&B.

    The run's config holds the space; its tables are `search/trials`, `search/importances` and, with
    several metrics, `search/pareto`; its summary names the best trial and the cost. An error is
    logged and stops nothing.
    """
    if settings.mode == "off":
        return
    try:
        name = directory.name
        own = settings.for_run(search_run_id(name), group=name, run_uri=directory.uri)
        _log(space, directory, trials, own)
        if workers > 1:
            for trial in trials:
                if trial.state == "stopped":
                    _end(trial, space, directory, settings)
    except Exception as error:
        logger.warning("cannot log the search to W&B: %s", error)


def _log(
    space: SearchSpace, directory: SearchDirectory, trials: list[Trial], settings: WandbSettings
) -> None:
    # W&B and matplotlib take a second to import.
    import wandb

    from conr_ray.tracking.wandb_media import log_assignments, log_checkpoint
    from conr_ray.tracking.wandb_run import finish_wandb, start_wandb

    tracking, study = space.config().tracking, directory.open_study(space)
    run = start_wandb(
        settings,
        tracking,
        "search",
        {"space": as_tree(space)},
        with_artifact=tracking.checkpoint_artifact,
    )
    found = [
        [metric, field, share]
        for metric in space.metrics
        for field, share in parameter_importances(space, study, metric).items()
    ]
    importances = wandb.Table(columns=["metric", "field", "importance"], data=found)
    logged: dict[str, Any] = {"search/trials": _table(trials, space)}
    if found:
        logged["search/importances"] = importances
        if len(space.metrics) == 1:
            title = f"Importance of fields for {space.metric}"
            logged["search/importance_chart"] = wandb.plot.bar(
                importances, "field", "importance", title
            )
    if len(space.metrics) > 1:
        logged["search/pareto"] = _table([t for t in trials if t.in_pareto_set], space)
    run.log(logged)
    cost, best = Cost.of(trials), best_trial(trials)
    run.summary.update(
        {"trials": len(trials), "epochs": cost.epochs, "unshared_epochs": cost.unshared_epochs}
    )
    if best is not None and best.values is not None:
        values = dict(zip(space.metrics, best.values, strict=True))
        run.summary.update({"best_trial": best.trial_id, **values})
        best_run = RunDirectory(f"{directory.uri}/trials/{best.trial_id}")
        log_assignments(run, best_run, f"{settings.run_id}-assignments")
        if tracking.checkpoint_artifact:
            log_checkpoint(run, best_run, f"{settings.run_id}-checkpoint")
    finish_wandb(run, settings)


def _end(
    trial: Trial, space: SearchSpace, directory: SearchDirectory, settings: WandbSettings
) -> None:
    """Log what W&B's process had not written when it was killed, and finish the run."""
    own = RunDirectory(f"{directory.uri}/trials/{trial.trial_id}")
    settings = settings.for_run(trial.trial_id, group=directory.name, run_uri=own.uri)
    observer = open_wandb(settings, space.config(trial.point))
    observer.inherit(own.metric_rows())
    observer.end(None)


def _table(trials: list[Trial], space: SearchSpace) -> Any:
    import wandb

    arrow = to_arrow(trials, space)
    rows = [[_plain(value) for value in row.values()] for row in arrow.to_pylist()]
    return wandb.Table(columns=arrow.column_names, data=rows)


def _plain(value: Any) -> Any:
    """`value` as W&B accepts it in a table: a scalar or None; anything else as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
