"""The reader of YAML and of settings: YAML 1.2, types of fields, equal keys and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from conr_ray.config import (
    build,
    dump_yaml,
    from_yaml,
    get_field,
    load_preset,
    parse_overrides,
    parse_yaml,
    typed,
)
from conr_ray.errors import UserError
from conr_ray.searching.space_file import load_space
from conr_ray.searching.study import open_study
from conr_ray.searching.study_storage import journal_file


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse_yaml(text, "x.yaml")
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()
    return str(caught.value).removeprefix("x.yaml: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("5.", 5.0), ("+1.5e+2", 150.0)),
        *(("0o17", 15), ("0x1F", 31), ("010", 10), ("-3", -3), ("+3", 3)),
        *((".inf", float("inf")), ("-.Inf", float("-inf")), ("null", None), ("~", None)),
        *(("true", True), ("FALSE", False), ("yes", "yes"), ("no", "no"), ("off", "off")),
        *(("on", "on"), ("0b11", "0b11"), ("12:30", "12:30"), ("2024-13-45", "2024-13-45")),
        *(("tRue", "tRue"), ("1_000", "1_000"), ("'1'", "1"), ('"null"', "null"), ("nan", "nan")),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_without_a_declared_type_words_are_what_yaml_1_2_takes_them_for(
    text: str, value: Any
) -> None:
    (read,) = typed(parse_yaml(f"[{text}]", "x.yaml"))
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("text", ["2024", "1e5", "true", "0x10", "off", "1.50", "~x", "2024-01-01"])
def test_a_field_of_text_takes_words_as_they_are_written(text: str) -> None:
    tree = f"data: {{source: folder, path: {text}, classes: [{text}, null]}}"
    config = from_yaml(tree, "x.yaml")
    assert (config.data.path, config.data.classes) == (text, (text, "null"))
    words = [f"data.path={text}", f"data.classes=[{text}, null]", "data.source=folder"]
    assert build({}, parse_overrides(words)) == config
    assert from_yaml(config.to_yaml(), "itself") == config


@pytest.mark.parametrize("text", ["a #1", "[a]", "a: b", "@x", "*x", "{a}", "100%", "a, b", "!x"])
def test_a_setting_of_text_is_taken_whole(text: str) -> None:
    assert parse_overrides([f"data.path={text}"]) == {"data.path": text}


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("neighborhood.k1=1.5", "valid integer"),
        ("seed=true", "valid integer"),
        ("optim.lr=yes", "valid number"),
        ("optim.lr=.nan", "finite number"),
        ("seed=0x" + "f" * 5000, "valid integer"),
        ("optim.lr=" + "9" * 5000, "finite number"),
    ],
)
def test_a_word_of_another_type_is_refused(setting: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        load_preset("digits", parse_overrides([setting]))
    assert len(str(caught.value)) < 300


def test_numbers_and_null_are_read_where_they_are_declared() -> None:
    words = ["optim.lr=1e-3", "data.limit=0o1750", "clustering.num_clusters=~", "seed=1e2"]
    config = load_preset("digits", parse_overrides([*words, "schedule.group_start=never"]))
    found = [get_field(config, word.partition("=")[0]) for word in words]
    assert found == [1e-3, 1000, None, 100] and config.schedule.group_start == "never"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "a is set on line 1 and on line 3: keep one"),
        ("a: {b: 1,\n  'b': 2}", "a.b is set on line 1 and on line 2: keep one"),
        ("- {1: a, 1: b}", "1 is set on line 1 and on line 1: keep one"),
        ("[" * 400, "line 1: more than 32 levels deep: nest less"),
        (
            "a: &a [[[x]]]\n" + "b: " + "[" * 30 + "*a",
            "line 2: more than 32 levels deep: nest less",
        ),
        ("a: 1\n---\nb: 2", "line 2: a second document: keep one"),
        ("a: !!int 3", "line 1: has the tag tag:yaml.org,2002:int: leave tags out"),
        ("a: *b", "line 1: *b stands for nothing above it"),
        ("&a [*a]", "line 1: *a stands for nothing above it"),
        ("{[1]: 2}", "line 1: a key is a word, not ['1']"),
        ("x" * 300 + ": 2", "line 1: " + "x" * 80 + "..." + "x" * 20 + ": no key is that long"),
        ("x" * 2**21, "is longer than 1 MiB: shorten it"),
        ("[" + "1," * 2**17 + "1]", "line 1: too many values, with those of its aliases: have"),
        ("# nothing", "is empty: restore it, or write it anew"),
        ("a: [1", "not YAML: line 2: "),
        ("a: \udcff", "not YAML: "),
        ("a: \0", "not YAML: "),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_aliases_are_read_and_their_sizes_add_up() -> None:
    assert typed(parse_yaml("a: &x [1, 2]\nb: {c: *x}", "x.yaml")) == {
        "a": [1, 2],
        "b": {"c": [1, 2]},
    }
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 20)
    )
    assert refusal(bomb).endswith("too many values, with those of its aliases: have fewer")


def test_texts_that_look_like_numbers_are_written_in_quotes() -> None:
    tree = {"a": ["1e5", "0o17", "off", "null", "010", "1_0", "", "~", 1e-7, 1e300, 3, None, True]}
    assert typed(parse_yaml(dump_yaml(tree), "x.yaml")) == tree


# Search spaces


LISTS = """\
preset: digits
trials: 4
sampler: {sampler}
search:
  views.crop_scale: {{choice: [$preset, [0.5, 1], [1, 1]]}}
  model.widths: {{choice: [[16, 32, 64, 64], $preset]}}
  data.limit: {{choice: [null, 500]}}
  data.placement: {{choice: [device, host]}}
"""


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_lists_and_null_are_drawn_and_survive_the_journal(tmp_path: Path, sampler: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(LISTS.format(sampler=sampler))
    space, seen = load_space(file), set()
    for _ in range(8):
        # As a search that is resumed for each trial.
        study = open_study(space, journal_file(tmp_path / "journal"), "lists")
        point = space(trial := study.ask())
        config = space.config(point)
        seen.add((config.views.crop_scale, config.model.widths, config.data.limit))
        assert space.config(trial.params) == config
        study.tell(trial, 0.5)
    assert len(seen) > 3 and {len(s[0]) for s in seen} == {2}
    first = load_preset("digits")
    if sampler != "grid":
        assert (first.views.crop_scale, first.model.widths, None) in seen
    assert all(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)


def test_scientific_numbers_are_bounds_choices_and_first_points(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "preset: digits\n"
        "search: {optim.lr: {float: [1e-3, 1e-1]}, optim.weight_decay: {choice: [1e-5]}}\n"
        "first: [{optim.lr: 1e-2, optim.weight_decay: 1e-5}]\nfixed: {byol.momentum: 99e-2}\n"
    )
    space = load_space(file)
    assert space.search["optim.lr"].float_bounds == (1e-3, 1e-1)
    assert space.first_points() == [{"optim.lr": 1e-2, "optim.weight_decay": 1e-5}]
    assert get_field(space.config(), "byol.momentum") == 0.99


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("search: {schedule.group_start: {int: [1, 1000000000]}}", "group_start=1000000000 is not"),
        (
            "search: {schedule.group_start: {int: [1, 999999999]}}\n"
            "fixed: {schedule.epochs: 1000000000}",
            "search.schedule.group_start: 999999999 values, and a trunk keeps",
        ),
        ("search: {seed: {int: [0, 2147483647]}}\nsampler: grid", "would try 2147483648 points"),
        ("search: {seed: {int: [0, 2147483648]}}", "search.seed=2147483648: input should be less"),
        (
            "search: {optim.lr: {float: [0.1, 1]}}\nscheduler: {kind: pbt, interval_epochs: 1}\n"
            "fixed: {schedule.epochs: 1000000000, evaluation.every: 1}",
            "scheduler pbt would exchange states ",
        ),
    ],
)
def test_ranges_are_checked_before_they_are_enumerated(
    tmp_path: Path, rest: str, message: str
) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(f"preset: digits\n{rest}\n")
    with pytest.raises(UserError) as caught:
        load_space(file)
    assert message in str(caught.value)


def test_a_wide_range_that_is_allowed_takes_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("preset: digits\nsearch: {seed: {int: [0, 2147483647]}}\n")
    assert load_space(file).num_trunks == 2**31
