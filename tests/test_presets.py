"""The presets against the recipes of the paper (section 4 and its supplement)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from conr_ray.config import RunConfig, differences, get_field, load_preset, preset_names
from conr_ray.data.sources import make_source
from conr_ray.data.sources.forms import as_found
from conr_ray.engine.schedule import Schedule
from conr_ray.errors import UserError
from conr_ray.method.schedules import kept_fraction

PAPER = {"cifar10", "cifar20", "stl10", "imagenet10", "imagenet_dogs"}
OTHER_RUNS = ["cifar10_fast", "cifar10_released"]
NAMES = [*sorted(PAPER), "cifar100", *OTHER_RUNS, "digits", "fashion_mnist", "photos"]

# What the paper's runs have in common.
RECIPE: dict[str, Any] = {
    "schedule.epochs": 1000,
    "schedule.group_start": 800,
    "schedule.warmup_epochs": 50,
    "schedule.relax_epochs": 50,
    "neighborhood.kind": "contextual",
    "neighborhood.k1": 10,
    "neighborhood.k2": 2,
    "neighborhood.k": 10,
    "boundary.initial_fraction": 0.8,
    "bank.size": 0,
    "model.head_hidden_dim": 4096,
    "model.embedding_dim": 256,
    "byol.momentum": 0.996,
    "optim.lr": 0.05,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "byol.predictor_lr_factor": 10,
    "optim.group_stage_lr_factor": 0.1,
    "byol.group_stage_predictor_lr_factor": 1,
    "optim.group_loss_weight": 1,
    "views.crop_scale": (0.08, 1),
    "views.crop_scale_group_stage": (0.45, 1),
    "views.flip_probability": 0.5,
    "views.jitter_probability": 0.8,
    "views.brightness": 0.4,
    "views.contrast": 0.4,
    "views.saturation": 0.4,
    "views.hue": 0.1,
    "views.grayscale_probability": 0.2,
}
# What each of them has for itself.
OWN: dict[str, dict[str, Any]] = {
    "cifar10": {
        "optim.batch_size": 512,
        "clustering.num_clusters": 10,
        "model.backbone": "resnet18",
        "model.stem": "cifar",
        "views.size": 32,
        "views.blur_probability": 0,
        "data.name": "cifar10",
        "data.label_column": "label",
        # All 60,000 images: train and test joined.
        "data.splits": None,
    },
    "cifar20": {
        "optim.batch_size": 256,
        "clustering.num_clusters": 20,
        "model.backbone": "resnet18",
        "model.stem": "cifar",
        "views.size": 32,
        "data.name": "cifar100",
        "data.label_column": "coarse_label",
        "data.splits": None,
    },
    "stl10": {
        "clustering.num_clusters": 10,
        "model.backbone": "resnet34",
        "views.size": 96,
        "views.blur_probability": 0,
        "data.splits": ("train", "test"),
    },
    "imagenet10": {
        "clustering.num_clusters": 10,
        "model.backbone": "resnet18",
        "views.size": 96,
        "views.blur_probability": 0,
    },
    "imagenet_dogs": {
        "clustering.num_clusters": 15,
        "model.backbone": "resnet34",
        "views.size": 224,
        "views.blur_probability": 0.5,
    },
}


def test_the_presets_are_these() -> None:
    assert preset_names() == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_a_whole_run_that_its_source_accepts(name: str) -> None:
    config = load_preset(name)
    assert config.clustering.num_clusters is not None
    assert config.group_start_epoch is not None
    assert make_source(config.data).config == as_found(config.data)
    # Classes that a preset names are as many as its clusters.
    if config.data.classes is not None:
        assert len(set(config.data.classes)) == config.clustering.num_clusters


@pytest.mark.parametrize("name", sorted(PAPER))
def test_a_benchmark_of_the_paper_follows_its_recipe(name: str) -> None:
    config, wanted = load_preset(name), {**RECIPE, **OWN[name]}
    assert {field: get_field(config, field) for field in wanted} == wanted


def test_the_fast_run_is_one_of_the_paper_with_other_lengths_and_rates() -> None:
    paper, fast = load_preset("cifar10"), load_preset("cifar10_fast")
    assert {line.partition(":")[0] for line in differences(paper, fast)} == {
        "byol.group_stage_predictor_lr_factor",
        "byol.momentum",
        "checkpoint.every",
        "optim.group_stage_lr_factor",
        "optim.precision",
        "schedule.epochs",
        "schedule.group_start",
        "schedule.relax_epochs",
        "schedule.warmup_epochs",
    }


def test_the_released_run_differs_from_the_paper_in_these_fields() -> None:
    released = load_preset("cifar10_released")
    assert sorted(differences(load_preset("cifar10"), released)) == [
        "boundary.centers: unit -> mean",
        "clustering.max_iterations: 100 -> 300",
        "clustering.restarts: 10 -> 40",
        "clustering.start_rows: 8192 -> 60000",
        "model.norm_batch: None -> 128",
        "optim.group_loss_weight: 1.0 -> 0.25",
        "optim.precision: auto -> fp32",
        "schedule.cosine_epochs: None -> 1000",
    ]


def test_the_released_run_has_the_learning_rates_of_the_released_code() -> None:
    config = load_preset("cifar10_released")
    schedule = Schedule(config, steps_per_epoch=117)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    optimizer.param_groups[0].update(lr_factor=1.0, group_stage_lr_factor=1.0)
    for epoch in (50, 400, 799, 800, 900, 999):
        rate = 0.1 * 0.5 * (1 + math.cos((epoch - 50) * math.pi / 1000))
        factor = 0.1 if epoch >= 800 else 1
        assert schedule.set_learning_rates(optimizer, epoch, 0) == pytest.approx(factor * rate)
    last = schedule.set_learning_rates(optimizer, 999, 116)
    assert last / (0.1 * 0.1) == pytest.approx(0.0062, abs=1e-4)


@pytest.mark.parametrize("name", ["imagenet10", "imagenet_dogs"])
def test_stored_images_are_no_smaller_than_views(name: str) -> None:
    config = load_preset(name)
    assert config.data.stored_size is not None
    assert config.data.stored_size >= config.views.size


def test_the_kept_fraction_rises_from_0_8_to_1_in_50_epochs() -> None:
    config = load_preset("cifar10")
    schedule = Schedule(config, steps_per_epoch=117)
    assert schedule.fraction(799) == 1 and not schedule.in_group_stage(799)
    assert schedule.fraction(800) == pytest.approx(0.8) == kept_fraction(800, 800, 50, 0.8)
    assert schedule.fraction(825) == pytest.approx(0.9)
    assert schedule.fraction(850) == schedule.fraction(999) == 1


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_small_presets_keep_the_neighbourhood_of_the_paper(name: str) -> None:
    config = load_preset(name)
    fields = [f for f in RECIPE if f.startswith(("neighborhood.", "boundary.", "bank."))]
    assert {f: get_field(config, f) for f in fields} == {f: RECIPE[f] for f in fields}
    assert config.model.backbone == "convnet"


def test_the_defaults_are_those_of_cifar10() -> None:
    tree = load_preset("cifar10").model_dump(exclude={"data", "clustering"})
    data = {"source": "digits"}
    assert RunConfig.model_validate({"data": data}).model_dump(include=set(tree)) == tree


def test_overrides_apply_on_top_of_a_preset() -> None:
    assert load_preset("cifar10", {"optim.batch_size": 256}).optim.batch_size == 256
    with pytest.raises(UserError, match=r"neighborhood.k2=11 exceeds neighborhood.k1=10"):
        load_preset("cifar10", {"neighborhood.k2": 11})


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifr10", "did you mean cifar10?"), ("mnsit", "choose from cifar10, "), ("", "choose from ")],
)
def test_an_unknown_preset_is_answered_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        load_preset(name)
    assert str(caught.value).startswith(f"preset {name}: no such preset; {hint}")
