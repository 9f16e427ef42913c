"""The config tree: types, rules between fields, overrides, YAML and messages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conr_ray.config import (
    RunConfig,
    all_field_names,
    build,
    check_field,
    differences,
    field_names,
    from_yaml,
    get_field,
    load_config,
    load_preset,
    override,
    parse_overrides,
    preset_names,
    sections,
)
from conr_ray.config_reference import reference
from conr_ray.errors import UserError
from conr_ray.method import frameworks
from conr_ray.method.frameworks import framework_names
from tests.tiny_runs import NEEDS

DIGITS = load_preset("digits")


def refusal(overrides: dict[str, Any], tree: Any = None) -> str:
    """The one line that a user of these settings is told."""
    with pytest.raises(UserError) as caught:
        build({"data": {"source": "digits"}} if tree is None else tree, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


# YAML


@pytest.mark.parametrize("name", preset_names())
def test_yaml_round_trip_keeps_every_preset(name: str) -> None:
    config = load_preset(name)
    assert from_yaml(config.to_yaml(), "itself") == config


def test_a_saved_config_loads_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(DIGITS.to_yaml())
    assert load_config(tmp_path / "config.yaml") == DIGITS
    assert load_config(tmp_path / "config.yaml", {"seed": 7}) == override(DIGITS, {"seed": 7})


def test_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("optim: [")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "twice.yaml").write_text("optim: {lr: 0.3}\nseed: 1\noptim: {momentum: 0.5}\n")
    for name, reason in (
        ("absent.yaml", "No such file"),
        (".", "Is a directory"),
        ("broken.yaml", "not YAML"),
        ("binary.yaml", "not a text file"),
        ("empty.yaml", "is empty: restore it, or write it anew"),
        ("twice.yaml", "optim is set on line 1 and on line 3: keep one"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load_config(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("tree", [[1], 3, "optim"])
def test_a_config_is_a_mapping(tree: Any) -> None:
    assert refusal({}, tree).startswith("a config is a mapping of sections, not ")


@pytest.mark.parametrize("value", [3, None, [1], "lr"])
@pytest.mark.parametrize("overrides", [{}, {"optim.lr": 0.1}])
def test_a_section_is_a_mapping(value: Any, overrides: dict[str, Any]) -> None:
    message = refusal(overrides, {"data": {"source": "digits"}, "optim": value})
    assert message == f"optim={value!r}: a section, not a value; write {{batch_size: ...}}"


# Overrides


def test_overrides_replace_fields_and_leave_the_rest() -> None:
    changed = override(DIGITS, {"neighborhood.k1": 20, "schedule.group_start": "never", "seed": 3})
    assert changed.neighborhood.k1 == 20
    assert changed.group_start_epoch is None and DIGITS.group_start_epoch == 30
    assert sorted(differences(DIGITS, changed)) == [
        "neighborhood.k1: 10 -> 20",
        "schedule.group_start: 30 -> never",
        "seed: 0 -> 3",
    ]
    assert differences(DIGITS, DIGITS) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=0.1", 0.1),
        ("optim.lr=1E2", 100.0),
        ("neighborhood.k1=12", 12),
        ("views.crop_scale=[0.2, 1]", [0.2, 1]),
        ("data.splits=[train, test]", ["train", "test"]),
        ("clustering.num_clusters=null", None),
        ("schedule.group_start=never", "never"),
        ("data.download=true", True),
        ("data.path=s3://bucket/a=b,c=d.parquet", "s3://bucket/a=b,c=d.parquet"),
        ('data.name="1e-3"', "1e-3"),
        ("data.name=nan", "nan"),
        ("data.path=", None),
    ],
)
def test_values_of_settings_are_yaml_and_numbers_need_no_dot(setting: str, value: Any) -> None:
    (parsed,) = parse_overrides([setting]).values()
    assert parsed == value and type(parsed) is type(value)


def test_numbers_in_a_list_need_no_dot() -> None:
    assert build({"data": {"source": "digits"}}, parse_overrides(["views.crop_scale=[1e-1, 1]"]))


def test_the_last_of_two_settings_counts() -> None:
    assert parse_overrides(["seed=1", "seed=2"]) == {"seed": 2}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("optim.lr", "--set optim.lr: write field=value, for example optim.lr=0.1"),
        ("optim.lr=[", "--set optim.lr=[: the value is not YAML; quote it"),
        ("optim.lr=[1]]", "--set optim.lr=[1]]: the value is not YAML; quote it"),
        ("optim.lrr=1", "optim.lrr: no such field; did you mean optim.lr?"),
    ],
)
def test_settings_that_cannot_be_read_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides([setting])
    assert str(caught.value) == message


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_FRACTION = st.floats(0, 1, exclude_min=True)
_POSITIVE = st.floats(0, exclude_min=True, allow_infinity=False)
# A strategy for each kind of value; other fields hold digits' values, so no rule is broken.
_VALID: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**31 - 1),
    "data.path": _TEXT,
    "data.splits": st.none() | st.lists(_TEXT, min_size=1, max_size=3).map(tuple),
    "data.download": st.booleans(),
    "byol.momentum": st.floats(0, 1, exclude_max=True),
    "views.crop_scale": st.tuples(_FRACTION, _FRACTION).map(lambda ends: tuple(sorted(ends))),
    "views.flip_probability": st.floats(0, 1),
    "model.widths": st.lists(st.integers(1, 10**6), min_size=1, max_size=5).map(tuple),
    "model.backbone": st.sampled_from(["resnet18", "resnet34", "convnet"]),
    "schedule.group_start": st.just("never") | st.integers(0, 59),
    "neighborhood.k1": st.integers(2, 128),
    "optim.lr": _POSITIVE,
    "optim.weight_decay": st.just(0.0) | _POSITIVE,
    "clustering.num_clusters": st.none()
    | st.integers(2, 10**9)
    | st.just("auto")
    | st.just("5..30"),
}


_PARQUET = build({"data": {"source": "parquet", "path": "images.parquet"}})
_CIFAR = load_preset("cifar10")
_BASES = {"data.path": _PARQUET, "data.splits": _PARQUET, "data.download": _CIFAR}


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_valid_override_is_kept_and_survives_yaml(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(_VALID)))
    value = data.draw(_VALID[name])
    before = _BASES.get(name, DIGITS)
    changed = override(before, {name: value})
    assert get_field(changed, name) == value
    assert from_yaml(changed.to_yaml(), "itself") == changed
    found = {line.partition(":")[0] for line in differences(before, changed)}
    # Another backbone has no use for the widths of the first one.
    assert found <= ({name, "model.widths"} if name == "model.backbone" else {name})


# Names


def test_every_field_can_be_read_by_its_name() -> None:
    names = all_field_names()
    assert len(names) == len(set(names)) > 60
    tops = {name.partition(".")[0] for name in names}
    assert tops == {*sections(), *framework_names(), "seed"}
    for name in names:
        check_field(name)
    for name in field_names("byol"):
        get_field(DIGITS, name)
    assert get_field(DIGITS, "neighborhood.k1") == DIGITS.neighborhood.k1


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("neighborhood.k3", "neighborhood.k"),
        ("optim.lrr", "optim.lr"),
        ("data.pth", "data.path"),
        ("sed", "seed"),
        ("neighbourhood.k1", "neighborhood.k1"),
        ("neighbourhod.k2", "neighborhood.k2"),
        ("optimizer.lr", "optim.lr"),
        ("shedule.epochs", "schedule.epochs"),
        ("optim.epochs", "schedule.epochs"),
        ("augmentation.crop_scale", "views.crop_scale"),
        ("views.jitter", "views.jitter_probability"),
        ("neighbourhood", "neighborhood"),
        ("check_point", "checkpoint"),
        ("k1", "neighborhood.k1"),
        ("lr", "optim.lr"),
        ("num_cluster", "clustering.num_clusters"),
        (
            "momentum",
            "optim.momentum or byol.momentum or heads.momentum or moco.momentum or propos.momentum",
        ),
        ("size", "views.size or bank.size"),
    ],
)
def test_a_typo_is_answered_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(UserError) as caught:
        check_field(name)
    assert str(caught.value) == f"{name}: no such field; did you mean {nearest}?"


@pytest.mark.parametrize("name", ["", "xyzzy", "qqqqq.zzzzzzz"])
def test_a_name_near_to_none_is_answered_with_the_list(name: str) -> None:
    with pytest.raises(UserError, match=r"no such field; see docs/config\.md for the fields"):
        check_field(name)


def test_a_section_is_no_field() -> None:
    with pytest.raises(UserError) as caught:
        parse_overrides(["neighborhood=3"])
    assert (
        str(caught.value)
        == "neighborhood: a section, not a field; choose one of its fields: pool, kind, k1, "
        "k2, k, probes"
    )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"neighbourhood": {"k1": 3}}, "neighbourhood: no such field; did you mean neighborhood?"),
        ({"k1": 3}, "k1: no such field; did you mean neighborhood.k1?"),
        (
            {"neighborhood": {"k1": 3, "kk": 1}},
            "neighborhood.kk: no such field; did you mean neighborhood.k?",
        ),
        ({"optim": {"epochs": 3}}, "optim.epochs: no such field; did you mean schedule.epochs?"),
        (
            {"neighborhood.k1": 3},
            "neighborhood.k1: in a file, write it below its section, neighborhood: {k1: ...}",
        ),
        ({1: 2}, "1=1: keys should be strings"),
    ],
)
def test_unknown_keys_of_a_file_are_refused(tree: Any, message: str) -> None:
    assert refusal({}, {"data": {"source": "digits"}, **tree}) == message


# Values


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("neighborhood.k1", 2.5, "valid integer"),
        ("neighborhood.k1", -1, "greater than or equal to 1"),
        ("neighborhood.k1", None, "valid integer"),
        ("neighborhood.k1", "ten", "valid integer"),
        ("neighborhood.kind", "cosine", "'contextual' or 'euclidean'"),
        ("schedule.group_start", "nevr", "valid integer, unable to parse string as an integer, or"),
        ("schedule.group_start", -1, "greater than or equal to 0, or 'never'"),
        ("boundary.initial_fraction", 0, "greater than 0"),
        ("boundary.initial_fraction", 1.01, "less than or equal to 1"),
        ("optim.lr", 0, "greater than 0"),
        ("optim.momentum", 1, "less than 1"),
        ("optim.batch_size", 1, "greater than or equal to 2"),
        ("clustering.num_clusters", 1, "greater than or equal to 2"),
        ("clustering.num_clusters", "many", "give a number, a range such as 5..30, or auto"),
        ("clustering.num_clusters", "5..5", "the range holds one number: give 5"),
        ("clustering.num_clusters", "30..5", "the wrong way round: give 5..30"),
        ("clustering.num_clusters", "1..5", "fewer than 2 clusters tell nothing"),
        ("data.download", "perhaps", "valid boolean"),
        ("data.name", 10, "valid string"),
        ("data.limit", 0, "greater than or equal to 1"),
        ("data.splits", [], "at least 1 item"),
        ("data.classes", [], "at least 1 item"),
        ("data.splits", "train", "valid tuple"),
        ("model.widths", [], "at least 1 item"),
        ("views.crop_scale", [0.5], "too few values: write two"),
        ("views.crop_scale", [0.1, 0.5, 1], "at most 2 items"),
        ("views.blur_sigma", 1, "valid tuple"),
    ],
)
def test_a_wrong_value_is_refused_with_field_and_value(name: str, value: Any, reason: str) -> None:
    message = refusal({name: value})
    assert message.startswith(f"{name}={value!r}: ") and reason in message


@pytest.mark.parametrize("value", [math.nan, math.inf, "nan"])
def test_no_number_is_nan_or_infinite(value: Any) -> None:
    for name in field_names("byol"):
        if isinstance(get_field(DIGITS, name), float):
            assert refusal({name: value}).startswith(f"{name}=")


RULES = [
    ({"neighborhood.k1": 3, "neighborhood.k2": 4}, ["neighborhood.k2=4", "lower k2 or raise k1"]),
    ({"optim.batch_size": 9}, ["neighborhood.k1=10", "9 rows", "lower it, or raise optim.batch_s"]),
    (
        {"optim.batch_size": 16, "neighborhood.k": 17},
        ["neighborhood.k=17", "16 rows", "lower it, or raise optim.batch_size or bank.size"],
    ),
    ({"schedule.cosine_epochs": 949}, ["schedule.cosine_epochs=949", "950 epochs", "unset"]),
    ({"views.sizes": [[9, 16], [0, 24]]}, ["views.sizes: epochs [9, 0] do not rise", "in order"]),
    ({"model.norm_batch": 96}, ["optim.batch_size=512", "model.norm_batch=96", "change one"]),
    ({"schedule.group_start": 1000}, ["schedule.group_start=1000", "set it to never"]),
    (
        {"schedule.epochs": 20, "schedule.group_start": 10},
        [
            "schedule.warmup_epochs=50",
            "schedule.epochs=20",
            "set schedule.warmup_epochs to 20 or less",
        ],
    ),
    ({"views.crop_scale": [1, 0.1]}, ["views.crop_scale=[1.0, 0.1]", "smaller value first"]),
    (
        {"views.crop_scale_group_stage": [1, 0.1]},
        ["views.crop_scale_group_stage=[1.0, 0.1]", "smaller value first"],
    ),
    ({"views.crop_ratio": [2, 1]}, ["views.crop_ratio=[2.0, 1.0]", "smaller value first"]),
    ({"views.blur_sigma": [2, 1]}, ["views.blur_sigma=[2.0, 1.0]", "smaller value first"]),
    ({"data.source": "parquet"}, ["data.path is not set", "data.source=parquet", "needs the path"]),
    ({"data.source": "folder"}, ["data.path is not set", "data.source=folder", "needs the path"]),
    ({"data.source": "torchvision"}, ["data.name is not set", "a name such as cifar10"]),
    (
        {"data.source": "torchvision", "data.name": "cifar10"},
        ["data.path is not set", "data.source=torchvision", "needs the path"],
    ),
]


@pytest.mark.parametrize(("overrides", "parts"), RULES)
def test_a_broken_rule_names_field_value_and_remedy(
    overrides: dict[str, Any], parts: list[str]
) -> None:
    message = refusal(overrides)
    assert [part for part in parts if part not in message] == []


UNUSED = [
    (
        {"data.name": "cifar10"},
        "data.name=cifar10: data.source=digits does not use it, only torchvision:",
    ),
    ({"data.classes": ["a", "b"]}, "data.classes=a, b: data.source=digits does not use it, only"),
    ({"data.splits": ["train"]}, "data.splits=train: data.source=digits does not use it"),
    ({"data.image_column": "x"}, "data.image_column=x: data.source=digits does not use it"),
    ({"data.path": "photos"}, "data.path=photos: data.source=digits does not use it"),
    ({"views.dropout": 0.5}, "views.dropout=0.5: data.source=digits does not use it, only vec"),
    ({"model.widths": [4, 8]}, "model.widths=4, 8: model.backbone=resnet18 does not use it"),
    (
        {"model.backbone": "convnet", "model.stem": "imagenet"},
        "model.stem=imagenet: model.backbone=convnet does not use it, only resnet18, resnet34",
    ),
]


@pytest.mark.parametrize(("overrides", "start"), UNUSED)
def test_a_field_that_nothing_reads_is_refused_with_who_does(
    overrides: dict[str, Any], start: str
) -> None:
    message = refusal(overrides)
    assert message.startswith(start) and message.endswith("leave it out")


def test_another_choice_leaves_out_what_only_the_first_one_used() -> None:
    photos = load_preset("cifar10", {"data.source": "folder", "data.path": "photos"})
    assert photos.data.name is None and not photos.data.download
    assert load_preset("digits", {"model.backbone": "resnet18"}).model.widths == (32, 64, 64, 128)
    asked = {"data.source": "folder", "data.path": "photos", "data.name": "cifar10"}
    with pytest.raises(UserError, match=r"data\.name=cifar10: data\.source=folder does not use it"):
        load_preset("cifar10", asked)


# Frameworks


@pytest.mark.parametrize("name", framework_names())
def test_a_tree_has_the_section_of_its_framework_alone(name: str) -> None:
    changes = {field.replace("__", "."): value for field, value in NEEDS.get(name, {}).items()}
    config = load_preset("digits", {"model.framework": name, **changes})
    tree = config.model_dump()
    assert set(tree) & set(framework_names()) == {name}
    assert tree[name] == config.framework.model_dump()
    assert from_yaml(config.to_yaml(), "itself") == config


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("byoll", "did you mean byol?"),
        ("MoCo", "did you mean moco?"),
        ("xyz", "choose from byol, heads, moco, propos, simsiam"),
    ],
)
def test_an_unknown_framework_is_answered_with_the_nearest(name: str, hint: str) -> None:
    assert refusal({"model.framework": name}) == (
        f"model.framework={name}: no such framework; {hint}"
    )


def test_a_field_of_another_framework_is_refused() -> None:
    expected = (
        "moco.queue_size: model.framework=byol does not use it: leave it out, or set "
        "model.framework=moco"
    )
    assert refusal({"moco.queue_size": 64}) == expected
    assert refusal({}, {"data": {"source": "digits"}, "moco": {"queue_size": 64}}) == expected
    with pytest.raises(UserError) as caught:
        get_field(DIGITS, "moco.queue_size")
    assert str(caught.value) == expected


def test_values_of_a_framework_are_checked() -> None:
    assert refusal({"byol.momentum": 2}).startswith("byol.momentum=2: input should be less than")
    message = refusal({}, {"data": {"source": "digits"}, "byol": {"momentm": 1}})
    assert message == "byol.momentm: no such field; did you mean byol.momentum?"
    assert refusal({"moco.qeue_size": 1}) == (
        "moco.qeue_size: no such field; did you mean moco.queue_size?"
    )


def test_another_framework_leaves_out_the_section_of_the_first_one() -> None:
    changed = override(DIGITS, {"model.framework": "moco", "moco.queue_size": 64})
    assert get_field(changed, "moco.queue_size") == 64
    assert differences(DIGITS, changed) == ["model.framework: byol -> moco"]
    assert changed != DIGITS


def test_rules_hold_at_their_limits() -> None:
    edge = {"neighborhood.k1": 128, "neighborhood.k2": 128, "neighborhood.k": 128}
    assert override(DIGITS, edge).pool_size == 128
    assert override(DIGITS, {"schedule.group_start": 59}).group_start_epoch == 59
    assert override(DIGITS, {"schedule.warmup_epochs": 60})
    assert override(DIGITS, {"views.crop_scale": [0.5, 0.5]})
    assert override(DIGITS, {"schedule.group_start": 0}).group_start_epoch == 0


def test_a_config_cannot_be_changed_in_place() -> None:
    for owner, name in ((DIGITS, "seed"), (DIGITS.optim, "lr")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(owner, name, 1)
    assert hash(DIGITS) == hash(load_preset("digits"))


def test_without_settings_the_defaults_hold() -> None:
    tree = {"data": {"source": "torchvision", "name": "cifar10", "path": "data"}}
    assert build(tree) == RunConfig.model_validate(tree)


# docs/config.md


def test_the_reference_page_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "config.md"
    hint = "run: python -m conr_ray.config_reference > docs/config.md"
    assert page.read_text() == reference(), hint


def test_the_reference_page_has_every_field_with_values_default_and_presets() -> None:
    page = reference()
    for name in all_field_names():
        assert f"\n| `{name}` | " in page
    assert "| `boundary.initial_fraction` | number in (0, 1] | `0.8` |" in page
    assert "| `schedule.group_start` | integer ≥ 0 or `never` | `800` |" in page
    assert (
        "| `optim.batch_size` | integer ≥ 2 | `512` | global: over all workers | cifar20, dig"
        in page
    )


@pytest.mark.parametrize("value", ["[moco]", "{a: 1}", "3", "null"])
def test_a_framework_that_is_no_name_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^model\.framework="):
        load_preset("digits", parse_overrides([f"model.framework={value}"]))


def test_a_broken_framework_file_is_named_and_breaks_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("class Config(Section): pass")
    (tmp_path / "_helpers.py").write_text("")
    monkeypatch.setattr(frameworks, "__path__", [*frameworks.__path__, str(tmp_path)])
    frameworks.framework_names.cache_clear()
    try:
        assert frameworks.framework_names() == (
            "byol",
            "heads",
            "mine",
            "moco",
            "propos",
            "simsiam",
        )
        assert load_preset("digits", {"seed": 1}).framework
        with pytest.raises(UserError, match="lr=-1: input should be greater"):
            load_preset("digits", {"optim.lr": -1})
        told = r"mine\.py is not a framework: NameError: name 'Section' is not defined"
        with pytest.raises(UserError, match=told):
            _ = load_preset("digits", {"model.framework": "mine"}).framework
    finally:
        frameworks.framework_names.cache_clear()
