"""Search spaces: what is drawn, which files are refused, and how bounds depend on each other."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conr_ray.config import get_field, load_preset
from conr_ray.errors import UserError
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.yaml"))
K1, K2, K = "neighborhood.k1", "neighborhood.k2", "neighborhood.k"
LR, FRACTION, START = "optim.lr", "boundary.initial_fraction", "schedule.group_start"


def space_of(folder: Path, search: Any, **more: Any) -> SearchSpace:
    """The space of a file with this search section."""
    file = folder / "space.yaml"
    file.write_text(yaml.safe_dump({"preset": "digits", "search": search, **more}))
    return load_space(file)


def refusal(folder: Path, search: Any, **more: Any) -> str:
    """The one line that a user of this file is told, without its path."""
    with pytest.raises(UserError) as caught:
        space_of(folder, search, **more)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"space {folder}/space.yaml: ", "")


def draws(space: SearchSpace, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Points that Optuna draws at random; its warnings are errors."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [space(study.ask()) for _ in range(count)]


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


# Draws


def test_ints_reach_both_bounds_and_nothing_else(tmp_path: Path) -> None:
    space = space_of(tmp_path, {K1: {"int": [8, 12]}})
    assert {point[K1] for point in draws(space, 300)} == {8, 9, 10, 11, 12}


def test_stepped_ints_start_at_the_low_bound_and_stay_below_the_high_one(tmp_path: Path) -> None:
    space = space_of(tmp_path, {K1: {"int": [4, 11], "step": 3}})
    assert {point[K1] for point in draws(space, 300)} == {4, 7, 10}


def test_stepped_floats_lie_on_the_grid(tmp_path: Path) -> None:
    space = space_of(tmp_path, {FRACTION: {"float": [0.6, 0.97], "step": 0.1}})
    drawn = sorted({point[FRACTION] for point in draws(space, 300)})
    assert drawn == pytest.approx([0.6, 0.7, 0.8, 0.9])


def test_floats_stay_within_their_bounds(tmp_path: Path) -> None:
    space = space_of(tmp_path, {LR: {"float": [0.05, 0.15]}})
    drawn = [point[LR] for point in draws(space, 300)]
    assert 0.05 <= min(drawn) < 0.06 and 0.14 < max(drawn) <= 0.15


def test_log_draws_as_many_values_in_each_decade(tmp_path: Path) -> None:
    space = space_of(tmp_path, {LR: {"float": [1e-4, 1], "log": True}})
    drawn = [point[LR] for point in draws(space, 800)]
    assert min(drawn) >= 1e-4 and max(drawn) <= 1
    for decade in (1e-4, 1e-3, 1e-2, 1e-1):
        assert 150 < sum(decade <= value < 10 * decade for value in drawn) < 250


def test_logarithmic_ints_stay_within_their_bounds(tmp_path: Path) -> None:
    space = space_of(tmp_path, {K1: {"int": [2, 100], "log": True}})
    drawn = [point[K1] for point in draws(space, 400)]
    assert min(drawn) == 2 and 90 < max(drawn) <= 100
    assert 140 < sum(value < 14 for value in drawn) < 260


def test_choices_are_all_drawn_with_their_types(tmp_path: Path) -> None:
    search = {START: {"choice": [30, "never"]}, "bank.sharded": {"choice": [False, True]}}
    points = draws(space_of(tmp_path, search), 100)
    assert {type(point[START]) for point in points} == {int, str}
    assert {point["bank.sharded"] for point in points} == {False, True}


def test_a_range_of_one_value_is_drawn(tmp_path: Path) -> None:
    assert draws(space_of(tmp_path, {K1: {"int": [10, 10]}}), 3) == [{K1: 10}] * 3


# Bounds that name fields


def test_k2_never_exceeds_k1(tmp_path: Path) -> None:
    # Written the wrong way round: the order follows the bounds.
    space = space_of(tmp_path, {K2: {"int": [1, K1]}, K1: {"int": [2, 20]}})
    assert space.order == [K1, K2]
    points = draws(space, 500)
    assert all(1 <= point[K2] <= point[K1] for point in points)
    assert any(point[K2] == point[K1] for point in points)
    assert all(space.config(point).neighborhood.k2 == point[K2] for point in points[:20])


@pytest.mark.parametrize("corner", [(2, 1), (2, 2), (20, 1), (20, 20)])
def test_the_corners_of_k1_and_k2_are_runs(tmp_path: Path, corner: tuple[int, int]) -> None:
    space = space_of(tmp_path, {K2: {"int": [1, K1]}, K1: {"int": [2, 20]}})
    fixed = optuna.trial.FixedTrial({K1: corner[0], K2: corner[1]})
    assert space.config(space(fixed)).neighborhood.k2 == corner[1]


def test_a_chain_of_bounds_is_drawn_from_its_end(tmp_path: Path) -> None:
    search = {K2: {"int": [1, K1]}, K1: {"int": [2, K]}, K: {"int": [2, 40]}}
    space = space_of(tmp_path, search)
    assert space.order == [K, K1, K2]
    assert all(1 <= p[K2] <= p[K1] <= p[K] <= 40 for p in draws(space, 300))


def test_a_low_bound_can_name_a_field(tmp_path: Path) -> None:
    space = space_of(tmp_path, {K: {"int": [K1, 60]}, K1: {"int": [2, 40]}})
    assert all(point[K1] <= point[K] <= 60 for point in draws(space, 200))


def test_a_bound_can_name_a_choice_of_numbers(tmp_path: Path) -> None:
    space = space_of(tmp_path, {K1: {"choice": [5, 10]}, K2: {"int": [1, K1]}})
    assert all(point[K2] <= point[K1] for point in draws(space, 100))


def test_steps_fit_below_a_bound_that_is_drawn(tmp_path: Path) -> None:
    search = {K1: {"int": [5, 20]}, K2: {"int": [1, K1], "step": 3}}
    space = space_of(tmp_path, search, first=[{K2: 4}])
    assert all(p[K2] in range(1, p[K1] + 1, 3) for p in draws(space, 200))


@settings(max_examples=25, deadline=None)
@given(
    k1=st.tuples(st.integers(1, 40), st.integers(0, 80)),
    low=st.integers(1, 40),
    kind=st.sampled_from([{}, {"log": True}, {"step": 2}]),
    first=st.data(),
    seed=st.integers(0, 1000),
)
def test_any_space_with_k2_bounded_by_k1_draws_runs_only(
    tmp_path_factory: pytest.TempPathFactory,
    k1: tuple[int, int],
    low: int,
    kind: dict[str, Any],
    first: st.DataObject,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("space")
    bottom, top = k1[0], k1[0] + k1[1]
    search = {K2: {"int": [low, K1], **kind}, K1: {"int": [bottom, top], **kind}}
    if low > bottom:
        # k1 may be drawn below what k2 starts at.
        assert "k2" in refusal(folder, search, first=[{K1: bottom, K2: bottom}])
        return
    start = first.draw(st.sampled_from(range(bottom, top + 1, kind.get("step", 1))))
    space = space_of(folder, search, first=[{K1: start, K2: low}])
    for point in [*space.first_points(), *draws(space, 20, seed)]:
        near = space.config(point).neighborhood
        assert low <= near.k2 <= near.k1 and bottom <= near.k1 <= top


# Files


@pytest.mark.parametrize("file", SPACES, ids=lambda file: file.stem)
def test_a_space_of_the_project_loads_and_starts_with_the_preset(file: Path) -> None:
    space = load_space(file)
    first, preset = space.config(), load_preset(space.preset)
    for name in (K1, K2, K, FRACTION):
        assert get_field(first, name) == get_field(preset, name)
    for point in draws(space, 20):
        space.config(point)


def test_there_is_a_space_to_start_with() -> None:
    assert "digits" in [file.stem for file in SPACES]


def test_the_command_line_adds_fixed_fields(tmp_path: Path) -> None:
    space_of(tmp_path, {K1: {"int": [5, 20]}}, fixed={"schedule.epochs": 50, "seed": 1})
    space = load_space(tmp_path / "space.yaml", {"seed": 2})
    config = space.config({K1: 7})
    assert (config.schedule.epochs, config.seed, config.neighborhood.k1) == (50, 2, 7)
    with pytest.raises(UserError, match="both fixed"):
        load_space(tmp_path / "space.yaml", {K1: 7})


def test_first_points_are_completed_from_the_preset(tmp_path: Path) -> None:
    search = {K1: {"int": [5, 20]}, K: {"int": [5, 20]}}
    assert space_of(tmp_path, search).first_points() == [{K1: 10, K: 10}]
    space = space_of(tmp_path, search, first=[{K1: 6}, {K: 7}])
    assert space.first_points() == [{K1: 6, K: 10}, {K1: 10, K: 7}]


def test_a_metric_has_its_direction(tmp_path: Path) -> None:
    search = {K1: {"int": [5, 20]}}
    assert space_of(tmp_path, search).direction == "max"
    assert space_of(tmp_path, search, metric="loss").direction == "min"
    assert space_of(tmp_path, search, metric="loss", mode="max").direction == "max"


def test_a_pickled_space_draws_the_same(tmp_path: Path) -> None:
    search = {K2: {"int": [1, K1]}, K1: {"int": [2, 20]}, LR: {"float": [0.05, 1], "log": True}}
    space = space_of(tmp_path, search, fixed={"seed": 1})
    copy = pickle.loads(pickle.dumps(space))
    assert copy == space
    assert draws(copy, 50) == draws(space, 50)
    assert copy.first_points() == space.first_points()


REFUSALS: list[tuple[Any, dict[str, Any], str]] = [
    # Fields
    ({"neighbourhood.k1": {"int": [1, 2]}}, {}, "neighbourhood.k1: no such field; did you mean ne"),
    ({K1: {"int": [5, 20]}}, {"fixed": {K1: 5}}, f"{K1} is both fixed (5) and searched: drop one"),
    ({K1: {"int": [5, 20]}}, {"fixed": {f"{K}3": 5}}, "neighborhood.k3: no such field; did you me"),
    ({K1: {"int": [5, 20]}}, {"fixed": 3}, "fixed=3 is not a mapping of fields to values"),
    ({K1: {"int": [5, 20]}}, {"fixed": ["seed"]}, "fixed=['seed'] is not a mapping"),
    # Ranges
    ({K1: {"int": [20, 5]}}, {}, f"search.{K1}: [20, 5] is empty: put the smaller bound first"),
    ({K1: {"int": [5]}}, {}, f"search.{K1}.int: [5]: bounds are two: [low, high]"),
    ({K1: {"int": 5}}, {}, f"search.{K1}.int: 5: bounds are two: [low, high]"),
    ({K1: {"int": [5, 10, 20]}}, {}, f"search.{K1}.int: [5, 10, 20]: bounds are two: [low, hi"),
    ({K1: {"int": [5.5, 20]}}, {}, f"search.{K1}.int.0.int: input should be a valid integer"),
    ({LR: {"float": [0.1, float("inf")]}}, {}, f"search.{LR}.float.1.float: input should be a fin"),
    ({LR: {"float": [0, 1], "log": True}}, {}, f"search.{LR}: low=0.0 must be above 0 for log"),
    (
        {K1: {"int": [5, 20]}, K2: {"int": [0, K1], "log": True}},
        {},
        f"search.{K2}: low=0 must be above 0 for log",
    ),
    ({LR: {"float": [0.1, 1], "log": True, "step": 0.1}}, {}, f"search.{LR}: log and step exclude"),
    ({K1: {"int": [5, 20], "step": 0.5}}, {}, f"search.{K1}: step=0.5 of an int must be whole"),
    ({K1: {"int": [5, 20], "step": 0}}, {}, f"search.{K1}.step: input should be greater than 0"),
    ({K1: {}}, {}, f"search.{K1}: give exactly one of int: [low, high], float: [low, high], choi"),
    ({K1: {"choice": []}}, {}, f"search.{K1}: give exactly one of int"),
    ({K2: {"int": [1, K1]}, K1: {"step": 1}}, {}, f"search.{K1}: give exactly one of int"),
    ({K1: {"int": [5, 9], "choice": [5]}}, {}, f"search.{K1}: give exactly one of int"),
    ({K1: {"choice": [10], "log": True}}, {}, f"search.{K1}: a choice has no step and no log"),
    ({K1: {"choice": [[1, 2]]}}, {}, f"search.{K1}.choice.0.bool: a choice is a list of values of"),
    ({K1: {"choice": [10, None]}}, {}, f"search.{K1}=None: input should be a valid integer"),
    ({K1: {"choice": [10, 1.5]}}, {}, f"search.{K1}=1.5: input should be a valid integer"),
    ({K1: {"int": [0, 20]}}, {}, f"search.{K1}=0: input should be greater than or equal to 1"),
    ({"model.widths": {"choice": [[8, 0]]}}, {}, "search.model.widths=0: input should be greater"),
    ({"views.crop_scale": {"float": [0.1, 1]}}, {}, "search.views.crop_scale=0.1: input should be"),
    ({LR: {"float": [0, 1], "step": 1e-300}}, {}, f"search.{LR}=0.0: input should be greater than"),
    ({LR: {"float": [1, 2], "step": 1e-300}}, {}, f"search.{LR}: step=1e-300: too small for the r"),
    ({K1: {"inT": [5, 20]}}, {}, f"search.{K1}.inT: no such key; did you mean int?"),
    ({K1: {"range": [5, 20]}}, {}, f"search.{K1}.range: no such key; choose from int, float, cho"),
    ({K1: 10}, {}, f"search.{K1}: 10 is no dimension: write {{int: [low, high]}}, {{float: [low"),
    ({K1: [5, 20]}, {}, f"search.{K1}: [5, 20] is no dimension: write {{int: [5, 20]}}, or {{choi"),
    ({LR: [0.1, 1]}, {}, f"search.{LR}: [0.1, 1] is no dimension: write {{float: [0.1, 1]}}, or "),
    (
        {K1: [5, 9, 20]},
        {},
        f"search.{K1}: [5, 9, 20] is no dimension: write {{choice: [5, 9, 20]}}",
    ),
    # Bounds that name fields
    ({K2: {"int": [1, K1]}}, {}, f"search.{K2}: its bound {K1} is not searched: give a number"),
    ({K1: {"int": [2, K2]}, K2: {"int": [1, K1]}}, {}, f"search.{K1}: circular bounds"),
    ({K1: {"int": [2, K1]}}, {}, f"search.{K1}: circular bounds: replace one by a number"),
    (
        {START: {"choice": [30, "never"]}, K1: {"int": [1, START]}},
        {},
        f"search.{K1}: its bound {START} is one of 30, never: give a number instead",
    ),
    ({LR: {"float": [0.1, 9]}, K1: {"int": [LR, 20]}}, {}, f"search.{K1}: its bound {LR} is float"),
    # The first trial
    ({K1: {"int": [11, 20]}}, {}, f"search.{K1}: the first trial's 10 is not int in [11, 20]: wid"),
    ({K1: {"choice": [5, 20]}}, {}, f"search.{K1}: the first trial's 10 is not one of 5, 20: wide"),
    ({K1: {"int": [5, 20], "step": 2}}, {}, f"search.{K1}: the first trial's 10 is not int in [5,"),
    ({K1: {"int": [5, 20]}}, {"first": [{K: 5}]}, f"first: {K}=5 is not searched: move it to fix"),
    ({K1: {"int": [5, 20]}}, {"first": [{f"{K}0": 5}]}, "neighborhood.k0: no such field; did you"),
    ({K1: {"int": [5, 20]}}, {"first": []}, "first: tuple should have at least 1 item"),
    *(
        (
            {K1: {"int": [5, 20]}},
            {"first": [{K1: value}]},
            f"search.{K1}: the first trial's {value}",
        )
        for value in (21, 5.5, None, "true", "ten", [10], float("inf"), float("nan"))
    ),
    # Points that cannot run
    ({K: {"int": [10, 129]}}, {}, f"the space has points that cannot run: {K}=129 exceeds the nei"),
    (
        {"optim.batch_size": {"int": [16, 256]}, K: {"int": [5, 17]}},
        {},
        f"the space has points that cannot run: {K}=17 exceeds the neighbour pool of 16 rows",
    ),
    ({K1: {"int": [5, 20]}}, {"fixed": {K2: 6}}, "the space has points that cannot run: neighbor"),
    ({K1: {"int": [5, 20]}, K: {"int": [K1, 15]}}, {}, "the space has points that cannot run: sea"),
    (
        {START: {"int": [30, 60]}},
        {},
        f"the space has points that cannot run: {START}=60 is not bef",
    ),
    # How it is searched
    ({K1: {"int": [5, 20]}}, {"sampler": "tp"}, "sampler: 'tp': 'tpe', 'cmaes', 'gp', 'random' or"),
    ({K1: {"int": [5, 20]}}, {"scheduler": {"kind": "pb"}}, "scheduler.kind: 'pb': 'asha', 'hyper"),
    ({LR: {"float": [0.1, 1]}}, {"sampler": "grid"}, f"search.{LR}: sampler grid needs a choice, "),
    (
        {K1: {"int": [5, 20]}},
        {"metric": ["nmi", "train_time_s"], "scheduler": {"kind": "asha"}},
        "scheduler asha needs a single metric: leave it out, or give one metric",
    ),
    (
        {K1: {"int": [5, 20]}},
        {"metric": ["nmi", "acc"], "sampler": "cmaes"},
        "sampler cmaes needs a single metric: choose tpe, gp, random or grid",
    ),
    ({K1: {"int": [5, 20]}}, {"metric": ["nmi", "f1"]}, "metric=f1: unknown; choose from"),
    ({K1: {"int": [5, 20]}}, {"metric": ["nmi", "nmi"]}, "metric=['nmi', 'nmi'] has a duplicate:"),
    ({K1: {"int": [5, 20]}}, {"metric": []}, "metric: tuple should have at least 1 item"),
    ({K1: {"int": [5, 20]}}, {"mode": ["max", "min"]}, "mode: give one for each metric, or leave"),
    (
        {K1: {"int": [5, 20]}},
        {"scheduler": {"kind": "median", "grace_epochs": 80}},
        "scheduler.grace_epochs=80 leaves nothing to stop or exchange: lower it below schedule.ep",
    ),
    *(
        ({K1: {"int": [5, 20]}, **search}, {"metric": "neighbor_purity", **more}, message)
        for message in ("metric=neighbor_purity: a run without a group stage does not report it:",)
        for search, more in (
            ({}, {"fixed": {START: "never"}}),
            ({START: {"choice": [30, "never"]}}, {}),
        )
    ),
    # Populations
    (
        {START: {"int": [20, 30]}},
        {"scheduler": {"kind": "pbt"}},
        f"search.{START} cannot change during a run, which scheduler pbt requires: fix it, or ch",
    ),
    (
        {K1: {"int": [5, 20]}},
        {"scheduler": {"kind": "pb2"}, "trials": 1},
        "scheduler pb2 needs a population: set trials to 2 or more",
    ),
    (
        {K1: {"int": [5, 20]}},
        {"scheduler": {"kind": "pbt"}, "sampler": "tpe"},
        "sampler tpe: scheduler pbt draws its first points at random: leave it out",
    ),
    (
        {K1: {"int": [5, 20]}},
        {"scheduler": {"kind": "pbt", "grace_epochs": 60}},
        "scheduler.grace_epochs=60 leaves nothing to stop or exchange: lower it below schedule.ep",
    ),
    (
        {LR: {"float": [0.05, 1]}},
        {"scheduler": {"kind": "pbt", "grace_epochs": 7}, "fixed": {START: "never"}},
        "scheduler pbt: no evaluation after epoch 7: make grace_epochs and interval_epochs mul",
    ),
    # The rest of the file
    ({K1: {"int": [5, 20]}}, {"metric": "f1"}, "metric=f1: unknown; choose from acc, n"),
    ({K1: {"int": [5, 20]}}, {"mode": "maximum"}, "mode: input should be 'max' or 'min'"),
    ({K1: {"int": [5, 20]}}, {"trials": 0}, "trials: input should be greater than or equal to 1"),
    ({K1: {"int": [5, 20]}}, {"trails": 4}, "trails: no such key; did you mean trials?"),
    ({K1: {"int": [5, 20]}}, {"preset": "digit"}, "preset digit: no such preset; did you mean dig"),
    ({}, {}, "search: no field is searched: add one, such as neighborhood.k1"),
    (
        {K1: {"int": [5, 20]}},
        {"scheduler": {"grace": 3}},
        "scheduler.grace: no such key; choose from ki",
    ),
    (None, {}, "search: input should be a mapping of fields, such as search: {neighborhood.k1: "),
]


@pytest.mark.parametrize(("search", "more", "message"), REFUSALS)
def test_a_space_that_cannot_work_is_refused(
    tmp_path: Path, search: Any, more: dict[str, Any], message: str
) -> None:
    assert refusal(tmp_path, search, **more).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"preset: digits\nserch: {seed: {int: [0, 9]}}",
            "serch: no such key; did you mean search?",
        ),
        (b"preset: digits", "search: missing: give the fields to search, such as search: {neighbo"),
        (
            b"search: {seed: {int: [0, 9]}}",
            "preset: missing: name the preset to vary, such as preset: digits",
        ),
        (b"- preset", "a space is a mapping with preset and search"),
        (b"", "is empty: restore it, or write it anew"),
        (b"preset: [", "not YAML: "),
        (b"preset: a\npreset: b", "preset is set on line 1 and on line 2: keep one"),
        (b"search: {seed: {int: [0, 9], int: [1, 2]}}", "search.seed.int is set on line 1 and on"),
        (b"\xff\xfe\x00", "not a text file; see search_spaces/"),
        (None, "No such file or directory; see search_spaces/"),
    ],
)
def test_a_file_that_is_no_space_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "space.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_space(file)
    assert str(caught.value).startswith(f"space {file}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "fixed", "grace"),
    [
        ({"schedule.group_start": {"int": [20, 40]}}, {}, 45),
        ({"schedule.group_start": {"choice": [30, 36, "never"]}}, {}, 42),
        ({"neighborhood.k1": {"int": [5, 20]}}, {}, 37),
        ({"optim.lr": {"float": [0.01, 0.2]}}, {"schedule.group_start": "never"}, 15),
    ],
)
def test_no_trial_is_stopped_before_all_group_stages_have_started(
    tmp_path: Path, search: dict[str, Any], fixed: dict[str, Any], grace: int
) -> None:
    file = tmp_path / "space.yaml"
    tree = {"preset": "digits", "search": search, "fixed": {**fixed, "schedule.epochs": 60}}
    file.write_text(yaml.safe_dump(tree))
    assert load_space(file).grace_epochs == grace


def test_the_starts_of_group_stages_and_the_number_of_trunks(tmp_path: Path) -> None:
    def space(search: Any) -> SearchSpace:
        return space_of(tmp_path, search, first=[{name: 30 for name in search if name == START}])

    stepped = space({START: {"int": [20, 43], "step": 10}})
    assert (stepped.group_starts, stepped.num_trunks) == (frozenset({20, 30, 40}), 1)
    assert space({START: {"choice": [30, "never", 0]}}).group_starts == frozenset({30})
    assert space({K1: {"int": [5, 20]}}).group_starts == frozenset({30})
    relax = "schedule.relax_epochs"
    bound = space({relax: {"int": [0, 25]}, START: {"int": [relax, 30]}})
    assert bound.group_starts == frozenset(range(1, 31))
    two = {LR: {"choice": [0.1, 0.2]}, "seed": {"int": [0, 2]}, K1: {"int": [5, 20]}}
    assert space(two).num_trunks == 6
    assert space({LR: {"float": [0.1, 0.2]}}).num_trunks is None


def test_members_that_exchange_before_their_group_stage_share_no_trunk(tmp_path: Path) -> None:
    for interval, count in ((10, 0), (40, 1)):
        scheduler = {"kind": "pbt", "grace_epochs": interval, "interval_epochs": 10}
        space = space_of(tmp_path, {K1: {"int": [5, 20]}}, scheduler=scheduler)
        assert space.num_trunks == count


def test_a_scheduler_may_be_a_word(tmp_path: Path) -> None:
    by_word = space_of(tmp_path, {K1: {"int": [5, 20]}}, scheduler="median")
    assert by_word == space_of(tmp_path, {K1: {"int": [5, 20]}}, scheduler={"kind": "median"})


def test_a_grace_that_ends_before_a_group_stage_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    search = {"schedule.group_start": {"int": [20, 40]}}
    tree = {"preset": "digits", "search": search, "scheduler": {"grace_epochs": 30}}
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError, match=r"scheduler\.grace_epochs=30 .* raise it above 40"):
        load_space(file)
