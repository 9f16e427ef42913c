"""Runs on models of timm: what is trained, resumed, shared and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import conr_ray.train
from conr_ray import Clusterer, TrainedRun
from conr_ray.config import RunConfig
from conr_ray.data.arrays import from_pictures
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.trunk_store import trunk_name
from conr_ray.errors import UserError
from conr_ray.method.networks import Encoder
from conr_ray.method.timm_backbone import TimmBackbone, last_blocks
from conr_ray.pretrained import load_pretrained, preparation_of
from conr_ray.reporting.run_data import read_run
from conr_ray.reporting.run_page import headline
from tests.engine.test_loop import assert_same_tensors
from tests.engine.test_trunk import fork, store_in
from tests.gloo_workers import run_workers
from tests.pretrained.models import LITE, LITE_WEIGHTS, SMALL, VIT, saved_weights, timm_config
from tests.tiny_runs import as_settings, run_here, run_step_by_step, without_times


def final_state(folder: Path) -> dict[str, Any]:
    """A run's last checkpoint."""
    directory = RunDirectory(folder)
    return directory.load_checkpoint(directory.newest_checkpoint()[0], torch.device("cpu"))


def backbone_of(folder: Path, network: str = "encoder") -> dict[str, Tensor]:
    """That of a run's last checkpoint, by timm's names."""
    state: dict[str, Tensor] = final_state(folder)["framework"]
    above = f"{network}.backbone.layers."
    return {n.removeprefix(above): t for n, t in state.items() if n.startswith(above)}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in after if not torch.equal(before[name].to(after[name]), after[name])}


@pytest.mark.parametrize("part", ["all", "last_blocks", "head"])
def test_only_the_chosen_part_learns_and_a_run_resumed_at_any_step_is_the_same(
    part: str, tmp_path: Path
) -> None:
    weights = saved_weights(tmp_path / "w.pth")
    config = timm_config(model__weights=weights, model__train=part)
    rows = run_here(config, tmp_path / "run")
    before = load_pretrained(SMALL, weights).module
    learned = changed(before.layers.state_dict(), backbone_of(tmp_path / "run"))
    expected = {name for name, _ in before.named_parameters()}
    if part != "all":
        expected = set(last_blocks(before)) if part == "last_blocks" else set()
    assert {f"layers.{name}" for name in learned if not _is_buffer(name)} == expected
    # What is kept neither uses nor follows the statistics of batches.
    owners = {name.rpartition(".")[0] for name in expected}
    assert {f"layers.{name}".rpartition(".")[0] for name in learned if _is_buffer(name)} <= owners
    stepped, stops = run_step_by_step(config, tmp_path / "steps")
    assert len(stops) > 3 and without_times(stepped) == without_times(rows)
    assert_same_tensors(final_state(tmp_path / "steps"), final_state(tmp_path / "run"))


def _is_buffer(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")


def _on_a_worker(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    return without_times(run_here(config, folder))


@pytest.mark.parametrize("norm_batch", [None, 8])
def test_two_workers_train_what_one_does(norm_batch: int | None, tmp_path: Path) -> None:
    """Normalisation with an activation inside is taken over both workers' rows."""
    config = timm_config(
        model__norm_batch=norm_batch,
        schedule__epochs=1,
        schedule__group_start="never",
        optim__precision="fp32",
    )
    run_here(config, tmp_path / "one")
    run_workers(_on_a_worker, 2, config, tmp_path / "two")
    one, two = backbone_of(tmp_path / "one"), backbone_of(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_training_draws_nothing_of_its_own(tmp_path: Path) -> None:
    """Stochastic depth and dropout would: a run would then depend on where it was resumed."""
    network = TimmBackbone("timm:swin_tiny_patch4_window7_224").train()
    images = torch.randn(2, 3, 224, 224)
    assert torch.equal(network(images), network(images))


def test_the_weights_shape_a_trunk_wherever_they_are(tmp_path: Path) -> None:
    files = [saved_weights(tmp_path / f"{name}.pth", seed=name == "c") for name in "abc"]
    configs = [timm_config(model__weights=file) for file in files]
    digests = [load_pretrained(SMALL, file).digest for file in files]
    names = [trunk_name(c, "data", d) for c, d in zip(configs, digests, strict=True)]
    assert names[0] == names[1] != names[2]
    # The unset size is the model's own.
    own, same, other = (
        trunk_name(timm_config(views__size=size), "data") for size in (None, 160, 64)
    )
    assert own == same != other
    assert trunk_name(timm_config(model__weights=files[0], model__train="head"), "d", "x") != (
        trunk_name(timm_config(model__weights=files[0]), "d", "x")
    )
    whole = run_here(configs[0], tmp_path / "whole")
    forked = fork(configs[1], store_in(tmp_path, 1), tmp_path / "forked")
    assert without_times(forked) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "forked"), final_state(tmp_path / "whole"))
    record = RunDirectory(tmp_path / "forked").initial_weights()
    assert record is not None and record["sha256"] == digests[1]


def test_the_command_begins_from_weights_of_a_package_and_tells_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fields = {
        "model.backbone": LITE,
        "model.weights": LITE_WEIGHTS,
        "model.train": "last_blocks",
        "model.head_hidden_dim": 32,
        "model.embedding_dim": 16,
        "views.size": 32,
        "data.limit": 64,
        "optim.batch_size": 32,
        "schedule.epochs": 1,
        "schedule.group_start": "never",
        "schedule.warmup_epochs": 0,
        "evaluation.on_collapse": "warn",
    }
    place = ["--storage", str(tmp_path), "--name", "run", "--local"]
    conr_ray.train.main(["--preset", "digits", *place, *as_settings(fields)])
    assert f"model.weights={LITE_WEIGHTS}: no name in the file is timm's" in capsys.readouterr().err
    record = json.loads((tmp_path / "run/initial_weights.json").read_text())
    assert record["sha256"] == load_pretrained(LITE, LITE_WEIGHTS).digest
    assert record["found"] == LITE_WEIGHTS and record["licence"] is None
    fact = headline(read_run(RunDirectory(tmp_path / "run"), draw_map=False))[-1]
    assert (fact.name, fact.value) == ("started from", LITE_WEIGHTS)
    assert fact.detail == "licence: not known"
    # New images are prepared as those of the run; the weights are no longer needed.
    run = TrainedRun.load(tmp_path / "run")
    rows = np.array(open_data(run.config.data).rows)
    network: Encoder = run.state.framework.embedding_encoder.eval()
    prepared = preparation_of(LITE, 32).prepare(torch.from_numpy(rows))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(prepared))
    torch.testing.assert_close(run.embed(rows), expected, atol=1e-5, rtol=1e-4)
    # Grey pictures that are stored in colour, with alpha or without, are the same pictures.
    for channels in (3, 4):
        same = run.embed(np.repeat(rows, channels, axis=1))
        torch.testing.assert_close(same, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(UserError, match="the run takes n x 1 or 3 or 4 x height x width"):
        run.embed(np.repeat(rows, 2, axis=1))


def test_a_clusterer_takes_pictures_of_all_kinds(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 255, (40 + i, 50, 4), dtype=np.uint8)).convert(mode)
        for i, mode in enumerate(["RGB", "RGBA", "L", "P"] * 8)
    ]
    settings: dict[str, Any] = {
        "model__backbone": SMALL,
        "model__weights": saved_weights(tmp_path / "w.pth"),
        "model__head_hidden_dim": 16,
        "model__embedding_dim": 8,
        "schedule__epochs": 1,
        "schedule__group_start": "never",
        "schedule__warmup_epochs": 0,
        "clustering__restarts": 1,
        "evaluation__on_collapse": "warn",
        "evaluation__neighbors": False,
    }
    clusterer = Clusterer(2, folder=str(tmp_path / "run"), **settings).fit(pictures)
    assert clusterer.labels_.shape == (32,)
    # As the model was made for.
    state = final_state(tmp_path / "run")["inputs"]
    assert (state["size"], state["shape"]) == (160, [3, 160, 160])
    assert (clusterer.predict(pictures[:4]) == clusterer.labels_[:4]).all()
    # New ones too.
    squares = from_pictures(pictures[:4], 160).transpose(0, 2, 3, 1)
    expected = clusterer.transform(squares)
    np.testing.assert_allclose(clusterer.transform(pictures[:4]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.backbone": "timm:resnet_18"}, "did you mean timm:resnet18"),
        ({"model.backbone": "resnet19"}, "model.backbone='resnet19': no such backbone; did you me"),
        ({"model.backbone": "timm:"}, "choose from resnet18, resnet34, convnet, mlp, identity an"),
        ({"model.weights": "w.pth"}, "model.backbone=convnet does not use it, only timm:NAME"),
        ({"model.train": "head"}, "model.backbone=convnet does not use it, only resnet18, resnet3"),
        (
            {"model.backbone": SMALL, "model.weights": "none", "model.train": "last_blocks"},
            "model.train=last_blocks: the rest of the backbone would stay as it was drawn",
        ),
        (
            {"model.backbone": SMALL, "model.weights": "a.pth", "model.init": "b.pth"},
            "b.pth replaces the backbone's weights: leave one of them out",
        ),
        (
            {"model.backbone": VIT, "model.weights": "none", "views.sizes": "[[0, 64]]"},
            "takes views of one size, 160, not 64: leave views.sizes out",
        ),
        (
            {"model.backbone": VIT, "model.weights": "none", "views.size": 61},
            "model.backbone=timm:test_vit: views.size=61 is not for this model (Input height (61)",
        ),
    ],
)
def test_bad_settings_are_one_line_before_anything_is_written(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    place = ["--storage", str(tmp_path), "--name", "run", "--local"]
    with pytest.raises(UserError) as caught:
        conr_ray.train.main(["--preset", "digits", *place, *as_settings(fields)])
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
