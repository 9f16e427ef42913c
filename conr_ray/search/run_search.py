"""A search from its space to its table: Ray Tune runs the trials, Optuna draws them.

space.yaml          the space as it was read, with what the command line fixed
study.journal       the Optuna study; in a bucket a folder of pieces
search.lock         held by the process that runs the search
trials/ID/          a run directory for each trial
trials.parquet      the table of trials
best.yaml           the config of the best trial; `train --config` runs it
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import optuna.importance
import ray.tune
import yaml
from optuna.importance import FanovaImportanceEvaluator
from optuna.storages import BaseStorage, JournalStorage, get_storage
from optuna.trial import TrialState
from pydantic import ValidationError
from rich.console import Console

from conr_ray.config import parse_yaml
from conr_ray.data.store import DataSet
from conr_ray.engine.trunk import TrunkStore
from conr_ray.errors import RunFailed, UserError, last_line
from conr_ray.scaling.cluster import WorkerResources
from conr_ray.search.bucket_journal import BucketJournal
from conr_ray.search.live_display import LiveDisplay
from conr_ray.search.space import LABELLED_METRICS, SearchSpace
from conr_ray.search.study import (
    StudyScheduler,
    StudySearcher,
    journal_file,
    num_left,
    open_study,
)
from conr_ray.search.trial import TrialRunner
from conr_ray.search.trial_table import Trial, best_trial, lineage, read_trials, to_arrow
from conr_ray.storage.files import Folder
from conr_ray.storage.locks import FileLocks
from conr_ray.tracking.wandb_settings import WandbSettings

_FEWEST_FOR_IMPORTANCES = 4
_JOURNAL = "study.journal"
# Key of what the study knows of the images: their fingerprint.
_IMAGES = "images"
# Deaths of a trial's processes; it goes on from its checkpoint each time.
_MAX_FAILURES = 5


@dataclass(frozen=True)
class SearchDirectory:
    """The files of a search, on any file system; the study may lie in a database instead."""

    files: Folder
    study_url: str | None = None

    @property
    def uri(self) -> str:
        """Where it is, a local path or a URI such as s3://bucket/folder."""
        return self.files.uri

    @property
    def name(self) -> str:
        """Name of the search: the study's, and the group in W&B."""
        return self.uri.rpartition("/")[2]

    def check(self, space: SearchSpace, *, resume: bool) -> None:
        """Raise UserError where another search is here, or `resume` does not fit what is here."""
        text = self.files.read_text("space.yaml")
        if text is None:
            if resume:
                raise UserError(f"--resume: {self.uri} holds no search: check --storage, --name")
            if self.study_url is not None and self.name in self._open_storage()[1]:
                raise UserError(
                    f"--study has a search called {self.name} already: choose another --name"
                )
            return
        # Where the images lie may have changed.
        old, new = map(_without_data_path, (yaml.safe_load(text), as_tree(space)))
        # More trials may be added, unless they are a population.
        free = () if space.exchanges else ("trials",)
        changed = [k for k in {**old, **new} if k not in free and old.get(k) != new.get(k)]
        if changed:
            raise UserError(
                f"{self.uri} holds another search ({changed[0]} differs): choose another --name"
            )
        if not resume:
            raise UserError(f"{self.uri} holds this search: add --resume, or choose another --name")
        has_journal = self.files.has(_JOURNAL)
        if self.study_url is None and self.files.has("trials") and not has_journal:
            raise UserError("--resume: the study of this search is in a database: give its --study")
        if self.study_url is not None and has_journal:
            raise UserError(
                f"--study: the study of this search is {self.uri}/{_JOURNAL}: leave it out"
            )

    def claim(self, space: SearchSpace, *, resume: bool) -> None:
        """`check`, then write space.yaml."""
        self.check(space, resume=resume)
        text = yaml.safe_dump(as_tree(space), sort_keys=False)
        try:
            self.files.write_text("space.yaml", text)
        except OSError as error:
            raise UserError(f"--storage: {self.uri} cannot be written: {error}") from None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, no other process runs this search; one in a bucket is stopped by its journal.

        Raises:
            UserError: another process runs it.
        """
        with FileLocks(self.uri)("search") if self.files.is_local else nullcontext() as lock:
            if lock is not None and not lock.acquired():
                raise UserError(f"{self.uri}: another process runs this search: stop it first")
            yield

    def open_study(self, space: SearchSpace) -> optuna.Study:
        """The search's study."""
        storage, names = self._open_storage()
        return open_study(space, storage, self._study_name(names))

    def read_space(self) -> SearchSpace | None:
        """The space of the search that is here, None where there is none."""
        text = self.files.read_text("space.yaml")
        if text is None:
            return None
        source = f"{self.uri}/space.yaml"
        try:
            return SearchSpace.model_validate(parse_yaml(text, source))
        except ValidationError as error:
            raise UserError(
                f"{source} is no space of this version ({error.errors()[0]['msg']}): look at it"
            ) from None

    def read_study(self) -> optuna.Study | None:
        """The study as it stands, to be looked at; None where no trial was drawn yet.

        Nothing is written, and the folder may have been renamed since.

        Raises:
            UserError: it is in a database that is not named or cannot be opened.
        """
        if self.study_url is None and not self.files.has(_JOURNAL):
            if self.files.has("trials"):
                raise UserError(f"{self.uri}: its study is in a database: give its --study")
            return None
        storage, names = self._open_storage()
        name = self._study_name(names)
        return optuna.load_study(study_name=name, storage=storage) if name in names else None

    def _open_storage(self) -> tuple[BaseStorage, list[str]]:
        """Where the study is or will be, and the names of the studies there."""
        storage: BaseStorage
        try:
            if self.study_url is not None:
                storage = get_storage(self.study_url)
            elif self.files.is_local:
                storage = journal_file(Path(self.uri) / _JOURNAL)
            else:
                storage = JournalStorage(BucketJournal(self.files, _JOURNAL))
            return storage, optuna.get_all_study_names(storage)
        except UserError:
            raise
        # Of the many kinds that database drivers raise; a journal may be damaged in any way.
        except Exception as error:
            what = "--study" if self.study_url is not None else f"{self.uri}: its study"
            raise UserError(f"{what} cannot be read: {last_line(error)}") from None

    def _study_name(self, names: list[str]) -> str:
        """Of the studies in its storage its own; a journal's is called as the folder once was."""
        return names[0] if self.study_url is None and len(names) == 1 else self.name


def as_tree(space: SearchSpace) -> Any:
    """The space as plain values, as it is written to space.yaml."""
    return space.model_dump(mode="json", by_alias=True, exclude_unset=True)


def _without_data_path(tree: Mapping[str, Any]) -> dict[str, Any]:
    fixed = {k: v for k, v in (tree.get("fixed") or {}).items() if k != "data.path"}
    return {**tree, "fixed": fixed}


def with_metric(space: SearchSpace, images: DataSet) -> SearchSpace:
    """The space with a metric that its runs on `images` report.

    Raises:
        UserError: its metric needs labels, and there are none.
    """
    auto = "neighbor_consistency" if images.labels is None else "nmi"
    metrics = tuple(auto if metric == "auto" else metric for metric in space.metrics)
    for metric in metrics:
        if metric in LABELLED_METRICS and images.labels is None:
            raise UserError(
                f"metric={metric} needs labels and the images have none: set metric: "
                "neighbor_consistency"
            )
    return space.model_copy(update={"metrics": metrics})


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
    on_news: Callable[[], None] | None = None,
) -> list[Trial]:
    """Run the trials that are not run yet, and write the table and the best config.

    Needs a connected Ray cluster. Returns all trials, the best first.

    Args:
        space: checked and claimed for the directory.
        directory: where everything is written.
        resources: of each trial.
        wandb: mode of logging; each trial gets a run of its own.
        console: for the live display.
        num_trials: of the whole search, those of earlier calls included.
        fingerprint: of the images.
        trunks: where trials find, or leave, the instance stages that they share.
        max_concurrent: trials at once; as many as fit where None.
        on_news: called, in this process, after each report and at the end of each trial.

    Raises:
        UserError: earlier trials were trained on other images.
        RunFailed: no trial trained all its epochs.
        KeyboardInterrupt: the user stopped it; called again, it goes on.
    """
    study = directory.open_study(space)
    if study.user_attrs.get(_IMAGES, fingerprint) != fingerprint:
        raise UserError(
            f"{directory.uri} is a search on other images: look at data.path, or choose another "
            "--name"
        )
    study.set_user_attr(_IMAGES, fingerprint)
    if (remaining := num_left(space, study, num_trials)) > 0:
        runner = TrialRunner(space, directory.uri, directory.name, resources, wandb, trunks)
        # Behind Ray Train one more waits for cores, so that its start costs no time.
        ready = resources.fits() + (resources.workers > 1)
        concurrent = min(remaining, max_concurrent or remaining, ready)
        display = LiveDisplay(space, remaining, console, trunks, fingerprint, on_news)
        _run_trials(runner, study, display, remaining, concurrent)
    trials = write_results(space, study, directory)
    if num_left(space, study, num_trials):
        raise KeyboardInterrupt
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
    count: int,
    concurrent: int,
) -> None:
    """Have Tune run `count` trials; returns early, like Tune, after Ctrl-C."""
    resources = runner.resources
    searcher = StudySearcher(runner.space, study)
    # All that has to last is in the search's directory.
    scratch = tempfile.TemporaryDirectory(prefix="conr_ray_tune_", ignore_cleanup_errors=True)
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(runner.__call__, _trial_bundle(resources)),
        tune_config=ray.tune.TuneConfig(
            num_samples=count,
            search_alg=searcher,
            scheduler=StudyScheduler(searcher),
            max_concurrent_trials=concurrent,
            # A trial through Ray Train leaves a waiting thread behind when it is stopped.
            reuse_actors=resources.workers == 1,
            trial_dirname_creator=_trial_folder,
        ),
        run_config=ray.tune.RunConfig(
            name="search",
            storage_path=scratch.name,
            failure_config=ray.tune.FailureConfig(max_failures=_MAX_FAILURES),
            callbacks=[display],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        display.close()
        scratch.cleanup()


def write_results(
    space: SearchSpace, study: optuna.Study, directory: SearchDirectory
) -> list[Trial]:
    """Write trials.parquet, and best.yaml where a trial is complete; all trials, the best first."""
    trials, files = read_trials(study, space, directory.uri), directory.files
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


def parameter_importances(space: SearchSpace, study: optuna.Study, metric: str) -> dict[str, float]:
    """Share of a metric's variance that each field explains, by Optuna; the largest first.

    Empty where too few trials have ended well.
    """
    place = space.metrics.index(metric)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(ended) < _FEWEST_FOR_IMPORTANCES or len({trial.values[place] for trial in ended}) < 2:
        return {}
    evaluator = FanovaImportanceEvaluator(seed=space.seed)
    try:
        return dict(
            optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=lambda trial: trial.values[place]
            )
        )
    except RuntimeError:
        # Its trees found no split that explains anything.
        return {}


def _trial_bundle(resources: WorkerResources) -> dict[str, float]:
    """What the actor of a trial holds: the worker's share, or next to nothing if it only waits."""
    if resources.workers == 1:
        return resources.bundle()
    # Ray refuses an empty bundle, and any share of a CPU would displace a worker.
    return {"CPU": 0, "memory": 64 * 2**20}


def _trial_folder(trial: object) -> str:
    return str(getattr(trial, "trial_id", "trial"))
