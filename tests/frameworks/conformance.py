"""What every self-supervised framework has to do; a framework's tests inherit it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from conr_ray.config import RunConfig
from conr_ray.data.store import open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import Span
from conr_ray.engine.training_state import TrainingState
from conr_ray.engine.trunk import train_from_trunk
from conr_ray.engine.trunk_store import open_trunks
from conr_ray.method.collectives import share, world_size
from conr_ray.method.frameworks.base import Step
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.group import GroupStage
from conr_ray.method.stages.instance import InstanceStage
from conr_ray.method.stages.pairs import PairStage
from tests.engine.test_loop import assert_same_tensors
from tests.gloo_workers import run_workers
from tests.method.naive_reranking import unit_rows
from tests.tiny_runs import on_vectors, run_here, run_step_by_step, tiny_config, without_times

CPU = torch.device("cpu")
# Not divisible by 3.
BATCH, NUM_STEPS, NUM_CLUSTERS = 16, 3, 3

_APPLY = """
import json, sys
import numpy as np
from conr_ray import TrainedRun
run = TrainedRun.load(sys.argv[1])
clusters, ratios = run.assign(np.load(sys.argv[2]))
print(json.dumps([clusters.tolist(), ratios.tolist()]))
"""


class FrameworkConformance:
    """Sub-classes name a framework, and set fields of its own where tests are to be quick."""

    name: ClassVar[str]
    settings: ClassVar[dict[str, Any]] = {}
    # Of other sections, which the framework needs.
    needs: ClassVar[dict[str, Any]] = {}

    def config(self, **changes: Any) -> RunConfig:
        """A run of seconds on digits."""
        own = {f"{self.name}__{field}": value for field, value in self.settings.items()}
        return tiny_config(model__framework=self.name, **{**own, **changes, **self.needs})

    def test_workers_have_the_loss_gradients_and_state_of_one_process(self) -> None:
        config = self.config(
            optim__batch_size=BATCH,
            # Larger steps would make more of the rounding that workers differ by.
            optim__lr=0.05,
            neighborhood__k1=4,
            neighborhood__k=5,
            bank__size=24,
        )
        batches = [[torch.rand(BATCH, 1, 8, 8) for _ in range(2)] for _ in range(NUM_STEPS)]
        arguments = config.to_yaml(), batches, torch.randint(NUM_CLUSTERS, (BATCH,))
        alone = _steps(*arguments)
        for num_workers in (2, 3):
            by_worker = run_workers(_steps, num_workers, *arguments)
            for name, value in alone.items():
                values = [found[name] for found in by_worker]
                if name.startswith("loss"):
                    total = float(torch.stack(values).sum())
                    # Of a range from -2 to 2, or more.
                    assert total == pytest.approx(float(value), rel=1e-5, abs=2e-5), name
                    continue
                assert all(torch.equal(other, values[0]) for other in values), name
                # Before a batch normalisation a bias has no gradient but rounding errors.
                kind = name.partition(" ")[0]
                largest = max(float(v.abs().max()) for n, v in alone.items() if n.startswith(kind))
                scale = max(float(value.abs().max()), 0.03 * largest)
                error = float((values[0] - value).abs().max())
                assert error <= 1e-4 * scale, (num_workers, name, error, scale)

    def test_a_run_that_was_stopped_is_the_one_that_was_not(self, tmp_path: Path) -> None:
        config = self.config()
        whole = run_here(config, tmp_path / "whole")
        data, directory = open_data(config.data), RunDirectory(tmp_path / "stopped")
        for until in (1, 3, None):
            rows = train(config, data, directory, Observers(), CPU, Span(until=until))
        assert without_times(rows) == without_times(whole)
        assert {row["stage"] for row in rows} == {"instance", "group"}
        assert all(np.isfinite(float(row["loss"] or 0)) for row in rows)
        tables = [pq.read_table(tmp_path / n / "assignments.parquet") for n in ("whole", "stopped")]
        assert tables[0] == tables[1]

    def test_a_run_stopped_after_each_step_is_the_one_that_was_not(self, tmp_path: Path) -> None:
        config = self.config(schedule__epochs=3, schedule__group_start=1, evaluation__every=3)
        whole = run_here(config, tmp_path / "whole")
        rows, told = run_step_by_step(config, tmp_path / "stopped")
        places = [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4)]
        assert told == [f"stopped in epoch {e} after step {s} of 4" for e, s in places]
        assert without_times(rows) == without_times(whole)
        tables = [pq.read_table(tmp_path / n / "assignments.parquet") for n in ("whole", "stopped")]
        assert tables[0] == tables[1]
        states = [RunDirectory(tmp_path / n).load_checkpoint(3, CPU) for n in ("whole", "stopped")]
        assert_same_tensors(*states)
        # What was kept within an epoch is of no more use.
        assert RunDirectory(tmp_path / "stopped").checkpoints() == [(2, 0), (3, 0)]

    def test_a_fork_of_a_trunk_is_the_run_from_epoch_0(self, tmp_path: Path) -> None:
        config = self.config()
        whole = run_here(config, tmp_path / "whole")
        store = open_trunks(str(tmp_path / "trunks"), frozenset({2}), lambda name: None)  # type: ignore[arg-type, return-value]
        directory, data = RunDirectory(tmp_path / "fork"), open_data(config.data)
        rows = train_from_trunk(config, data, directory, Observers(), CPU, store)
        assert without_times(rows) == without_times(whole)
        assert json.loads((tmp_path / "fork" / "origin.json").read_text())["epoch"] == 2

    def test_no_labels_are_needed(self, tmp_path: Path) -> None:
        rows = run_here(self.config(data__label_column=None, clustering__num_clusters=7), tmp_path)
        assert "acc" not in rows[-1] and 0 <= float(rows[-1]["neighbor_consistency"] or 0) <= 1
        assert len(pq.read_table(tmp_path / "assignments.parquet")) == 300

    @pytest.mark.slow
    def test_another_process_assigns_as_the_run_did(self, tmp_path: Path) -> None:
        config = self.config()
        run_here(config, tmp_path)
        table = pq.read_table(tmp_path / "assignments.parquet")
        np.save(tmp_path / "rows.npy", open_data(config.data).rows)
        command = [sys.executable, "-c", _APPLY, str(tmp_path), str(tmp_path / "rows.npy")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        clusters, ratios = json.loads(told)
        assert clusters == table["cluster"].to_pylist()
        np.testing.assert_allclose(ratios, table["boundary_ratio"].to_numpy(), rtol=1e-4)

    def test_vectors_are_trained_on_as_images_are(self, tmp_path: Path) -> None:
        data = open_data(self.config().data)
        vectors = data.rows.reshape(len(data.rows), -1).astype(np.float32)
        config = self.config(**on_vectors(tmp_path / "vectors.parquet", vectors, data.labels))
        rows = run_here(config, tmp_path / "run")
        assert float(rows[-1]["acc"] or 0) > 0.2
        told = pq.read_table(tmp_path / "run" / "snapshot" / "pictures.parquet")
        assert told.num_rows == 0


def _smooth(network: nn.Module) -> None:
    """Without kinks: a rounding error turns a ReLU on or off now and then, whatever its size."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.GELU())


def _steps(text: str, batches: list[list[Tensor]], labels_n: Tensor) -> dict[str, Tensor]:
    """Steps of both stages as the training loop makes them: losses, gradients, last state."""
    from conr_ray.config import from_yaml

    torch.manual_seed(0)
    config, local, found = from_yaml(text, "the config"), share(BATCH), dict[str, Tensor]()
    for number, kind in enumerate(("instance", "group")):
        state = TrainingState.create(config, (1, 8, 8), Acceleration(CPU), NUM_CLUSTERS)
        _smooth(state.framework)
        framework, trained = state.framework, state.trained_module()
        grouped: Stage = GroupStage(state.bank)
        if config.neighborhood.pool == "data":
            grouped = PairStage(config.neighborhood)
        stage = grouped if kind == "group" else InstanceStage()
        width = framework.embedding_encoder.embedding_dim
        generator = torch.Generator().manual_seed(0)
        centers = unit_rows(torch.randn(NUM_CLUSTERS, width, generator=generator))
        for index, views in enumerate(batches):
            step = Step(
                number=index,
                num_steps=10,
                epoch=0,
                key=7 + index + number,
                positions_b=torch.arange(BATCH)[local],
                sample_ids_n=torch.arange(BATCH) + index * BATCH // 2,
                fraction=0.7,
                pseudo_labels_n=labels_n,
                centers_cd=centers,
            )
            outputs = trained([view[local] for view in views], step)
            loss, _ = stage.loss(framework, outputs, step)
            state.optimizer.zero_grad()
            torch.autograd.backward(loss * world_size())
            found[f"loss {kind} {index}"] = loss.detach()
            for name, parameter in framework.named_parameters():
                if parameter.grad is not None:
                    found[f"gradient {kind} {index} {name}"] = parameter.grad.clone()
            state.optimizer.step()
            framework.after_step(outputs, step)
        state_of = framework.state_dict().items()
        found |= {f"state {kind} {n}": v for n, v in state_of if v.is_floating_point()}
    return found
