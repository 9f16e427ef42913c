"""Apply a trained run to samples; its directory holds everything needed.

Shapes: n samples, d embedding width, c clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from conr_ray.config import RunConfig, from_yaml
from conr_ray.data.inputs import inputs_from_state
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState, check_checkpoint
from conr_ray.errors import UserError
from conr_ray.method.stages.boundary import boundary_ratio


@dataclass(frozen=True)
class TrainedRun:
    """The networks and cluster centres of a checkpoint.

    Attributes:
        config: of the run.
        state: its networks and the rest of the training state.
        inputs_state: how samples are prepared for the networks (`Inputs.state_dict`).
        device: where it computes.
    """

    config: RunConfig
    state: TrainingState
    inputs_state: dict[str, Any]
    device: torch.device

    @classmethod
    def load(cls, directory: RunDirectory, device: torch.device) -> TrainedRun:
        """From the newest checkpoint in a run's directory.

        Raises:
            UserError: there is none, or it is damaged or of another layout.
        """
        epochs = directory.checkpoint_epochs()
        if not epochs:
            raise UserError(f"{directory.uri} holds no checkpoint: train the run first")
        checkpoint = directory.load_checkpoint(epochs[-1], device)
        config = from_yaml(checkpoint["config"], f"the config of {directory.uri}", trusted=True)
        check_checkpoint(checkpoint, config)
        inputs_state = checkpoint["inputs"]
        state = TrainingState.create(config, tuple(inputs_state["shape"]), device)
        state.load(checkpoint, config, checkpoint["data_fingerprint"])
        return cls(config, state, inputs_state, device)

    def embed(self, rows: NDArray[Any]) -> Tensor:
        """Embeddings of samples as their source stores them, (n, d) float32 of unit length.

        `rows` is uint8 (n, c, h, w), or float32 (n, d).

        Raises:
            UserError: their shape differs from that of the training samples.
        """
        shape = tuple(self.inputs_state["shape"])
        # Images are fitted to the run's view size; channels and vector widths must match.
        fits = rows.shape[1:2] == shape[:1] and rows.ndim == len(shape) + 1
        if not fits:
            raise UserError(
                f"samples of shape {_shown(rows.shape[1:])}, but the run was trained on "
                f"{_shown(shape)}: convert them to {len(shape)} dimensions with {shape[0]} "
                f"{'features' if len(shape) == 1 else 'channels first'}"
            )
        inputs = inputs_from_state(self.inputs_state, rows, self.device)
        precision = torch.autocast(self.device.type, enabled=False)
        embedder = Embedder(self.state.framework, inputs, precision)
        return embedder.plain(torch.arange(len(rows), device=self.device))

    def assign(self, rows: NDArray[Any]) -> tuple[Tensor, Tensor]:
        """Cluster (n,) int64 and boundary ratio (n,) of each sample.

        Raises:
            UserError: as `embed`, or the run has not been clustered yet.
        """
        centers_cd = self.state.centers
        if centers_cd is None:
            raise UserError("the run has no clusters yet: train it to its next evaluation")
        embeddings_nd = self.embed(rows)
        clusters_n = (embeddings_nd @ centers_cd.T).argmax(1)
        return clusters_n, boundary_ratio(embeddings_nd, clusters_n, centers_cd)


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
