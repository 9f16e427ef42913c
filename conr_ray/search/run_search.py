"""A search from its space to its table: Ray Tune runs the trials, Optuna draws them.

space.yaml          the space as it was read, with what the command line fixed
study.journal       the Optuna study; `optuna-dashboard` opens it
trials/ID/          a run directory for each trial
trials.parquet      the table of trials
best.yaml           the config of the best trial; `train --config` runs it
ray/                Tune's own state
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import optuna
import ray.tune
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from rich.console import Console

from conr_ray.data.store import open_images
from conr_ray.engine.loop import check_images
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import RunFailed, UserError
from conr_ray.scaling.cluster import WorkerResources
from conr_ray.search.live_display import LiveDisplay
from conr_ray.search.space import LABELLED_METRICS, SearchSpace
from conr_ray.search.study import EPOCHS, StudySearch
from conr_ray.search.trial import TrialRunner
from conr_ray.search.trial_table import Trial, best_trial, read_trials, to_arrow
from conr_ray.tracking.wandb_run import WandbSettings


@dataclass(frozen=True)
class SearchDirectory:
    """The files of a search, on a local path."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the search: the study's, and the group in W&B."""
        return self.path.name

    def claim(self, space: SearchSpace, *, resume: bool) -> None:
        """Write space.yaml, or with `resume` check that the one there is the same.

        Raises:
            UserError: another search is here, or this one is and `resume` was not asked for, or
                there is none to resume.
        """
        text = yaml.safe_dump(space.model_dump(mode="json", by_alias=True, exclude_unset=True))
        file = self.path / "space.yaml"
        if not file.exists():
            if resume:
                raise UserError(f"--resume: {self.path} holds no search: check --storage, --name")
            self.path.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        elif yaml.safe_load(file.read_text()) != yaml.safe_load(text):
            raise UserError(f"{self.path} holds another search: choose another --name")
        elif not resume:
            raise UserError(
                f"{self.path} holds this search: add --resume, or choose another --name"
            )

    @property
    def journal(self) -> Path:
        """The Optuna study's file."""
        return self.path / "study.journal"

    def study(self) -> optuna.Study:
        """The Optuna study."""
        storage = JournalStorage(JournalFileBackend(str(self.journal)))
        return optuna.load_study(study_name=self.name, storage=storage)


def check_search(space: SearchSpace, workers: int) -> None:
    """Raise UserError where the images of the space's run, or its workers, do not fit."""
    config = space.config()
    images = open_images(config.data)
    check_images(config, images, workers)
    if space.metric in LABELLED_METRICS and images.labels is None:
        raise UserError(
            f"metric={space.metric} needs labels and the images have none: set metric: silhouette"
        )


def run_search(
    space: SearchSpace,
    directory: SearchDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    console: Console,
    *,
    num_trials: int,
) -> list[Trial]:
    """Run the trials that are not run yet, and write the table and the best config.

    Needs a connected Ray cluster. Returns all trials, the best first.

    Args:
        space: checked and claimed for the directory.
        directory: where everything is written.
        resources: of each trial.
        wandb: mode of logging; each trial gets a run of its own.
        console: for the live display.
        num_trials: of the whole search.

    Raises:
        RunFailed: no trial trained all its epochs.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    runner = TrialRunner(space, str(directory.path), directory.name, resources, wandb)
    trainable = ray.tune.with_resources(runner.__call__, _trial_bundle(resources))
    tune_path = directory.path / "ray" / "tune"
    display = LiveDisplay(space, num_trials, console)
    if ray.tune.Tuner.can_restore(str(tune_path)):
        tuner = ray.tune.Tuner.restore(str(tune_path), trainable, resume_unfinished=True)
    else:
        tuner = ray.tune.Tuner(
            trainable,
            tune_config=ray.tune.TuneConfig(
                num_samples=num_trials,
                search_alg=StudySearch(space, directory.journal, directory.name, first=True),
                scheduler=_scheduler(space),
                max_concurrent_trials=min(num_trials, resources.fits()),
                # A trial through Ray Train leaves a waiting thread behind when it is stopped.
                reuse_actors=resources.workers == 1,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=str(directory.path / "ray"),
                failure_config=ray.tune.FailureConfig(max_failures=2),
                callbacks=[display],
                verbose=0,
            ),
        )
    try:
        tuner.fit()
    finally:
        display.close()
    return write_results(space, directory)


def write_results(space: SearchSpace, directory: SearchDirectory) -> list[Trial]:
    """Write trials.parquet and best.yaml; all trials, the best first."""
    trials = read_trials(directory.study(), space, str(directory.path))
    files = RunDirectory(directory.path)
    files.write_table("trials.parquet", to_arrow(trials, space))
    best = best_trial(trials)
    if best is None:
        reasons = {trial.state for trial in trials} or {"none started"}
        raise RunFailed(
            f"no trial trained all its epochs ({', '.join(sorted(reasons))}): see failure.json "
            f"in {directory.path}/trials"
        )
    header = f"# Trial {best.number} ({best.trial_id}) of {directory.name}: "
    header += f"{space.metric} {best.value:.4f}\n"
    files.write_text("best.yaml", header + space.config(best.point).to_yaml())
    return trials


def _trial_bundle(resources: WorkerResources) -> dict[str, float]:
    """What the actor of a trial holds: the worker's share, or next to nothing if it only waits."""
    if resources.workers == 1:
        return resources.bundle()
    # Ray refuses an empty bundle, and any share of a CPU would displace a worker.
    return {"CPU": 0, "memory": 64 * 2**20}


def _scheduler(space: SearchSpace) -> TrialScheduler:
    if space.scheduler is None:
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    schedule = space.config().schedule
    grace = space.scheduler.grace_epochs
    if grace is None:
        start = schedule.group_start
        grace = schedule.epochs // 2 if start == "never" else max(1, start)
    return ASHAScheduler(
        time_attr=EPOCHS,
        metric=space.metric,
        mode=space.direction,
        max_t=schedule.epochs,
        grace_period=min(grace, schedule.epochs),
        reduction_factor=space.scheduler.reduction_factor,
    )


def _trial_folder(trial: object) -> str:
    return str(getattr(trial, "trial_id", "trial"))
