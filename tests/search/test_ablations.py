"""The ablations of the paper: spaces that fit every preset, and `$preset` in a space."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from conr_ray.config import get_field, load_preset, preset_names
from conr_ray.engine.trunk_store import trunk_name
from conr_ray.errors import UserError
from conr_ray.metric_names import COST_METRICS, LABEL_FREE_METRICS, LABELLED_METRICS
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from conr_ray.searching.study import open_study
from conr_ray.searching.study_storage import journal_file
from conr_ray.searching.trial_table import Trial, to_arrow
from tests.search.test_plan import plan_of
from tests.search.test_space import FRACTION, K1, K2, START, K, refusal, space_of
from tests.tiny_runs import TINY, as_settings
from tests.waiting import HANG_S

SPACES = Path(__file__).parents[2] / "search_spaces"
FILES = sorted(SPACES.glob("ablation_*.yaml"))
KIND = "neighborhood.kind"
RELAX = "schedule.relax_epochs"


def points(space: SearchSpace) -> list[dict[str, Any]]:
    """All points of an ablation."""
    if space.sampler != "grid":
        return space.first_points()
    grid = space.grid()
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def loaded(name: str, preset: str | None = None, **fixed: Any) -> SearchSpace:
    dotted = {field.replace("__", "."): value for field, value in fixed.items()}
    return load_space(SPACES / f"ablation_{name}.yaml", dotted, preset)


# The files


# Heads on a frozen backbone have no instance stage, and contexts of another size.
@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "photos"])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_ablation_fits_every_preset(file: Path, preset: str) -> None:
    space = load_space(file, preset=preset)
    tried = points(space)
    assert space.trials == len(tried) == len({tuple(point.items()) for point in tried})
    assert space.scheduler is None and space.metric == "acc"
    own = load_preset(preset)
    assert all(get_field(own, name) in {p[name] for p in tried} for name in space.search)
    trunks = {}
    for point in tried:
        config = space.config(point)
        assert config.schedule == own.schedule.model_copy(
            update={"group_start": config.schedule.group_start}
        )
        trunks.setdefault(trunk_name(config, "the images"), set()).add(config.seed)
    assert sorted(map(tuple, trunks.values())) == [(0,), (1,), (2,)]
    assert space.num_trunks == 3


@pytest.mark.parametrize(("name", "saving"), [("fraction", 12 / 7), ("k1_k2", 32 / 17)])
def test_an_ablation_trains_one_instance_stage_for_each_seed(name: str, saving: float) -> None:
    space = loaded(name)
    plan = plan_of(space, space.trials)
    assert (plan.num_trunks, plan.num_checkpoints) == (3, 1)
    assert plan.saving == pytest.approx(saving)


def test_the_fractions_are_those_of_the_figure() -> None:
    counts = Counter(point[FRACTION] for point in points(loaded("fraction")))
    assert counts == dict.fromkeys([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], 3)


def test_every_k1_meets_every_k2() -> None:
    counts = Counter((point[K1], point[K2]) for point in points(loaded("k1_k2")))
    assert len(counts) == 16 and set(counts.values()) == {3}


def test_byol_is_trained_once_for_each_seed_and_evaluated_each_epoch() -> None:
    space = loaded("byol", "cifar10")
    methods = Counter((point[START], point[KIND]) for point in points(space))
    assert methods == {(800, "contextual"): 3, (800, "euclidean"): 3, ("never", "contextual"): 3}
    assert {space.config(point).evaluation.every for point in points(space)} == {1}
    assert loaded("byol", evaluation__every=10).config().evaluation.every == 10


def test_a_shorter_run_moves_the_start_of_the_group_stage() -> None:
    space = loaded("byol", schedule__epochs=20, schedule__group_start=12)
    assert {point[START] for point in points(space)} == {12, "never"}
    assert space.group_starts == {12}
    with pytest.raises(UserError, match=r"schedule\.group_start=30 is not before the end"):
        loaded("byol", schedule__epochs=20)


# $preset


@pytest.mark.parametrize(
    ("part", "read"),
    [
        ({"choice": ["$preset", "never"]}, {"choice": [30, "never"]}),
        ({"choice": [20, "$preset", 30]}, {"choice": [20, 30]}),
        ({"int": [20, "$preset"]}, {"int": [20, 30]}),
        ({"int": ["$preset", 30]}, {"int": [30, 30]}),
    ],
)
def test_the_presets_own_value_stands_in_a_space(
    tmp_path: Path, part: dict[str, Any], read: dict[str, Any]
) -> None:
    space = space_of(tmp_path, {START: part})
    tree = space.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert tree["search"] == {START: read}
    # What is kept of a search is a space that says the same.
    assert space_of(tmp_path, tree["search"]) == space


def test_a_fixed_value_stands_for_the_presets(tmp_path: Path) -> None:
    search = {START: {"choice": ["$preset", "never"]}, K1: {"int": [5, 20]}}
    own, given = {START: 30, K1: 10}, {START: 20, K1: 10}
    assert space_of(tmp_path, search).first_points() == [own]
    space = space_of(tmp_path, search, fixed={START: 20, "seed": 1})
    assert (space.search[START].choice, space.fixed) == ((20, "never"), {"seed": 1})
    assert space.first_points() == [given]
    more = space_of(tmp_path, search, fixed={START: 20}, first=[{K1: 7}, {START: "never"}])
    assert more.first_points() == [{START: 20, K1: 7}, {START: "never", K1: 10}]
    grid = {**search, K1: {"choice": [5, 10]}}
    assert space_of(tmp_path, grid, fixed={START: 20}, sampler="grid").first is None


def test_a_fixed_field_is_searched_only_where_the_space_names_the_preset(tmp_path: Path) -> None:
    search = {START: {"choice": ["$preset", "never"]}, K1: {"int": [5, 20]}}
    told = refusal(tmp_path, search, fixed={K1: 5})
    assert told.startswith(f"{K1} is both fixed (5) and searched: drop one")


@pytest.mark.parametrize(
    ("search", "more", "message"),
    [
        ({f"{K}0": {"choice": ["$preset"]}}, {}, "neighborhood.k0: no such field; did you mean"),
        ({START: {"choice": ["$preset"]}}, {"preset": "digit"}, "preset digit: no such preset; di"),
        ({START: {"choice": ["$preset"]}}, {"preset": 3}, "preset 3: no such preset; choose from"),
        ({K1: {"int": [20, "$preset"]}}, {}, f"search.{K1}: [20, 10] is empty: put the smaller b"),
        ({K1: {"int": [5, "$presets"]}}, {}, f"search.{K1}: its bound $presets is not searched"),
        ({START: {"choice": ["$preset"]}}, {"fixed": {START: 60}}, "schedule.group_start=60 is n"),
        ({START: {"choice": ["$preset"]}}, {"fixed": {START: 9}, "first": [3]}, "first.0: input"),
        (
            {START: ["$preset"]},
            {},
            f"search.{START}: ['$preset'] is no dimension: write {{choice: [$preset]}}",
        ),
    ],
)
def test_a_preset_value_that_cannot_be_is_refused(
    tmp_path: Path, search: Any, more: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, search, **more).startswith(message)


# A grid


def test_a_grid_need_not_hold_the_presets_values(tmp_path: Path) -> None:
    search = {FRACTION: {"choice": [0.5, 0.9]}, RELAX: {"choice": [0, 12]}}
    space = space_of(tmp_path, search, sampler="grid")
    config = space.config()
    assert (config.boundary.initial_fraction, config.schedule.relax_epochs) == (0.5, 12)
    study = open_study(space, journal_file(tmp_path / "study.journal"), "grid")
    assert study.get_trials() == []
    drawn = []
    for _ in range(4):
        trial = study.ask()
        drawn.append(space(trial))
        study.tell(trial, 0.5)
    assert {tuple(point.values()) for point in drawn} == {(0.5, 0), (0.5, 12), (0.9, 0), (0.9, 12)}
    told = refusal(tmp_path, search, sampler="grid", first=[{RELAX: 0}])
    assert told.startswith(f"search.{FRACTION}: the first trial's 0.8 is not one of 0.5, 0.9")


# The table


@pytest.mark.parametrize(
    ("choices", "column"),
    [
        ([30, "never"], ["30", "never", None]),
        ([30, 40], [30, 40, None]),
        ([1, 0.5], [1, 0.5, None]),
    ],
)
def test_a_choice_of_numbers_and_words_is_a_column(
    tmp_path: Path, choices: list[Any], column: list[Any]
) -> None:
    name = START if 30 in choices else FRACTION
    space = space_of(tmp_path, {name: {"choice": choices}}, first=[{name: choices[0]}])
    tried = [{name: choices[0]}, {name: choices[1]}, {}]
    trials = [replace(_TRIAL, number=place, point=point) for place, point in enumerate(tried)]
    assert to_arrow(trials, space).column(name).to_pylist() == column


_TRIAL = Trial(
    rows=[],
    trial_id="0000",
    number=0,
    state="complete",
    point={},
    values=(0.5,),
    in_pareto_set=False,
    parent=None,
    inherited_epochs=0,
    epochs=60,
    time_s=1.0,
    trunk_time_s=0.0,
    built_time_s=0.0,
    origin=None,
    figures=dict.fromkeys((*LABELLED_METRICS, *LABEL_FREE_METRICS, *COST_METRICS), 0.5),
)


# The command


@pytest.mark.slow
@pytest.mark.long
def test_the_command_runs_an_ablation_of_another_preset(tmp_path: Path) -> None:
    tree = yaml.safe_load((SPACES / "ablation_byol.yaml").read_text())
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump({**tree, "preset": "cifar10"}))
    arguments = ["--space", str(tmp_path / "ablation.yaml"), "--preset", "digits"]
    command = [sys.executable, "-m", "conr_ray.tune", *arguments, *as_settings(TINY)]
    runs = tmp_path / "runs"
    subprocess.run([*command, "--storage", str(runs)], check=True, timeout=HANG_S)
    (folder,) = runs.iterdir()
    assert folder.name.startswith("ablation-digits-")
    rows = pq.read_table(folder / "trials.parquet").to_pylist()
    methods = Counter((row[START], row[KIND]) for row in rows)
    assert methods == {("2", "contextual"): 3, ("2", "euclidean"): 3, ("never", "contextual"): 3}
    assert len({(row["seed"], row["trunk"]) for row in rows}) == 3
    assert len({row["trunk"] for row in rows}) == 3
    assert {row["forked_at"] for row in rows} == {2}
