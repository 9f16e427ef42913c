"""Apply a trained run to samples; its directory holds everything needed.

Shapes: n samples, d embedding width, c clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conr_ray.config import RunConfig, from_yaml
from conr_ray.data.inputs import Inputs, inputs_from_state
from conr_ray.edits.centers import EditedClusters
from conr_ray.edits.folder import (
    EDITS,
    NAMES,
    assigned_fingerprint,
    read_assignments,
    read_edits,
)
from conr_ray.engine.acceleration import Acceleration, has_tf32
from conr_ray.engine.clusters_csv import confident_ratio
from conr_ray.engine.clusters_folder import ClustersFolder
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import FIRST_FREE
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState, check_checkpoint
from conr_ray.errors import StorageError, UserError, one_line
from conr_ray.frozen import FrozenBackbone
from conr_ray.frozen.backbone import COLOURS, weights_file
from conr_ray.method.stages.boundary import boundary_centers, center_distances, distance_ratio
from conr_ray.storage import disk
from conr_ray.storage.files import Folder

# Images that are copied at once.
_EMBEDDED = 4096


@dataclass(frozen=True)
class Placement:
    """Where samples lie among the clusters of a run.

    Attributes:
        embeddings_nd: float32 (n, d), unit length.
        clusters_n: int64 (n,), the number of each one's cluster.
        distances_n: float32 (n,), to the centre of the own cluster, Euclidean.
        other_distances_n: float32 (n,), to the nearest other centre.
        boundary_ratios_n: (n,), the quotient of the two; above 1 another centre is nearer.
    """

    embeddings_nd: Tensor
    clusters_n: Tensor
    distances_n: Tensor
    other_distances_n: Tensor
    boundary_ratios_n: Tensor


@dataclass(frozen=True)
class TrainedRun:
    """The networks and cluster centres of a checkpoint.

    New `samples` are as their source stores them: images, uint8 (n, c, h, w) with values from 0 to
    255, or vectors, floats (n, d); arrays of NumPy or torch.

    Attributes:
        config: of the run.
        state: its networks and the rest of the training state.
        inputs_state: how samples are prepared for the networks (`Inputs.state_dict`).
        device: where it computes.
        directory: of the run; the weights of a backbone that does not train are kept there, or in
            that of its search.
        confident_ratio: samples with a boundary ratio up to it are confident: the share
            `boundary.initial_fraction` of the run's own samples. None before the run has ended.
        edits: a person's changes of the clusters, if they are heeded and there are some.
    """

    config: RunConfig
    state: TrainingState
    inputs_state: dict[str, Any]
    device: torch.device
    directory: Folder
    confident_ratio: float | None = None
    edits: EditedClusters | None = None

    @cached_property
    def first_free(self) -> int:
        """Above all numbers that its clusters have or had; 0 before the run has ended."""
        table = read_assignments(self.directory)
        return 0 if table is None else int((table.schema.metadata or {}).get(FIRST_FREE, 0))

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of a sample as its source stores it: (c, h, w) of images, (d,) of vectors."""
        facts = self.inputs_state.get("backbone")
        return tuple(self.inputs_state["shape"] if facts is None else facts["images"])

    @cached_property
    def backbone(self) -> FrozenBackbone | None:
        """What makes vectors of images, before the networks; None unless it did not train.

        Raises:
            UserError: its weights are not there, or others.
        """
        facts = self.inputs_state.get("backbone")
        return None if facts is None else FrozenBackbone.read(facts, self.directory, self.device)

    @property
    def num_clusters(self) -> int | None:
        """Number of clusters; None before the first clustering."""
        return None if self.state.centers is None else len(self.state.centers)

    @classmethod
    def load(
        cls,
        run: RunDirectory | str | Path,
        device: torch.device | str = "cpu",
        num_clusters: int | None = None,
        *,
        edits: bool = False,
    ) -> TrainedRun:
        """From the newest checkpoint of a run that can be used.

        A line on standard error tells of newer ones that are damaged.

        Args:
            run: its folder, which may be in a bucket.
            device: where to compute.
            num_clusters: use the clusters that `conr_ray.recluster` has made of the run's samples
                in this number, instead of the run's own.
            edits: heed what a person has changed with `conr_ray.browse`.

        Raises:
            UserError: it is not a run, has no checkpoint, or none but damaged ones or those of
                another layout; or there is no such device, or no such clusters; or the edits are
                of other clusters.
        """
        directory = run if isinstance(run, RunDirectory) else RunDirectory(run)
        device = torch.device(device)
        epochs = directory.checkpoint_epochs()
        if not epochs and directory.read_text("config.yaml") is None:
            raise UserError(f"{directory.uri} is not a run: it holds no config.yaml")
        if not epochs:
            raise UserError(f"{directory.uri} holds no checkpoint: resume the run to have one")
        refusals: list[UserError] = []
        for epoch in reversed(epochs):
            try:
                run_then = cls._of(directory, epoch, device)
            except StorageError:
                raise
            except UserError as error:
                refusals.append(error)
                continue
            for refusal in refusals:
                told = str(refusal).rpartition(": ")[0]
                disk.tell(f"{told}: that after {epoch} epochs is used")
            place: Folder = directory
            if num_clusters is not None:
                place = reclustered = ClustersFolder.of(directory, num_clusters)
                run_then = run_then.with_clusters(reclustered)
            return run_then.with_edits(place) if edits else run_then
        raise refusals[0]

    @classmethod
    def _of(cls, directory: RunDirectory, epoch: int, device: torch.device) -> TrainedRun:
        checkpoint = directory.load_checkpoint(epoch, device)
        try:
            config = from_yaml(checkpoint["config"], f"the config of {directory.uri}", trusted=True)
            check_checkpoint(checkpoint, config)
            inputs_state = checkpoint["inputs"]
            acceleration = _acceleration(config, device)
            state = TrainingState.create(
                config,
                tuple(inputs_state["shape"]),
                acceleration,
                checkpoint.get("num_clusters", 2),
            )
            state.load(checkpoint, config, checkpoint["data_fingerprint"])
        except UserError:
            raise
        # A state without a checksum may hold anything.
        except Exception as error:
            name = directory.checkpoint_name(epoch)
            raise UserError(
                f"{directory.uri}/{name}/state.pt is no state of its run ({one_line(error)}): "
                "resume the run from the checkpoint before"
            ) from None
        ratio = _confident_ratio(directory, config.boundary.initial_fraction)
        return cls(config, state, inputs_state, device, directory, ratio)

    def backbone_files(self) -> dict[str, bytes]:
        """The file of the weights of `backbone` by its name; empty without one.

        Raises:
            UserError: as `backbone`.
        """
        if self.backbone is None:
            return {}
        return {weights_file(self.backbone.pretrained.digest): self.backbone.content()}

    def with_clusters(self, folder: ClustersFolder) -> TrainedRun:
        """The run with the clusters in a folder that `conr_ray.recluster` has written.

        Raises:
            UserError: there are none, or they are of other networks than these.
        """
        centers_cd, lengths_c, numbers_c = folder.centers(self.state.epoch, self.device)
        state = replace(
            self.state,
            centers=centers_cd,
            center_lengths=lengths_c,
            cluster_numbers=numbers_c,
            pseudo_labels=None,
        )
        ratio = _confident_ratio(folder, self.config.boundary.initial_fraction)
        return replace(self, state=state, confident_ratio=ratio)

    def with_edits(self, folder: Folder) -> TrainedRun:
        """The run with a person's changes of its clusters, if there are some in `folder`.

        Raises:
            UserError: they are of other clusters than its assignments tell, or damaged.
        """
        if not (folder.has(EDITS) or folder.has(NAMES)):
            return self
        assignments = read_assignments(folder)
        kind = self.config.boundary.centers
        centers_cd, numbers_c = self.state.boundary_centers(kind), self.state.cluster_numbers
        if assignments is None or centers_cd is None or numbers_c is None:
            raise UserError(f"{folder.uri}/{EDITS}: edits of clusters that are not there")
        log = read_edits(folder, assigned_fingerprint(assignments))

        def scaled(means_kd: Tensor) -> Tensor:
            lengths_k = means_kd.norm(dim=1)
            return boundary_centers(kind, means_kd / lengths_k[:, None], lengths_k)

        return replace(self, edits=EditedClusters(log, centers_cd, numbers_c, scaled))

    def embedder(self, inputs: Inputs) -> Embedder:
        """What embeds samples that are prepared for this run's networks."""
        return Embedder(self.state.framework, inputs, _acceleration(self.config, self.device))

    def embed(self, samples: NDArray[Any] | Tensor) -> Tensor:
        """Embeddings of samples, float32 (n, d) of unit length.

        Raises:
            UserError: they are not what the run was trained on, or not finite.
        """
        rows = self._checked(samples)
        embedder = self.embedder(self.inputs(rows))
        with embedder.acceleration.applied():
            return embedder.plain(torch.arange(len(rows), device=self.device))

    def inputs(self, rows: NDArray[Any]) -> Inputs:
        """Samples as their source stores them, as the networks see them."""
        if self.backbone is not None:
            # Copied part by part: they may be memory-mapped.
            parts = [
                self.backbone.plain(torch.from_numpy(np.array(rows[start : start + _EMBEDDED])))
                for start in range(0, max(1, len(rows)), _EMBEDDED)
            ]
            rows = torch.cat(parts).numpy()
        return inputs_from_state(self.inputs_state, rows, self.device)

    def assign(self, samples: NDArray[Any] | Tensor) -> tuple[Tensor, Tensor]:
        """Cluster, int64 (n,), and boundary ratio, float32 (n,), of each sample.

        Raises:
            UserError: as `place`.
        """
        placement = self.place(samples)
        return placement.clusters_n, placement.boundary_ratios_n

    def place(self, samples: NDArray[Any] | Tensor) -> Placement:
        """The samples' embeddings, clusters, and distances from the centres.

        Distances are from the run's `boundary.centers`, to which its boundary ratios refer.

        Raises:
            UserError: as `embed`, or the run has not been clustered yet.
        """
        centers_cd, numbers_c = self.state.centers, self.state.cluster_numbers
        boundary_centers_cd = self.state.boundary_centers(self.config.boundary.centers)
        if centers_cd is None or numbers_c is None or boundary_centers_cd is None:
            raise UserError("the run has no clusters yet: train it to its next evaluation")
        embeddings_nd = self.embed(samples)
        places_n = (embeddings_nd @ centers_cd.T).argmax(1)
        clusters_n = numbers_c.to(places_n.device)[places_n]
        if self.edits is not None:
            clusters_n = self.edits.clusters(embeddings_nd, clusters_n)
            own_n, other_n = self.edits.distances(embeddings_nd, clusters_n)
            ratios_n = self.edits.ratios(own_n, other_n)
            return Placement(embeddings_nd, clusters_n, own_n, other_n, ratios_n)
        own_n, other_n = center_distances(embeddings_nd, places_n, boundary_centers_cd)
        ratios_n = distance_ratio(own_n, other_n)
        return Placement(embeddings_nd, clusters_n, own_n, other_n, ratios_n)

    def _checked(self, samples: NDArray[Any] | Tensor) -> NDArray[Any]:
        if isinstance(samples, Tensor):
            kept = samples.detach().cpu()
            # NumPy has no bfloat16, in which models often hand out vectors.
            samples = (kept.float() if kept.dtype == torch.bfloat16 else kept).numpy()
        rows = np.asarray(samples)
        shape = self.sample_shape
        of_vectors = len(shape) == 1
        if rows.ndim == len(shape):
            raise UserError(
                f"samples of shape {_shown(rows.shape)}: give several, as samples[None]"
            )
        # Images are fitted to the run's view size; channels and vector widths must match, but for
        # models of timm, which are given colours.
        of_timm = {"interpolation", "backbone"} & self.inputs_state.keys()
        taken_firsts = COLOURS if of_timm else shape[:1]
        fits = rows.ndim == len(shape) + 1 and rows.shape[1] in taken_firsts
        if not fits or 0 in rows.shape[1:]:
            first = " or ".join(map(str, taken_firsts))
            first += " features" if of_vectors else " x height x width"
            raise UserError(f"samples of shape {_shown(rows.shape)}: the run takes n x {first}")
        if of_vectors and np.issubdtype(rows.dtype, np.floating):
            with np.errstate(over="ignore"):
                rows = rows.astype(np.float32)
            if not np.isfinite(rows).all():
                row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
                raise UserError(f"sample {row} is not finite as float32: leave it out")
        elif of_vectors or rows.dtype != np.uint8:
            taken = "floats" if of_vectors else "uint8 from 0 to 255"
            raise UserError(f"samples of {rows.dtype}: the run takes {taken}")
        return rows


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def _acceleration(config: RunConfig, device: torch.device) -> Acceleration:
    """The precision of the run, where the device has it: samples then lie where it saw them."""
    precision = config.optim.precision
    if precision == "auto" or (precision == "tf32" and not has_tf32(device)):
        precision = "fp32"
    return Acceleration(device, precision)


def _confident_ratio(directory: Folder, fraction: float) -> float | None:
    """The largest boundary ratio of the share `fraction` of a run's samples with the smallest."""
    table = read_assignments(directory)
    if table is None or not table.num_rows:
        return None
    return confident_ratio(table.column("boundary_ratio").to_numpy(), fraction)
