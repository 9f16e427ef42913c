"""The clusters of a run's samples: how many, which, and how good.

Shapes: b samples of this worker, d width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from conr_ray.config import RunConfig
from conr_ray.data.store import DataSet
from conr_ray.engine.cluster_number import chosen_number
from conr_ray.engine.earlier_clusters import numbered_as_before
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, cluster_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.schedule import Schedule
from conr_ray.engine.training_state import TrainingState
from conr_ray.method.collectives import share
from conr_ray.method.keyed_random import fold
from conr_ray.method.neighbors.links import Links


class RunClusters:
    """Finds the clusters of all samples by the networks as they are, into the training state."""

    def __init__(
        self,
        config: RunConfig,
        data: DataSet,
        directory: RunDirectory,
        schedule: Schedule,
        state: TrainingState,
        embedder: Embedder,
        numbers: range | None,
        links: Links | None = None,
        *,
        extends: bool = False,
    ) -> None:
        """Find none yet.

        Args:
            config: of the run.
            data: its samples.
            directory: where its earlier clusters may be.
            schedule: when clusters are found anew, and rated.
            state: takes them.
            embedder: of the samples, with the networks of `state`.
            numbers: of clusters to choose from, None where the number is given.
            links: a person's word on the samples.
            extends: whether more samples are taken into the clusters of `state`.
        """
        self._links = links
        self._config, self._data, self._directory = config, data, directory
        self._schedule, self._extends = schedule, extends
        self._state, self._embedder, self._numbers = state, embedder, numbers

    @property
    def learned_cd(self) -> Tensor | None:
        """The framework's own centres, (c, d), if it learns any."""
        return self._state.framework.cluster_centers

    def embedded(self) -> Tensor:
        """The embeddings of this worker's share of the samples, (b, d)."""
        local = share(self._data.num_rows)
        return self._embedder.plain(torch.arange(local.start, local.stop))

    def number(self, embeddings_bd: Tensor) -> int:
        """The number of clusters that shows in the embeddings.

        Raises:
            UserError: all embeddings are equal.
        """
        assert self._numbers is not None
        return chosen_number(self._config, embeddings_bd, self._data.num_rows, self._numbers)

    def ensure(self) -> None:
        """Find pseudo-labels unless the existing ones are from after the last epoch."""
        if self._state.clustered_epoch != self._state.epoch:
            self.find()

    def find(self) -> DataClustering:
        """Cluster all samples; the state takes their clusters as pseudo-labels.

        Clusters follow those before: the order of the last ones that were found and, after the last
        epoch, the numbers of `numbered_as_before`.

        Raises:
            FloatingPointError: an embedding is not finite.
            UserError: earlier clusters, or edits of them, are damaged.
        """
        state, schedule, choose = self._state, self._schedule, None
        fresh = state.centers is None or schedule.evaluated(state.epoch - 1)
        if self._numbers is not None and fresh and self.learned_cd is None:
            choose = self.number
        given_cd = self.learned_cd
        if self._extends and self._config.clustering.kind != "kmeans":
            # They are no means: a step of k-means would make others of them.
            given_cd = state.centers
        continues = self._extends or schedule.continues(state.epoch - 1)
        found = cluster_data(
            self._config,
            self._embedder,
            num_rows=self._data.num_rows,
            num_clusters=state.num_clusters,
            epoch=state.epoch,
            warm_cd=state.centers if continues else None,
            one_step=self._extends,
            learned_cd=given_cd,
            choose=choose,
        )
        if self._links is not None:
            found = found.heeding(self._links, self._config, centers_follow=self.learned_cd is None)
        if state.pseudo_labels is not None:
            found = found.following(state.pseudo_labels)
        if state.epoch == self._config.schedule.epochs:
            found = numbered_as_before(
                found, self._data, self._directory, same_networks=self._extends
            )
        state.num_clusters = len(found.centers_cd)
        state.pseudo_labels, state.cluster_numbers = found.clusters_n, found.numbers_c
        state.centers, state.center_lengths = found.centers_cd, found.lengths_c
        state.clustered_epoch = state.epoch
        return found

    def scores(self, found: DataClustering, *, last: bool) -> dict[str, float]:
        """The metrics of a clustering; label-free ones when they are due, and of the `last` epoch.

        Raises:
            FloatingPointError: a score is outside its range.
        """
        state = self._state
        key = fold(self._config.seed, "scores", state.epoch)
        label_free = self._schedule.scored(state.epoch - 1) or last
        scores = found.metrics(self._data.labels, self._embedder, key, label_free=label_free)
        number = {} if self._numbers is None else {"num_clusters": state.num_clusters}
        return {**number, **scores}
