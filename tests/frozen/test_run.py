"""Runs on embedded images: trained, resumed, and applied to images from their directory alone."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import conr_ray.predict
from conr_ray import Clusterer
from conr_ray.config import RunConfig, load_preset, override
from conr_ray.data.arrays import from_pictures
from conr_ray.data.store import open_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from conr_ray.exporting.export_folder import export
from conr_ray.frozen import open_samples
from conr_ray.pretrained.sources import package_file
from conr_ray.python_search import _side
from tests.frozen.conftest import FROZEN, LITE_WEIGHTS, frozen_config, trained
from tests.gloo_workers import run_workers
from tests.tiny_runs import run_here, run_step_by_step, without_times

WEIGHTS = "backbone-8d6495095392a38e.safetensors"


def _images(config: RunConfig) -> Any:
    return np.array(open_data(config.data).rows)


def test_a_run_directory_alone_is_applied_to_images(
    frozen_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(frozen_config())
    copy = shutil.copytree(frozen_run, tmp_path / "run")
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "empty"))
    run = TrainedRun.load(copy)
    assert run.sample_shape == (1, 8, 8)
    placed, told = run.place(images), pq.read_table(frozen_run / "assignments.parquet")
    np.testing.assert_array_equal(placed.clusters_n.numpy(), told.column("cluster").to_numpy())
    np.testing.assert_allclose(
        placed.boundary_ratios_n.numpy(), told.column("boundary_ratio").to_numpy(), atol=1e-4
    )
    # Grey, colour, and with alpha, of another size.
    colour = run.place(np.repeat(images, 3, 1))
    torch.testing.assert_close(colour.embeddings_nd, placed.embeddings_nd)
    alpha = np.concatenate([np.repeat(images, 3, 1), images], 1)
    torch.testing.assert_close(run.place(alpha).embeddings_nd, placed.embeddings_nd)
    assert run.place(np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))).clusters_n.shape == (130,)
    with pytest.raises(UserError, match="the run takes n x 1 or 3 or 4 x height x width"):
        run.place(images[:, [0, 0]])


def test_it_keeps_the_weights_once_and_tells_of_them(frozen_run: Path) -> None:
    kept = [path.name for path in frozen_run.rglob("*.safetensors")]
    assert kept == [WEIGHTS]
    states = [path.stat().st_size for path in frozen_run.rglob("state.pt")]
    assert max(states) < (frozen_run / WEIGHTS).stat().st_size / 4
    told = json.loads((frozen_run / "initial_weights.json").read_text())
    assert told["found"] == told["source"] == LITE_WEIGHTS and told["sha256"][:16] in WEIGHTS


@pytest.mark.parametrize("damage", ["missing", "others"])
def test_weights_that_are_not_there_or_others_are_named(
    frozen_run: Path, tmp_path: Path, damage: str
) -> None:
    copy = shutil.copytree(frozen_run, tmp_path / "run")
    (copy / WEIGHTS).unlink()
    problem = "is missing, the weights of the run's backbone: put it back"
    if damage == "others":
        from safetensors.torch import load_file, save_file

        tensors = load_file(frozen_run / WEIGHTS)
        tensors[next(iter(tensors))][:] += 0.1
        save_file(tensors, copy / WEIGHTS)
        problem = "holds other weights than the run's backbone has"
    with pytest.raises(UserError, match=problem):
        TrainedRun.load(copy).embed(_images(frozen_config()))


def test_the_report_has_the_pictures(frozen_run: Path) -> None:
    snapshot = Snapshot.read(RunDirectory(frozen_run))
    assert snapshot is not None and snapshot.pictures.num_rows > 50
    assert snapshot.pictures.column("png")[0].as_py().startswith(b"\x89PNG")


@pytest.mark.parametrize("views", [0, 2])
def test_stopped_after_each_step_it_ends_as_if_never_stopped(tmp_path: Path, views: int) -> None:
    changes: dict[str, Any] = {"data__embedded_views": views, "schedule__epochs": 3}
    folders = tmp_path / "whole", tmp_path / "stopped"
    config = frozen_config(**changes)
    for folder in folders:
        RunDirectory(folder).claim(config, resume=False)
    whole, (stopped, _) = run_here(config, folders[0]), run_step_by_step(config, folders[1])
    assert without_times(whole) == without_times(stopped)
    states = [torch.load(f / "checkpoints/epoch_000003/state.pt") for f in folders]
    for name, tensor in states[0]["framework"].items():
        assert torch.equal(tensor, states[1]["framework"][name])


def _run_as_worker(folder: str) -> list[dict[str, Any]]:
    return without_times(run_here(frozen_config(), Path(folder)))


def test_it_goes_on_where_its_weights_are_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shutil.copy(package_file(LITE_WEIGHTS) or "", tmp_path / "weights.pth")
    changes = {"model__weights": str(file)}
    directory = RunDirectory(trained(tmp_path / "run", **changes))
    Path(file).unlink()
    monkeypatch.setenv("CONR_RAY_CACHE", str(tmp_path / "empty"))
    config = frozen_config(schedule__epochs=5, **changes)
    with pytest.raises(UserError, match=r"weights\.pth"):
        open_samples(config)
    data = open_samples(config, directory)
    directory.claim(config, resume=True)
    assert len(train(config, data, directory, Observers(), torch.device("cpu"))) == 5
    told = json.loads((tmp_path / "run/initial_weights.json").read_text())
    assert told["found"] == str(file)


@pytest.mark.slow
def test_two_workers_train_what_one_trains(frozen_run: Path, tmp_path: Path) -> None:
    RunDirectory(tmp_path).claim(frozen_config(), resume=False)
    both = run_workers(_run_as_worker, 2, str(tmp_path))
    rows = pq.read_table(frozen_run / "metrics.parquet").to_pylist()
    assert both[0][-1]["loss"] == pytest.approx(rows[-1]["loss"], abs=1e-4)
    assert both[0][-1]["nmi"] == pytest.approx(rows[-1]["nmi"], abs=0.05)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [WEIGHTS]


def test_trials_share_the_weights_in_the_folder_of_their_search(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search/space.yaml").write_text("")
    for name in "ab":
        run = trained(tmp_path / "search/trials" / name, schedule__epochs=3)
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*.safetensors")]
    assert found == [Path("search") / WEIGHTS]
    assert TrainedRun.load(run).place(_images(frozen_config())[:5]).clusters_n.shape == (5,)
    # What is taken out of the search needs them too.
    loaded = Clusterer.load(run)
    loaded.save(tmp_path / "saved")
    again = Clusterer.load(tmp_path / "saved")
    images = _images(frozen_config())
    np.testing.assert_array_equal(again.predict(images), loaded.labels_)


def test_predict_takes_images(frozen_run: Path, tmp_path: Path) -> None:
    images = _images(frozen_config())
    (tmp_path / "images").mkdir()
    for row, pixels in enumerate(images[:20]):
        Image.fromarray(pixels[0]).save(tmp_path / f"images/{row:02d}.png")
    words = ["--run", str(frozen_run), "--images", str(tmp_path / "images"), "--local"]
    conr_ray.predict.main([*words, "--out", str(tmp_path / "out")])
    [part] = (tmp_path / "out/predictions").iterdir()
    rows = sorted(pq.read_table(part).to_pylist(), key=lambda row: row["path"])
    told = pq.read_table(frozen_run / "assignments.parquet").column("cluster").to_pylist()
    assert [row["cluster"] for row in rows] == told[:20]


@pytest.mark.slow
def test_an_export_is_one_network_from_images(frozen_run: Path, tmp_path: Path) -> None:
    export(str(frozen_run), str(tmp_path), ["safetensors", "onnx"])
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    images = _images(frozen_config())[:30]
    embeddings, clusters, *_ = session.run(None, {"samples": images})
    expected = TrainedRun.load(frozen_run).place(images)
    np.testing.assert_allclose(embeddings, expected.embeddings_nd.numpy(), atol=1e-4)
    np.testing.assert_array_equal(clusters, expected.clusters_n.numpy())
    card = (tmp_path / "README.md").read_text()
    assert LITE_WEIGHTS in card
    # The snippet needs nothing of this package.
    code = (
        card.partition("```python\n")[2]
        .partition("```")[0]
        .replace("model.saf", f"{tmp_path}/model.saf")
    )
    place: dict[str, Any] = {}
    exec(code, place)
    by_snippet = place["place"](torch.from_numpy(images))[0]
    torch.testing.assert_close(by_snippet, expected.embeddings_nd, atol=1e-4, rtol=1e-3)


def test_a_clusterer_takes_images_in_memory() -> None:
    images = _images(frozen_config())[:, 0]
    fields = {name.replace(".", "__"): value for name, value in FROZEN.items()}
    del fields["data__limit"]
    clusterer = Clusterer(verbose=False, **fields).fit(images)
    assert clusterer.n_features_in_ == 64
    np.testing.assert_array_equal(clusterer.predict(images), clusterer.labels_)
    assert 0 <= clusterer.score(images) <= 1
    assert clusterer._repr_html_().count("<img") > 5


def test_a_clusterer_does_not_carry_vectors_that_were_left_for_other_nodes(
    frozen_run: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(frozen_run, tmp_path / "run")
    (folder / "embeddings/hash").mkdir(parents=True)
    (folder / "embeddings/hash/vectors.npy").write_bytes(b"of all images")
    assert b"of all images" not in pickle.dumps(Clusterer.load(folder))


def test_pictures_of_several_sizes_become_what_a_presets_backbone_takes() -> None:
    noise = np.random.default_rng(0)
    pictures = [
        Image.fromarray(noise.integers(0, 255, (40 + i, 50, 3), dtype=np.uint8)) for i in range(12)
    ]
    few: dict[str, Any] = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}
    settings = {name.replace(".", "__"): value for name, value in few.items()}
    clusterer = Clusterer(2, preset="photos", verbose=False, **settings).fit(pictures)
    assert clusterer.n_features_in_ == 3 * 224 * 224
    squares = from_pictures(pictures[:4], 224).transpose(0, 2, 3, 1)
    expected = clusterer.transform(squares)
    np.testing.assert_allclose(clusterer.transform(pictures[:4]), expected, atol=1e-5)
    space = {"preset": "photos", "search": {"seed": {"int": [0, 9]}}}
    assert _side(space, {}, None, pictures) == 224
    assert _side(space, {}, "digits", pictures) == 32
    assert _side(space, {"views.size": 96}, None, pictures) == 96


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"views.crop_scale": [0.5, 1]}, "views.crop_scale: model.train=head embeds images once"),
        ({"views.rotation": 0.1}, "leave it out, or set data.embedded_views"),
        (
            {"data.embedded_views": 2, "views.crop_scale_group_stage": [0.5, 1]},
            "views.crop_scale_group_stage: model.train=head embeds images before training",
        ),
        ({"model.weights": "none"}, "model.train=head: the rest of the backbone would stay as"),
        (
            {"model.train": "all", "data.embedded_views": 2, "views.dropout": 0},
            "data.embedded_views=2: model.train=all does not use it, only head: leave it out",
        ),
        ({"model.train": "all"}, "views.dropout=0.2: data.source=digits does not use it"),
        (
            {"model.backbone": "timm:tf_efficientnet_lite9"},
            "did you mean timm:tf_efficientnet_lite",
        ),
        ({"model.weights": "package:no-such"}, "no package no-such is installed"),
        ({"model.weights": "/no/such/file.safetensors"}, "/no/such/file.safetensors"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(
    changes: dict[str, Any], problem: str
) -> None:
    from conr_ray.frozen import check_frozen

    with pytest.raises(UserError) as caught:
        check_frozen(load_preset("digits", {**FROZEN, **changes}))
    assert problem in str(caught.value) and "\n" not in str(caught.value)


def test_a_preset_becomes_one_on_embedded_images() -> None:
    config = load_preset("cifar10", {"model.backbone": "timm:vit", "model.train": "head"})
    assert config.views.crop_scale == (0.08, 1.0) and config.embeds_once
    digits = {"model.backbone": "timm:vit", "model.train": "head"}
    assert load_preset("digits", digits).views.rotation == 0
    # With random views they are those of the preset.
    with_views = load_preset("digits", {**digits, "data.embedded_views": 2})
    assert with_views.views.rotation == 0.17
    # A backbone with the weights of another run sees views in each step.
    started = {"model.train": "head", "model.init": "runs/a", "data.path": "images"}
    in_steps = load_preset("imagenet_dogs", started)
    assert not in_steps.embeds_once and in_steps.views.blur_probability == 0.5
    once = {"model.backbone": "timm:vit", "model.init": None}
    assert override(in_steps, once).views.blur_probability == 0
