from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.training_state import TrainingState
from conr_ray.searching.known_data import known_data
from conr_ray.searching.plan import Plan
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from tests.search.test_space import K1, LR, START, space_of

SPACES = Path(__file__).parents[2] / "search_spaces"


def plan_of(space: SearchSpace, num_trials: int, *, shared: bool = True) -> Plan:
    return Plan.of(space, known_data(space), num_trials, shared=shared)


def test_a_plan_counts_the_epochs_of_trunks_and_trials(tmp_path: Path) -> None:
    space = space_of(tmp_path, {START: {"int": [20, 40], "step": 10}, "seed": {"choice": [0, 1]}})
    plan = plan_of(space, 10)
    assert (plan.num_trunks, plan.num_checkpoints) == (2, 3)
    assert (plan.trunk_epochs, plan.fork_epochs, plan.unshared_epochs) == (80, 300, 600)
    assert plan.saving == pytest.approx(600 / 380)


def test_without_trunks_every_trial_trains_all_its_epochs(tmp_path: Path) -> None:
    endless = space_of(tmp_path, {LR: {"float": [0.1, 1.0]}})
    never = space_of(tmp_path, {START: {"choice": [0, "never"]}}, first=[{START: "never"}])
    for plan in (
        plan_of(never, 10),
        plan_of(endless, 10),
        plan_of(space_of(tmp_path, {K1: {"int": [5, 20]}}), 10, shared=False),
    ):
        assert (plan.num_trunks, plan.epochs, plan.saving) == (0, 600, 1)


def test_a_run_without_a_group_stage_forks_at_the_end_of_the_trunk(tmp_path: Path) -> None:
    space = space_of(tmp_path, {START: {"choice": [30, "never"]}})
    assert plan_of(space, 4).fork_epochs == 4 * 30


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_spaces_of_the_paper_save_four_fifths(name: str) -> None:
    space = load_space(SPACES / f"{name}.yaml")
    assert plan_of(space, space.trials).saving >= 4


@pytest.mark.parametrize("preset", ["digits", "cifar10", "stl10"])
def test_the_size_of_a_checkpoint_is_about_right(tmp_path: Path, preset: str) -> None:
    space = space_of(tmp_path, {K1: {"int": [5, 10]}}, preset=preset, fixed={})
    data = known_data(space)
    state = TrainingState.create(space.config(), data.row_shape, Acceleration(torch.device("cpu")))
    framework = state.framework
    kept = [
        *framework.state_dict().values(),
        *(p for group in framework.param_groups() for p in group.parameters),
    ]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    num_bytes += 8 * data.num_rows
    planned_mib = Plan.of(space, data, 4, shared=True).checkpoint_mib
    assert planned_mib == pytest.approx(num_bytes / 2**20, rel=0.01)
