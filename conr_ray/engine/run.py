"""The parts of a run behind the loop: networks, samples, stages, files and evaluation.

Shapes: n rows of the global batch, b of this worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pyarrow as pa
import torch
from torch import Tensor

from conr_ray.config import RunConfig
from conr_ray.config.cluster_numbers import numbers_of
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.clusters_csv import write_clusters_csv
from conr_ray.engine.collapse import collapse, has_collapsed
from conr_ray.engine.data_checks import check_data
from conr_ray.engine.earlier_clusters import keep_earlier
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, neighbors_table
from conr_ray.engine.given_edits import agreed_edits
from conr_ray.engine.group_stage import make_group_stage
from conr_ray.engine.initial_weights import agreed_weights, record_backbone
from conr_ray.engine.observer import Observer
from conr_ray.engine.order import epoch_order
from conr_ray.engine.resume import read_newest, tell_again, with_settled_precision
from conr_ray.engine.run_clusters import RunClusters
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.schedule import Schedule
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.span import Span
from conr_ray.engine.step_figures import Pace, StepFigures
from conr_ray.engine.stopping import stop_request
from conr_ray.engine.take_snapshot import NUM_SHOWN, take_snapshot
from conr_ray.engine.training_state import TrainingState, check_checkpoint, neighborhood_of
from conr_ray.errors import RunFailed, RunStopped
from conr_ray.method.batch_norm import gathered_running_statistics
from conr_ray.method.collectives import rank, share, world_size
from conr_ray.method.frameworks.base import Step
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.instance import InstanceStage
from conr_ray.method.stages.pairs import PairStage

logger = logging.getLogger(__name__)


class Run:
    """A run on one worker, at its newest checkpoint or at the start.

    Attributes:
        local: this worker's rows of the global batch.
        last_epoch: number of epochs after which training ends.
    """

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        directory: RunDirectory,
        device: torch.device,
        span: Span,
    ) -> None:
        """Create or load the networks; arguments are those of `loop.train`."""
        self.data, self.directory = data, directory
        self._span, self._device = span, device
        least = check_data(config, data, world_size())
        keep_earlier(config, data, directory)
        self._numbers = numbers_of(config.clustering.num_clusters, data.num_rows)
        self._links = agreed_edits(config, data, directory, least, device)
        trained = data.num_rows if self._links is None else data.num_rows - self._links.num_junk
        self._steps_per_epoch = trained // config.optim.batch_size
        self.local = share(config.optim.batch_size)
        self._positions_b = torch.arange(self.local.start, self.local.stop, device=device)

        self.last_epoch = span.until or config.schedule.epochs
        self._saved, checkpoint = read_newest(directory, span, self.last_epoch, device)
        self._pace, self._saved_at = Pace(), time.monotonic()
        self.config = config = with_settled_precision(
            config, checkpoint, directory, data.row_shape, device
        )
        self.acceleration = Acceleration.of(config.optim, device)
        prepared = data
        if checkpoint is not None:
            check_checkpoint(checkpoint, config)
            prepared = data.prepared_as(checkpoint["inputs"])
        self.inputs = make_inputs(config, prepared, device)
        self.inputs.compile(self.acceleration.compiled)
        self.schedule = Schedule(config, self._steps_per_epoch)
        if self._numbers is not None and checkpoint is not None:
            least = checkpoint["num_clusters"]
        self._begin(least)
        learns_centers = self.state.framework.cluster_centers is not None
        if self._numbers is not None and checkpoint is None and learns_centers:
            self._begin(self._clusters.number(self._clusters.embedded()))
        if checkpoint is not None:
            if span.extends and self._saved is None:
                checkpoint = self.state.for_samples(data.fingerprint, checkpoint)
            self.state.load(checkpoint, config, data.fingerprint)
        elif (weights := agreed_weights(config, device)) is not None:
            # Read by all workers: from here on all are equal.
            self.state.start_from(weights.fitted(config, data.row_shape))
            if rank() == 0:
                weights.record(directory)
        if rank() == 0:
            record_backbone(data, config, directory)

        self._classes = None if data.labels is None else torch.from_numpy(data.labels).to(device)
        self._frozen_near: DataNeighbors | None = None
        self._instance_stage = InstanceStage()
        self._group_stage = make_group_stage(
            config, self.schedule, self.state.bank, self._classes, self._links
        )

    def _begin(self, num_clusters: int) -> None:
        """Make the state before the first step."""
        shape = self.data.row_shape
        self.state = TrainingState.create(self.config, shape, self.acceleration, num_clusters)
        embedder = Embedder(self.state.framework, self.inputs, self.acceleration)
        self._clusters = RunClusters(
            self.config,
            self.data,
            self.directory,
            self.schedule,
            self.state,
            embedder,
            self._numbers,
            self._links,
            extends=self._span.extends,
        )

    @property
    def num_trained(self) -> int:
        """Number of samples that an epoch trains on."""
        return self._steps_per_epoch * self.config.optim.batch_size

    @property
    def last_checkpoint(self) -> str:
        """Where the newest checkpoint is, for messages."""
        if self._saved is None:
            return "none yet"
        return f"{self.directory.uri}/{self.directory.checkpoint_name(*self._saved)}"

    @property
    def moment(self) -> str:
        """How far training is, for messages."""
        return f"after {self.state.epoch} epochs, {self.stage_at(self.state.epoch).name} stage"

    def stage_at(self, epoch: int) -> Stage:
        """The stage that `epoch` belongs to."""
        grouped = self.schedule.in_group_stage(epoch)
        return self._group_stage if grouped else self._instance_stage

    def figures(self, epoch: int) -> StepFigures:
        """Figures of an epoch, with those of the steps that the checkpoint is after."""
        so_far = self.state.within
        return StepFigures(epoch, self._steps_per_epoch, self._pace, self.last_checkpoint, so_far)

    def steps(self, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of an epoch from `first` on; an incomplete last batch is dropped."""
        config, state, num_global = self.config, self.state, self.config.optim.batch_size
        order = self._order(epoch).to(self._device)
        centers_cd = state.boundary_centers(config.boundary.centers)
        for index in range(first, self._steps_per_epoch):
            rows_n = order[index * num_global : (index + 1) * num_global]
            labels = state.pseudo_labels
            yield Step(
                number=epoch * self._steps_per_epoch + index,
                num_steps=config.schedule.epochs * self._steps_per_epoch,
                epoch=epoch,
                key=fold(config.seed, "step", epoch, index),
                positions_b=self._positions_b,
                sample_ids_n=rows_n,
                fraction=self.schedule.fraction(epoch),
                pseudo_labels_n=None if labels is None else labels[rows_n],
                centers_cd=centers_cd,
            )

    def _order(self, epoch: int) -> Tensor:
        """The samples of an epoch, without those that a person has marked as junk."""
        junk_n = torch.zeros(self.data.num_rows, dtype=torch.bool)
        if self._links is not None:
            junk_n = self._links.junk_n.cpu()
        evenness = self.config.clustering.evenness if self.schedule.in_group_stage(epoch) else 0
        labels, batch = self.state.pseudo_labels, self.config.optim.batch_size
        key = fold(self.config.seed, "order", epoch)
        return epoch_order(key, junk_n, labels, self._steps_per_epoch, batch, evenness)

    def prepare(self, stage: Stage, epoch: int) -> None:
        """Find what the loss of `stage` reads of the whole data set in `epoch`."""
        if stage.needs_clusters(self.state.framework, epoch):
            with self._named_failures():
                self._clusters.ensure()
        if not isinstance(stage, PairStage):
            return
        if (found := (self.state.within or {}).get("neighbors")) is not None:
            stage.neighbors_mk = found
        elif stage.neighbors_mk is None or not self._is_frozen:
            stage.find(self._neighbors(self._clusters.embedded))

    def _neighbors(self, embed: Callable[[], Tensor]) -> DataNeighbors:
        """Neighbours in the whole data set; `embed` gives this worker's share of embeddings."""
        if self._frozen_near is not None:
            return self._frozen_near
        if self._is_frozen:
            # Made anew for each search: they are as large as the data.
            embed = self._clusters.embedded
        near = DataNeighbors(neighborhood_of(self.config), embed, self.data.num_rows, NUM_SHOWN)
        if self._is_frozen:
            self._frozen_near = near
        return near

    @property
    def _is_frozen(self) -> bool:
        """Whether embeddings stay as they are."""
        encoder = self.state.framework.embedding_encoder
        return not any(True for _ in encoder.parameters())

    def batches(self, step: Step) -> tuple[Tensor, Tensor]:
        """The samples of the two views of a step, as stored; often the same."""
        first, *others = map(self.inputs.take, self._taken(step))
        return first, others[0] if others else first

    def prefetched(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The steps, while samples of the next ones are decoded, if they stay encoded."""
        return self.inputs.prefetched(steps, self._taken)

    def _taken(self, step: Step) -> list[Tensor]:
        """This worker's samples in a step, and their partners if they have any."""
        both = step.sample_ids_n, step.partner_ids_n
        return [ids_n[self.local] for ids_n in both if ids_n is not None]

    def view_keys(self, epoch: int, index: int) -> list[int]:
        """Random keys of the two views of a step."""
        return [fold(self.config.seed, "view", view, epoch, index) for view in (1, 2)]

    def tell_what_was(self, observer: Observer) -> None:
        """Complete the files of an interrupted run, and report its earlier epochs."""
        state = self.state
        due = state.history and self.schedule.evaluated(state.epoch - 1)
        if due and state.clustered_epoch != state.epoch:
            # The run that it started from did not need these.
            state.history[-1] = {**state.history[-1], **self._clustered()[1]}
        if state.history and rank() == 0:
            # The run may have stopped after its checkpoint, before these were written.
            self.directory.write_metrics(state.history)
        if self._saved == (self.last_epoch, 0):
            tell_again(self.directory, state.history, observer)
        elif state.history:
            observer.inherit(state.history)
        if state.history:
            self.check_collapse()

    def evaluate(self, row: dict[str, float | int | str | None]) -> Snapshot | None:
        """Cluster all samples, add the scores to `row`, and after the last epoch write the tables.

        Returns a snapshot if one is due, on the first worker.
        """
        config, ended = self.config, self.state.epoch
        fraction = self.schedule.fraction(ended - 1)
        clustering, scores = self._clustered()
        row |= scores
        near = self._neighbors(lambda: clustering.embeddings_bd)
        if ended == config.schedule.epochs:
            assignments = clustering.assignments(self.data, fraction)
            self._write_table("assignments", assignments)
            if rank() == 0:
                share_kept = config.boundary.initial_fraction
                write_clusters_csv(self.directory, assignments, share_kept)
            if config.evaluation.neighbors:
                if self._classes is not None:
                    row |= near.purities(self._classes)
                self._write_table("neighbors", neighbors_table(near, self.data))
        if not self.schedule.pictured(ended - 1):
            return None
        snapshot = take_snapshot(near, clustering, self.data, epoch=ended, fraction=fraction)
        if snapshot is not None:
            snapshot.write(self.directory)
        return snapshot

    def save_where_due(self) -> None:
        """Write the metrics, and a checkpoint if one is due; none of an epoch that ends the run."""
        ended, history = self.state.epoch, self.state.history
        pinned = ended in self._span.pinned
        due = pinned or self.schedule.saved(ended - 1) or ended == self.last_epoch
        if due and not (has_collapsed(history[-1]) and self._stops_on_collapse):
            self._save(pinned=pinned)
        if rank() == 0:
            self.directory.write_metrics(history)

    @property
    def wants_save(self) -> bool:
        """Whether the last checkpoint is so long ago that one is due within the epoch."""
        minutes = self.config.checkpoint.every_minutes
        return minutes is not None and time.monotonic() - self._saved_at > 60 * minutes

    def save_within_epoch(self, figures: StepFigures) -> None:
        """Write a checkpoint after the steps of `figures`, which all workers have looked at."""
        state = self.state
        statistics = gathered_running_statistics(state.framework)
        state.within = {**figures.state_dict(), "running_statistics": statistics}
        if isinstance(self._group_stage, PairStage) and not self._is_frozen:
            # Found where the epoch began.
            state.within["neighbors"] = self._group_stage.neighbors_mk
        self._save(figures.num_steps)
        figures.last_checkpoint, figures.save_agreed = self.last_checkpoint, False
        # The epoch goes on: only one that begins in its middle reads them.
        state.within = None

    def stop(self, figures: StepFigures) -> NoReturn:
        """Write a checkpoint after the steps of `figures`, which all workers have looked at.

        Raises:
            RunStopped: it is written.
        """
        self.save_within_epoch(figures)
        # It is met; what is trained next in this process is another matter.
        stop_request.asked = False
        raise RunStopped(
            f"stopped in epoch {self.state.epoch + 1} after step {figures.num_steps} of "
            f"{self._steps_per_epoch}"
        )

    def check_collapse(self) -> None:
        """Look whether the last epoch left embeddings that coincide.

        Raises:
            RunCollapsed: they do, unless the config asks only to be warned.
        """
        row = self.state.history[-1]
        if not has_collapsed(row):
            return
        error = collapse(self.config, row, self.state.num_clusters, self.last_checkpoint)
        if self._stops_on_collapse:
            raise error
        if rank() == 0:
            logger.warning("%s", error)

    @property
    def _stops_on_collapse(self) -> bool:
        return self.config.evaluation.on_collapse == "stop"

    def _clustered(self) -> tuple[DataClustering, dict[str, float]]:
        """The clusters of all samples after the trained epochs, and their scores."""
        with self._named_failures():
            found = self._clusters.find()
        ended = self.state.epoch
        try:
            # Members of a population are compared after the last epoch of each span.
            return found, self._clusters.scores(found, last=ended == self.last_epoch)
        except FloatingPointError as error:
            raise RunFailed(f"{error} after {ended} epochs: please report it") from None

    @contextmanager
    def _named_failures(self) -> Iterator[None]:
        """Turn embeddings that are not finite into the failure of the run."""
        try:
            yield
        except FloatingPointError as error:
            raise RunFailed(
                f"{error} after {self.state.epoch} epochs of {self._steps_per_epoch} steps; last "
                f"good checkpoint: {self.last_checkpoint}; lower optim.lr"
            ) from None

    def _save(self, steps: int = 0, *, pinned: bool = False) -> None:
        """Write a checkpoint after the trained epochs and `steps` of the next one."""
        state, fingerprint = self.state, self.data.fingerprint
        checkpoint = state.to_checkpoint(self.config, fingerprint, self.inputs.state_dict())
        self._saved, self._saved_at = (state.epoch, steps), time.monotonic()
        if rank() > 0:
            return
        summary = {
            "epochs_trained": state.epoch,
            **({"steps_trained": steps} if steps else {}),
            "workers": world_size(),
            "data_fingerprint": fingerprint,
            **(state.history[-1] if state.history else {}),
        }
        keep = self.config.checkpoint.keep
        self.directory.save_checkpoint(
            state.epoch, checkpoint, summary, keep, pinned=pinned, steps=steps
        )

    def _write_table(self, name: str, table: pa.Table) -> None:
        if rank() == 0:
            self.directory.write_table(f"{name}.parquet", table)
