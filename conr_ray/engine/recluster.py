"""Cluster the samples of a trained run in other numbers than its own, without training.

Shapes: n samples, d width, c clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet
from conr_ray.edits.log import JUNK, EditLog
from conr_ray.engine.cluster_changes import ClusterChanges
from conr_ray.engine.cluster_number import number_in
from conr_ray.engine.clusters_folder import PLACE, ClustersFolder, as_lists, from_lists
from conr_ray.engine.earlier_clusters import EarlierClusters
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, cluster_embeddings, correcting_neighbors
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.schedule import Schedule
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from conr_ray.method.clustering.corrections import corrected_clusters
from conr_ray.method.clustering.number import LEAST_BOUND, NumberChoice
from conr_ray.method.keyed_random import fold
from conr_ray.storage.files import Folder

# Rows of a stored part of the embeddings: a multiple of the embedder's batch.
_PART_ROWS = 2**16


@dataclass(frozen=True)
class Reclustering:
    """A run and its samples, to be clustered.

    Attributes:
        run: with its networks.
        data: the samples that it was trained on.
        embedder: of these samples.
        stored: where their embeddings are stored in parts.
    """

    run: TrainedRun
    data: DataSet
    embedder: Embedder
    stored: Folder

    @classmethod
    def of(cls, run: TrainedRun, data: DataSet, directory: RunDirectory) -> Reclustering:
        """That of a run in `directory`.

        Raises:
            UserError: the samples are not those of the run.
        """
        epoch = run.state.epoch
        summary = directory.read_json(f"{directory.checkpoint_name(epoch)}/summary.json") or {}
        if summary.get("data_fingerprint", data.fingerprint) != data.fingerprint:
            raise UserError(
                f"data.path={run.config.data.path}: these are not the {data.what} that the run was "
                "trained on: put them back, or cluster others with python -m conr_ray.predict"
            )
        embedder = run.embedder(
            make_inputs(run.config, data.prepared_as(run.inputs_state), run.device)
        )
        name = f"embeddings-{epoch}-{data.fingerprint[:12]}"
        return cls(run, data, embedder, Folder(f"{directory.uri}/{PLACE}/{name}"))

    @property
    def num_parts(self) -> int:
        """Parts of the embeddings."""
        return -(-self.data.num_rows // _PART_ROWS)

    def embeddings(self) -> Iterator[Tensor]:
        """The parts of the embeddings in their order, float32 (at most 65,536, d).

        Each is computed and stored, unless it already is.
        """
        for part in range(self.num_parts):
            name = f"part-{part:06d}.parquet"
            if (table := self.stored.read_table(name, ("embedding",))) is not None:
                yield from_lists(table.column("embedding")).to(self.run.device)
                continue
            first = part * _PART_ROWS
            with self.embedder.acceleration.applied():
                rows_bd = self.embedder.plain(
                    torch.arange(first, min(first + _PART_ROWS, self.data.num_rows))
                )
            self.stored.write_table(name, pa.table({"embedding": as_lists(rows_bd)}))
            yield rows_bd

    def number(self, embeddings_nd: Tensor, numbers: range) -> NumberChoice:
        """The number of `numbers` that shows in the embeddings; of 2 to 30 if there are none.

        Raises:
            UserError: all embeddings are equal.
        """
        total = self.data.num_rows
        numbers = numbers or range(2, min(LEAST_BOUND, total) + 1)
        return number_in(
            embeddings_nd,
            total,
            numbers,
            self.run.config.seed,
            "--clusters",
            f"the run tells its {self.data.what} not apart: train it anew",
        )

    def clustered(self, embeddings_nd: Tensor, num_clusters: int) -> DataClustering:
        """k-means as the run makes it: in its own number of clusters it finds the run's own."""
        run, own_n = self.run, self.run.state.pseudo_labels
        learned_cd = run.state.framework.cluster_centers
        if learned_cd is not None and len(learned_cd) != num_clusters:
            learned_cd = None
        found = cluster_embeddings(
            run.config,
            embeddings_nd,
            self.data.num_rows,
            num_clusters,
            epoch=run.state.epoch,
            learned_cd=learned_cd,
        )
        numbers_c = run.state.cluster_numbers
        if own_n is None or numbers_c is None or num_clusters != len(numbers_c):
            return found
        return found.following(own_n).with_numbers(numbers_c, run.first_free)

    def numbered(
        self, found: DataClustering, earlier: EarlierClusters
    ) -> tuple[DataClustering, ClusterChanges]:
        """The clusters with the numbers of earlier ones, and what has changed.

        Raises:
            UserError: none of the run's samples is in the earlier ones.
        """
        places_n, number = found.clusters_n.cpu().numpy(), len(found.centers_cd)
        changes = earlier.numbered(places_n, number, self.data)
        return found.with_numbers(torch.from_numpy(changes.numbers_c), changes.first_free), changes

    def corrected(
        self, embeddings_nd: Tensor, log: EditLog, assignments: pa.Table
    ) -> tuple[DataClustering, dict[int, str]]:
        """The clusters that a person has changed, and the changes spread by `corrected_clusters`.

        They keep their numbers; what was marked as junk takes the cluster of its neighbours.

        Args:
            embeddings_nd: of the run's samples.
            log: the changes of the clusters in `assignments`.
            assignments: of the run.

        Returns:
            The clusters, and names by their numbers.

        Raises:
            UserError: one cluster is left.
        """
        ids_n = assignments.column("sample_id").to_numpy()
        edited_n = log.clusters(ids_n, assignments.column("cluster").to_numpy())
        numbers = [number for number in np.unique(edited_n).tolist() if number != JUNK]
        if len(numbers) < 2:
            raise UserError("--edits: one cluster is left: leave two or more")
        places_n = np.where(edited_n == JUNK, -1, np.searchsorted(numbers, edited_n))
        clusters_n = torch.from_numpy(places_n)
        fixed_ids = [i for i, number in log.fixed().items() if number != JUNK]
        fixed_n = torch.from_numpy(np.isin(ids_n, fixed_ids)) & (clusters_n >= 0)
        near_nk = correcting_neighbors(embeddings_nd, len(ids_n))
        found_n = corrected_clusters(
            near_nk, clusters_n.to(near_nk.device), fixed_n, len(numbers)
        ).to(embeddings_nd.device)
        sums_cd = embeddings_nd.new_zeros(len(numbers), embeddings_nd.shape[1])
        centers_cd = normalize(sums_cd.index_add_(0, found_n, embeddings_nd))
        found = DataClustering.of(self.run.config, embeddings_nd, found_n, centers_cd)
        found = found.with_numbers(torch.tensor(numbers), log.unused(numbers))
        return found, {number: name for number, name in log.names().items() if number in numbers}

    def scores(self, found: DataClustering) -> dict[str, float]:
        """`DataClustering.metrics`."""
        key = fold(self.run.config.seed, "scores", self.run.state.epoch)
        with self.embedder.acceleration.applied():
            return found.metrics(self.data.labels, self.embedder, key, label_free=True)

    def write(self, found: DataClustering, folder: ClustersFolder) -> None:
        """Write the clusters to a folder, from where `TrainedRun.with_clusters` takes them."""
        run = self.run
        epoch, fraction = run.state.epoch, run.config.boundary.initial_fraction
        kept = Schedule(run.config, 1).fraction(epoch - 1)
        assignments = found.assignments(self.data, kept)
        folder.write(
            assignments, fraction, found.centers_cd, found.lengths_c, found.numbers_c, epoch
        )
