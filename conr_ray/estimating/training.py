"""How a clusterer trains its run: in this process, or on workers of Ray as `train` does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console

from conr_ray.config import RunConfig
from conr_ray.data.arrays import as_table
from conr_ray.data.store import DataSet
from conr_ray.engine.data_checks import check_data
from conr_ray.engine.earlier_clusters import check_earlier
from conr_ray.engine.initial_weights import check_initial_weights
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.stopping import signals_handled
from conr_ray.errors import FolderTaken, NotShared, RunStopped, StorageError, UserError
from conr_ray.frozen import trained_shape
from conr_ray.prediction.ahead import embedded_ahead
from conr_ray.scaling.resources import ClusterOptions, local_resources
from conr_ray.tracking.progress import RunProgress
from conr_ray.tracking.wandb_observer import open_wandb
from conr_ray.tracking.wandb_reach import reached_settings
from conr_ray.tracking.wandb_settings import WandbSettings

SAMPLES = "samples.parquet"


@dataclass(frozen=True)
class Workers:
    """Where a clusterer trains.

    Attributes:
        count: workers on Ray; None is one, or none without an address.
        address: of a Ray cluster; None starts Ray on this machine, unless this process has one.
    """

    count: int | None = None
    address: str | None = None

    @property
    def on_ray(self) -> bool:
        """Whether Ray trains, not this process."""
        return self.count is not None or self.address is not None

    def train(
        self, config: RunConfig, data: DataSet, directory: RunDirectory, console: Console
    ) -> None:
        """Train a run to its end; one that `directory` holds goes on.

        Args:
            config: the run's. Samples that it expects in `directory` are written there.
            data: its samples.
            directory: of the run; held by the caller.
            console: shows the progress.

        Raises:
            UserError: the folder holds another run, or the config does not fit the workers.
            NotShared: not all nodes of the cluster see the folder.
            RunFailed: the run cannot go on.
            KeyboardInterrupt: the run was stopped; on Ray after a checkpoint.
        """
        try:
            check_data(config, data, self.count or 1)
            check_earlier(config, data, directory)
            if directory.newest_checkpoint() == (0, 0):
                check_initial_weights(config, trained_shape(config, data.row_shape, directory))
            directory.claim(config, resume=True)
        except FolderTaken as error:
            raise UserError(f"folder: {error}: choose another folder") from None
        if config.data.path == f"{directory.uri}/{SAMPLES}":
            directory.write_table(SAMPLES, as_table(data))
        # Workers on this machine find the vectors.
        data = embedded_ahead(config, data, console, run=directory)
        settings, _ = reached_settings(config.tracking, directory.uri, of_search=False)
        name = directory.uri.rpartition("/")[2]
        wandb = settings.for_run(name, group=None, run_uri=directory.uri)
        done, _ = directory.newest_checkpoint()
        progress = RunProgress(config.schedule.epochs, done, console)
        if self.on_ray:
            self._train_on_ray(config, directory, wandb, progress)
        else:
            _train_here(config, data, directory, wandb, progress)

    def _train_on_ray(
        self,
        config: RunConfig,
        directory: RunDirectory,
        wandb: WandbSettings,
        progress: RunProgress,
    ) -> None:
        if (self.address or "").startswith("ray://"):
            raise UserError(
                f"address={self.address}: a clusterer trains from a node of the cluster: run it on "
                "one with address='auto'"
            )
        # Ray takes long to load, and is not always wanted.
        from conr_ray.scaling.cluster import connect, leave
        from conr_ray.scaling.shared_storage import check_storage
        from conr_ray.scaling.train_job import run_on_workers

        try:
            resources = connect(ClusterOptions(self.address), self.count or 1)
            check_storage(directory, more_to_come=resources.more_to_come)
            with signals_handled(), progress:
                for row in run_on_workers(config, directory, resources, wandb):
                    progress.epoch(row)
        except NotShared as error:
            raise NotShared(
                f"folder: {error}: give folder='s3://bucket/folder', or one that all nodes mount"
            ) from None
        except StorageError as error:
            raise StorageError(f"folder: {error}") from None
        except RunStopped as stop:
            raise KeyboardInterrupt(str(stop)) from None
        finally:
            leave()


def _train_here(
    config: RunConfig,
    data: DataSet,
    directory: RunDirectory,
    wandb: WandbSettings,
    progress: RunProgress,
) -> None:
    resources = local_resources(ClusterOptions(), 1)
    device = torch.device("cuda" if resources.gpus_per_worker else "cpu")
    observers = Observers([open_wandb(wandb, config), progress])
    threads = torch.get_num_threads()
    directory.tidy()
    torch.set_num_threads(resources.cpus_per_worker)
    try:
        with progress:
            train(config, data, directory, observers, device)
    finally:
        torch.set_num_threads(threads)
