"""A whole search: its checks, cluster, trials, report and log; what Python and the command share.

Heavy libraries are imported where a search begins: a plan needs none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

from conr_ray.engine.data_checks import Counted, check_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_store import TrunkStore, open_trunks
from conr_ray.errors import BadSetting, StorageError, UserError
from conr_ray.method.backbone_names import is_timm
from conr_ray.searching.known_data import with_metric
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import check_points

if TYPE_CHECKING:
    from rich.console import Console

    from conr_ray.config import RunConfig
    from conr_ray.data.store import DataSet
    from conr_ray.scaling.resources import ClusterOptions
    from conr_ray.searching.trial_table import Trial
    from conr_ray.storage.locks import Locks

# How long workers may hold up a run, where no other time is asked for.
HANG_LIMIT_S = 1800.0


@dataclass(frozen=True)
class WholeSearch:
    """A search and how it is run; the settings are those of `python -m conr_ray.tune`.

    Attributes:
        space: the searched space.
        directory: where everything is written.
        cluster: where trials run, with what resources.
        trials: number of trials; None means the space's.
        workers: of each trial.
        max_concurrent: trials at once; None means as many as fit.
        max_retries: how often a trial whose processes die goes on from its checkpoint.
        retry_failed: run trials that have failed once more.
        resume: whether the directory holds this search already.
        trunks: folder of shared instance stages; None means one in the directory.
        no_trunks: train every trial from epoch 0.
        hang_limit: seconds after which workers that hold up a trial are ended; 0 means never.
        metric_note: what the metric auto has become, and why; of a search that is `checked`.

    Raises:
        BadSetting: a number is too small.
    """

    space: SearchSpace
    directory: SearchDirectory
    cluster: ClusterOptions
    trials: int | None = None
    workers: int = 1
    max_concurrent: int | None = None
    max_retries: int = 5
    retry_failed: bool = False
    resume: bool = False
    trunks: str | None = None
    no_trunks: bool = False
    hang_limit: float = HANG_LIMIT_S
    metric_note: str = ""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for setting, count, least, kind in (
            ("trials", self.trials, 2 if self.space.exchanges else 1, Integral),
            ("workers", self.workers, 1, Integral),
            ("max_concurrent", self.max_concurrent, 1, Integral),
            ("max_retries", self.max_retries, 0, Integral),
            ("hang_limit", self.hang_limit, 0, Real),
        ):
            if count is None or (isinstance(count, kind) and count >= least):
                continue
            whole = "a whole number, " if kind is Integral and not isinstance(count, kind) else ""
            raise BadSetting(f"{setting}={count}: give {whole}{least} or more")

    @property
    def num_trials(self) -> int:
        """Number of trials of the whole search, at most those that a grid has."""
        wanted = self.space.trials if self.trials is None else self.trials
        return min(wanted, self.space.most_trials or wanted)

    def checked(self, images: Counted) -> WholeSearch:
        """This search with a metric that runs on `images` report, and, in a population, its size.

        Raises:
            UserError: some points of the space cannot run on them.
            BadSetting: so many workers cannot share a batch.
            FolderTaken: the directory holds another search, or this one and `resume` is false.
        """
        read = set()

        def check(config: RunConfig) -> None:
            check_data(config, images, self.workers)
            if config.clustering.edits is not None:
                raise UserError(
                    f"clustering.edits={config.clustering.edits}: a search does not learn from "
                    "edits: leave it out, and train its best.yaml with --edits"
                )
            model = config.model
            start = (model.init, model.weights, model.backbone, model.train, model.stem)
            ids_of = config.clustering.ids_of
            if (key := (*start, model.widths, config.views.size, ids_of)) not in read:
                read.add(key)
                _check_start(config, images)

        check(self.space.config())
        check_points(self.space, check)
        space = with_metric(self.space, images)
        note = ""
        if "auto" in self.space.metrics:
            has = "no labels" if images.num_classes is None else "labels"
            note = f"metric: {space.metric}, since it is auto and the data have {has}"
        if space.exchanges:
            space = space.model_copy(update={"trials": self.num_trials})
        self.directory.check(space, resume=self.resume)
        return replace(self, space=space, metric_note=note)

    def open_trunks(self, elsewhere: Locks) -> TrunkStore | None:
        """The store of its trunks, locked `elsewhere` if it is in a bucket; None without trunks.

        Raises:
            StorageError: the folder cannot be used.
        """
        if self.no_trunks or self.space.why_no_trunks:
            return None
        with self._about_trunks():
            place = self.trunks or f"{self.directory.uri}/trunks"
            return open_trunks(place, self.space.group_starts, elsewhere)

    def run(
        self, images: DataSet, console: Console, stoppable: AbstractContextManager[None]
    ) -> list[Trial]:
        """Run the trials that are left, on Ray, and write and log what they found.

        Call `leave` of the cluster when nothing more is to run there.

        Args:
            images: what the search was `checked` on.
            console: for what the search tells.
            stoppable: entered while trials run; says what signals do then.

        Returns:
            All trials, the best first.

        Raises:
            UserError: a folder or the cluster cannot be used, or the study is of other images.
            RunFailed: no trial trained all its epochs.
            KeyboardInterrupt: the user stopped the search; with `resume` it goes on.
        """
        from conr_ray.prediction.ahead import embedded_ahead
        from conr_ray.reporting.live_report import LiveReport
        from conr_ray.scaling.actor_locks import ActorLocks
        from conr_ray.scaling.cluster import connect
        from conr_ray.scaling.shared_storage import check_storage
        from conr_ray.scaling.watch import Limits
        from conr_ray.searching.run_search import run_search
        from conr_ray.searching.wandb_search import log_search
        from conr_ray.storage.files import Folder
        from conr_ray.tracking.library_logs import library_logs
        from conr_ray.tracking.wandb_reach import reached_settings

        space, directory = self.space, self.directory
        trunks = self.open_trunks(ActorLocks())
        if trunks is not None and self.trunks is not None:
            # Trials wait for storage that is away, and would for one that cannot be.
            with self._about_trunks():
                RunDirectory(trunks.uri).check_room()
        tracking = space.config().tracking
        wandb, note = reached_settings(tracking, directory.uri, of_search=True)
        # A core for each worker, so that as many trials as possible run side by side.
        resources = connect(self.cluster, self.workers, 1, dashboard=self.workers > 1)
        check_storage(directory.files, more_to_come=resources.more_to_come)
        if trunks is not None and self.trunks is not None:
            with self._about_trunks():
                check_storage(Folder(trunks.uri), more_to_come=resources.more_to_come)
        with directory.held():
            directory.claim(space, resume=self.resume)
            report, logs = LiveReport(directory), library_logs(directory.files)
            console.print(f"search directory: {directory.uri}", soft_wrap=True)
            console.print(f"report: {report.uri}, updated while the search runs", soft_wrap=True)
            console.print(images.line, soft_wrap=True)
            images.write_inventory(directory.files)
            for told in (self.metric_note, note):
                if told:
                    console.print(told, soft_wrap=True)
            if self.trunks is not None and trunks is None:
                console.print(f"trunks are not used: {space.why_no_trunks}", soft_wrap=True)
            with stoppable, logs, report:
                embedded_ahead(space.config(), images, console, resources, directory.files)
                trials = run_search(
                    space,
                    directory,
                    resources,
                    wandb,
                    console,
                    num_trials=self.num_trials,
                    fingerprint=images.fingerprint,
                    trunks=trunks,
                    max_concurrent=self.max_concurrent,
                    max_retries=self.max_retries,
                    failed_too=self.retry_failed,
                    on_news=report.note,
                    limits=Limits(end_s=self.hang_limit or None),
                )
        log_search(space, directory, trials, wandb, workers=self.workers)
        return trials

    @contextmanager
    def _about_trunks(self) -> Iterator[None]:
        """Have errors about the folder of trunks name its setting, if it was given."""
        try:
            yield
        except StorageError as error:
            if self.trunks is not None:
                error.setting = "trunks"
            raise


def _check_start(config: RunConfig, images: Counted) -> None:
    """Raise UserError if trials of `config` cannot start from what their config names."""
    model, ids_of = config.model, config.clustering.ids_of
    for field, place in (("model.init", model.init), ("model.weights", model.weights_file)):
        if place is not None and "://" not in place and not Path(place).is_absolute():
            raise UserError(
                f"{field}={place}: trials have other working folders: give an absolute path"
            )
    if ids_of is not None:
        from conr_ray.data.store import DataSet
        from conr_ray.engine.earlier_clusters import EarlierClusters
        from conr_ray.storage.files import Folder

        earlier = EarlierClusters.read(Folder(ids_of))
        if isinstance(images, DataSet):
            earlier.rows_in(images)
    if model.init is not None or is_timm(model.backbone):
        from conr_ray.engine.initial_weights import check_initial_weights
        from conr_ray.frozen import trained_shape

        check_initial_weights(config, trained_shape(config, images.row_shape))
