"""Compiled and plain programs agree, and a run keeps the precision that was chosen at its start."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from conr_ray.config import OptimConfig, RunConfig
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import open_data
from conr_ray.engine import precision
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.run import Run
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.span import WHOLE
from conr_ray.engine.training_state import TrainingState
from conr_ray.errors import FolderTaken, UserError
from conr_ray.method.collectives import rank
from conr_ray.method.frameworks import framework_names
from conr_ray.method.frameworks.base import Step
from conr_ray.method.stages.base import Stage
from conr_ray.method.stages.instance import InstanceStage
from tests.engine.test_loop import StopAfter, assert_same_tensors, final_state
from tests.gloo_workers import run_workers
from tests.tiny_runs import (
    framework_config,
    group_stage_of,
    run_here,
    tiny_config,
    train_step,
    without_times,
)

CPU = torch.device("cpu")
BATCH, STEPS = 64, 4


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def steps_and_embeddings(config: RunConfig, *, compiles: bool) -> tuple[list[float], Tensor]:
    """Losses of a few steps, the last ones of the group stage, and embeddings of 100 samples."""
    acceleration = Acceleration(CPU, compiles=compiles)
    data = open_data(config.data)
    state = TrainingState.create(config, data.row_shape, acceleration)
    inputs = make_inputs(config, data, CPU)
    inputs.compile(acceleration.compiled)
    embedder = Embedder(state.framework, inputs, acceleration)
    ids, labels, centers = torch.arange(BATCH), torch.arange(BATCH) % 10, torch.eye(16)[:10]
    centers = centers[:, : state.framework.embedding_encoder.embedding_dim]
    losses = []
    for number in range(STEPS):
        grouped = number >= STEPS // 2
        stage: Stage = group_stage_of(config, state) if grouped else InstanceStage()
        step = Step(number, STEPS, number, 5 + number, ids, ids + number, 0.8, labels, centers)
        batch = inputs.take(step.sample_ids_n)
        views = [inputs.random(batch, 9 * number + v, ids, mild=grouped) for v in (1, 2)]
        losses.append(float(train_step(state, stage, views, step)))
        if number == 0:
            embedder.plain(torch.arange(50))
    return losses, embedder.plain(torch.arange(100))


def assert_compiled_agrees(config: RunConfig) -> None:
    plain = steps_and_embeddings(config, compiles=False)
    compiled = steps_and_embeddings(config, compiles=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", framework_names())
def test_networks_and_views_are_traced_whole_and_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything but the code generation, which takes long.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert_compiled_agrees(framework_config(name))
    assert not counters["graph_break"]
    # Views of either strength; each part of the framework in training, what embeds also without.
    num_parts = 3 if name in ("byol", "propos") else 2
    assert counters["stats"]["unique_graphs"] == 2 + num_parts + 1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_code_agrees_with_plain_torch() -> None:
    assert_compiled_agrees(tiny_config())


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_networks_have_the_state_of_plain_ones() -> None:
    config = tiny_config()
    plain, compiled = (
        TrainingState.create(config, (1, 8, 8), Acceleration(CPU, compiles=compiles))
        for compiles in (False, True)
    )
    assert_same_tensors(plain.framework.state_dict(), compiled.framework.state_dict())


def test_nothing_is_compiled_on_a_cpu() -> None:
    assert not Acceleration.of(OptimConfig(precision="fp32"), CPU).compiles


def test_a_precision_that_the_device_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optim.precision=tf32: a CPU does not have it: set fp32"):
        run_here(tiny_config(optim__precision="tf32"), tmp_path)


def choose(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(precision, "best_precision", lambda *_: name)


def test_a_resumed_run_keeps_the_precision_chosen_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optim__precision="auto")
    choose(monkeypatch, "bf16")
    whole = run_here(config, tmp_path / "whole")
    directory = RunDirectory(tmp_path / "stopped")
    directory.claim(config, resume=False)
    with pytest.raises(KeyboardInterrupt):
        run_here(config, tmp_path / "stopped", StopAfter(1))
    choose(monkeypatch, "fp32")
    assert directory.check(config, resume=True)
    resumed = run_here(config, tmp_path / "stopped")
    assert without_times(resumed) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))
    kept = directory.read_config()
    assert kept is not None and kept.optim.precision == "bf16"
    with pytest.raises(FolderTaken, match=r"optim\.precision: bf16 -> fp32"):
        directory.check(tiny_config(optim__precision="fp32"), resume=True)


def _begin_and_go_on(folder: str) -> str:
    """A run that is begun, and begun again as if a worker had died before the first checkpoint."""
    config, directory = tiny_config(optim__precision="auto"), RunDirectory(folder)
    if rank() == 0:
        directory.claim(config, resume=False)
    precisions = []
    for _ in range(2):
        run = Run(config, open_data(config.data), directory, CPU, WHOLE)
        precisions.append(run.config.optim.precision)
    assert len(set(precisions)) == 1
    return precisions[0]


def test_workers_restarted_before_a_checkpoint_agree_on_what_was_chosen(tmp_path: Path) -> None:
    assert len(set(run_workers(_begin_and_go_on, 2, str(tmp_path)))) == 1
    kept = RunDirectory(tmp_path).read_config()
    assert kept is not None and kept.optim.precision != "auto"


def test_bfloat16_is_chosen_only_where_it_is_faster_and_alike_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optim__precision="auto")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert precision.best_precision(config, (1, 8, 8), CPU) == "fp32"
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    # Decided by a clock: one in which a pass in the other precision takes twice as long.
    for slow, chosen in ((torch.bfloat16, "fp32"), (torch.float32, "bf16")):
        now = 0.0

        def clock(slow: torch.dtype = slow) -> float:
            nonlocal now
            in_bf16 = torch.is_autocast_enabled("cpu")
            now += 2.0 if in_bf16 == (slow == torch.bfloat16) else 1.0
            return now

        monkeypatch.setattr(precision.time, "perf_counter", clock)
        monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / chosen))
        assert precision.best_precision(config, (1, 8, 8), CPU) == chosen
    # The other answer was found first on this machine.
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "fp32"))
    assert precision.best_precision(config, (1, 8, 8), CPU) == "fp32"
