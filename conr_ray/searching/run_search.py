"""Run a search: Optuna draws the trials, Ray Tune runs them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import optuna
import ray.tune
from rich.console import Console

from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.origin import Origin
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_store import TrunkStore
from conr_ray.errors import RunFailed, StorageError, UserError
from conr_ray.scaling.cluster import room_for
from conr_ray.scaling.resources import WorkerResources
from conr_ray.scaling.watch import Limits, Watch
from conr_ray.searching.live_display import LiveDisplay
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study_searcher import StudyScheduler, StudySearcher, num_left, retry_failed
from conr_ray.searching.trial import TrialRunner
from conr_ray.searching.trial_table import (
    Trial,
    best_trial,
    lineage,
    read_files,
    read_trials,
    to_arrow,
)
from conr_ray.searching.trial_watch import TrialWatch
from conr_ray.storage import disk
from conr_ray.storage.scratch import scratch_folder
from conr_ray.tracking.wandb_settings import WandbSettings

# Study attribute that holds the fingerprint of the images.
_IMAGES = "images"
_LIMITS = Limits()


def run_search(
    space: SearchSpace,
    directory: SearchDirectory,
    resources: WorkerResources,
    wandb: WandbSettings,
    console: Console,
    *,
    num_trials: int,
    fingerprint: str,
    trunks: TrunkStore | None = None,
    max_concurrent: int | None = None,
    max_retries: int = 5,
    failed_too: bool = False,
    on_news: Callable[[], None] | None = None,
    limits: Limits = _LIMITS,
) -> list[Trial]:
    """Run the remaining trials, then write the table and the best config.

    Needs a connected Ray cluster. Returns all trials, the best first.

    Args:
        space: checked and claimed for the directory.
        directory: where everything is written.
        resources: of each trial.
        wandb: mode of logging; each trial gets its own run.
        console: for the live display.
        num_trials: of the whole search, including those of earlier calls.
        fingerprint: of the images.
        trunks: where trials load and store the instance stages that they share.
        max_concurrent: maximum trials at once; None means as many as fit.
        max_retries: how often a trial whose processes die goes on from its checkpoint.
        failed_too: run trials that have failed once more.
        on_news: called, in this process, after each report and at the end of each trial.
        limits: how long the workers of a trial may do nothing.

    Raises:
        UserError: earlier trials were trained on other data; `failed_too` in a population.
        RunFailed: no trial trained all its epochs.
        KeyboardInterrupt: the user stopped the search; another call continues it.
    """
    study = directory.open_study(space)
    if study.user_attrs.get(_IMAGES, fingerprint) != fingerprint:
        raise UserError(
            f"{directory.uri} is a search on other data: check data.path, or choose another name"
        )
    study.set_user_attr(_IMAGES, fingerprint)
    if failed_too:
        console.print(f"failed trials run again: {retry_failed(space, study)}")
    if (remaining := num_left(space, study, num_trials)) > 0:
        watch = Watch(limits, partial(console.print, soft_wrap=True))
        runner = TrialRunner(
            space,
            directory.files,
            directory.name,
            resources,
            wandb,
            trunks,
            pulse=watch.pulse,
            max_retries=max_retries,
        )
        # With Ray Train, one more trial waits for cores, so that it starts without delay.
        ready = room_for(resources) + (resources.workers > 1)
        concurrent = min(remaining, max_concurrent or remaining, ready)
        display = LiveDisplay(space, remaining, console, trunks, fingerprint, on_news)
        _run_trials(runner, study, display, TrialWatch(watch), remaining, concurrent)
    if num_left(space, study, num_trials):
        # Stopped, perhaps since the storage is full.
        with suppress(StorageError):
            write_results(space, study, directory)
        raise KeyboardInterrupt
    trials = write_results(space, study, directory)
    if best_trial(trials) is None:
        reasons = sorted({trial.state for trial in trials})
        raise RunFailed(
            f"no trial trained all its epochs ({', '.join(reasons)}): see failure.json in "
            f"{directory.uri}/trials"
        )
    return trials


def _run_trials(
    runner: TrialRunner,
    study: optuna.Study,
    display: LiveDisplay,
    watch: TrialWatch,
    count: int,
    concurrent: int,
) -> None:
    """Have Tune run `count` trials; returns early, like Tune, after Ctrl-C."""
    resources = runner.resources
    searcher = StudySearcher(runner.space, study)
    # Everything that must be kept is in the search's directory.
    with scratch_folder("tune") as folder:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(runner.__call__, _trial_bundle(resources)),
            tune_config=ray.tune.TuneConfig(
                num_samples=count,
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                max_concurrent_trials=concurrent,
                # A trial that uses Ray Train leaves a waiting thread behind when it is stopped.
                reuse_actors=resources.workers == 1,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=ray.tune.RunConfig(
                name="search",
                storage_path=str(folder),
                failure_config=ray.tune.FailureConfig(max_failures=runner.max_retries),
                callbacks=[display, watch],
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        finally:
            display.close()


def write_results(
    space: SearchSpace, study: optuna.Study, directory: SearchDirectory
) -> list[Trial]:
    """Write trials.parquet and, if a trial is complete, best.yaml; return trials, best first."""
    trials = read_trials(study, space, directory.uri, _sound_files)
    files = directory.files
    files.write_table("trials.parquet", to_arrow(trials, space))
    if best := best_trial(trials):
        assert best.values is not None
        figures = zip(space.metrics, best.values, strict=True)
        named = ", ".join(f"{metric} {value:.4f}" for metric, value in figures)
        header = f"# Trial {best.trial_id} of {directory.name}: {named}\n"
        for leg in lineage(best, trials)[:-1]:
            header += f"# until epoch {leg.epochs} as in trials/{leg.trial_id}/config.yaml\n"
        files.write_text("best.yaml", header + space.config(best.point).to_yaml())
    return trials


def _sound_files(directory: RunDirectory) -> tuple[list[MetricRow], Origin | None]:
    """As `read_files`; metrics that were damaged are written anew from the newest checkpoint."""
    try:
        return read_files(directory)
    except StorageError:
        raise
    except UserError as error:
        # Torch takes seconds to import.
        import torch

        epochs = directory.checkpoint_epochs()
        if not epochs:
            raise
        state = directory.load_checkpoint(epochs[-1], torch.device("cpu"))
        directory.write_metrics(state["history"])
        disk.tell(f"{str(error).rpartition(': ')[0]}: written anew from a checkpoint")
        return read_files(directory)


def _trial_bundle(resources: WorkerResources) -> dict[str, float]:
    """Resources of a trial's actor: those of its worker, or almost none if it only waits."""
    if resources.workers == 1:
        return resources.bundle()
    # Ray refuses an empty bundle, and any share of a CPU would displace a worker.
    return {"CPU": 0, "memory": 64 * 2**20}


def _trial_folder(trial: object) -> str:
    return str(getattr(trial, "trial_id", "trial"))
