"""Training steps as the loop makes them, for timing and counting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import RunConfig
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.training_state import TrainingState, neighborhood_of
from conr_ray.method.frameworks.base import Framework, Step
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.instance import InstanceStage
from conr_ray.method.stages.pairs import PairStage


class Stepper:
    """Networks of `config` on a device, trained step by step on the first rows of a data set."""

    def __init__(
        self, config: RunConfig, data: DataSet, how: Acceleration, *, grouped: bool
    ) -> None:
        self.config, self.how, self.grouped = config, how, grouped
        self.state = TrainingState.create(config, data.row_shape, how)
        self.framework: Framework[Any] = self.state.framework
        self.inputs = make_inputs(config, data, how.device)
        self.inputs.compile(how.compiled)
        self.stage: Stage = self._group_stage(data.num_rows) if grouped else InstanceStage()
        self._ids_n = torch.arange(config.optim.batch_size, device=how.device)

    def _group_stage(self, num_rows: int) -> Stage:
        """With neighbours in all data, if need be those that the drawn weights find."""
        if self.config.neighborhood.pool == "batch":
            return GroupStage(self.state.bank)
        stage = PairStage(self.config.neighborhood.kind)
        embedder = Embedder(self.framework, self.inputs, self.how)
        near = neighborhood_of(self.config)
        stage.find(DataNeighbors(near, lambda: embedder.plain(torch.arange(num_rows)), num_rows))
        return stage

    def fill_bank(self) -> None:
        """Fill the memory bank with random rows; their ids are not those of the batch."""
        size, num_rows, how = self.config.bank.size, len(self._ids_n), self.how
        for place in range(-(-size // num_rows)):
            keys = torch.randn(num_rows, self.config.model.embedding_dim, device=how.device)
            self.state.bank.find([normalize(keys)], self._ids_n + (place + 1) * num_rows)

    def views(self) -> list[Tensor]:
        """Two views of the batch."""
        batch = self.inputs.take(self._ids_n)
        return [self.inputs.random(batch, key, self._ids_n, mild=self.grouped) for key in (11, 12)]

    def train(self, views: list[Tensor], step: Step) -> Tensor:
        """One step; returns the loss."""
        with self.how.autocast():
            outputs = self.framework(views, step)
        loss, _ = self.stage.loss(self.framework, outputs, step)
        self.state.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.state.optimizer.step()
        self.framework.after_step(outputs, step)
        return loss.detach()


def step_of(device: torch.device, batch_size: int, width: int, number: int = 3) -> Step:
    """A step with pseudo-labels, of samples 0 to n - 1."""
    ids = torch.arange(batch_size, device=device)
    centers = normalize(torch.randn(10, width, generator=torch.Generator().manual_seed(4)))
    labels = (torch.arange(batch_size) % 10).to(device)
    return Step(number, 100, 60, 7, ids, ids, 0.8, labels, centers.to(device))
