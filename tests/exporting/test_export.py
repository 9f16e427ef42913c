"""Exports of real runs: equal to the run, and loaded by a process that never sees this package."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import torch

import conr_ray.recluster
from conr_ray import TrainedRun
from conr_ray.config import load_preset, override
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import RunFailed, UserError
from conr_ray.export import main
from conr_ray.exporting.export_folder import export
from conr_ray.exporting.formats import FORMATS, compare
from conr_ray.exporting.model_card import model_card
from conr_ray.exporting.network import ClusteringNetwork, random_samples, resized_shape
from conr_ray.searching.best_run import best_run
from conr_ray.storage.files import Folder
from tests.pretrained.models import SMALL, VIT
from tests.reporting.made_searches import make_search
from tests.tiny_runs import TINY, on_vectors, run_here

ALL = list(FORMATS)
SHORT: dict[str, Any] = {"schedule__epochs": 2, "schedule__group_start": 1, "data__limit": 128}
# Every framework, every backbone, images that are enlarged and images that are cropped.
RUNS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "byol": (ALL, {}),
    "moco": (["safetensors", "onnx"], {"model__backbone": "resnet18", "model__stem": "cifar"}),
    "simsiam": (["safetensors", "onnx"], {"vectors": "mlp"}),
    "propos": (["safetensors", "onnx"], {"vectors": "identity"}),
    "enlarged": (["safetensors", "onnx"], {"views__size": 11}),
    "cropped": (
        ["safetensors"],
        {"model__backbone": "resnet34", "model__stem": "imagenet", "views__size": 6},
    ),
    "timm": (
        ["safetensors", "onnx"],
        {"model__backbone": SMALL, "model__weights": "none", "views__size": 32},
    ),
    "sized": (
        ["safetensors"],
        {"model__backbone": VIT, "model__weights": "none", "views__size": 48},
    ),
}
# Executes the code of each card, in order, in the card's folder.
_LOADER = """
import os, re, sys
import numpy as np, torch
for folder in sys.argv[1:]:
    os.chdir(folder)
    samples = np.load("samples.npy")
    codes = re.findall(r"```python\\n(.*?)```", open("README.md").read(), re.S)
    for number, code in enumerate(codes):
        space = {}
        exec(code, space)
        given = samples if "onnxruntime" in code else torch.from_numpy(samples)
        outputs = space["place"](given)
        np.savez(f"outputs{number}.npz", *[np.asarray(o) for o in outputs])
assert not [name for name in sys.modules if name.startswith("conr_ray")]
"""


def _run(name: str, folder: Path) -> tuple[TrainedRun, Any]:
    """A run of a moment, and its samples."""
    changes = dict(SHORT | RUNS[name][1])
    if backbone := changes.pop("vectors", None):
        rows = np.random.default_rng(0).standard_normal((128, 12), np.float32)
        changes |= on_vectors(folder / f"{name}.parquet", rows) | {"model__backbone": backbone}
        changes |= {"clustering__num_clusters": 3}
    framework = name if name in ("moco", "simsiam", "propos") else "byol"
    fields = TINY | {key.replace("__", "."): value for key, value in changes.items()}
    if fields.get("model.backbone", "convnet") not in ("convnet", "mlp"):
        del fields["model.widths"]
    config = load_preset("digits", fields | {"model.framework": framework})
    run_here(config, folder / name)
    return TrainedRun.load(folder / name), np.array(open_data(config.data).rows)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[TrainedRun, Any, Path]]:
    """Each run, its samples, and the folder of its export."""
    runs, out = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("out")
    told = {}
    for name, (formats, _) in RUNS.items():
        run, samples = _run(name, runs)
        export(str(runs / name), str(out / name), formats)
        told[name] = (run, samples, out / name)
    return told


def test_each_format_loads_without_this_package_and_places_samples_as_the_run(
    exported: dict[str, tuple[TrainedRun, Any, Path]],
) -> None:
    for _, samples, out in exported.values():
        np.save(out / "samples.npy", samples)
    folders = [str(out) for _, _, out in exported.values()]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-W", "ignore", "-c", _LOADER, *folders]
    subprocess.run(command, check=True, env=environment, cwd=folders[0])
    for name, (run, samples, out) in exported.items():
        placement = run.place(samples)
        for number in range(len(RUNS[name][0])):
            with np.load(out / f"outputs{number}.npz") as file:
                embeddings, clusters, own, other, ratios = (file[key] for key in file.files)
            np.testing.assert_allclose(embeddings, placement.embeddings_nd, atol=1e-4)
            assert (clusters == placement.clusters_n.numpy()).mean() >= 0.999
            np.testing.assert_allclose(own, placement.distances_n, atol=1e-4)
            np.testing.assert_allclose(other, placement.other_distances_n, atol=1e-4)
            np.testing.assert_allclose(ratios, placement.boundary_ratios_n, rtol=1e-3)
            assert embeddings.dtype == np.float32 and clusters.dtype == np.int64


def test_the_card_and_the_config_tell_what_the_run_is(
    exported: dict[str, tuple[TrainedRun, Any, Path]],
) -> None:
    run, _, out = exported["byol"]
    card, config = (out / "README.md").read_text(), json.loads((out / "config.json").read_text())
    assert set(config["files"]) == {FORMATS[name].file for name in ALL}
    assert config["num_clusters"] == 10 and config["confident_ratio"] == run.confident_ratio
    assert "| acc |" in card and "uses labels" in card and "No figure here saw" not in card
    assert "digits: 128 images of 1 x 8 x 8" in card and "seed 0" in card
    told = model_card(run, config, ["onnx"], ("nmi",))
    assert "The run is a search's best trial in nmi, which used labels." in told
    told = model_card(run, config, ["onnx"], ("silhouette",))
    assert "in silhouette, which used no labels." in told
    init = override(run.config, {"model.init": "s3://key:secret@bucket/w.pth"})
    told = model_card(dataclasses.replace(run, config=init), config, ["onnx"], ())
    assert "- Started from the weights of w.pth\n" in told and "secret" not in told
    assert "Started" not in card
    weights = {"found": "package:some_weights", "sha256": "01ab", "licence": None}
    told = model_card(run, config | {"initial_weights": weights}, ["onnx"], ())
    assert "from the weights package:some_weights, SHA-256 01ab; all of it learned fu" in told
    assert "- Licence of these weights: not known; look it up" in told
    weights |= {"found": "/home/me/w.pth", "licence": "apache-2.0"}
    told = model_card(run, config | {"initial_weights": weights}, ["onnx"], ())
    assert "from the weights w.pth, SHA-256" in told and "weights: apache-2.0\n" in told
    card = (exported["simsiam"][2] / "README.md").read_text()
    assert "simsiam.parquet: 128 vectors of 12" in card
    assert "No figure here saw a label." in card and "| acc |" not in card


def test_reclustered_clusters_are_exported_and_the_card_says_so(
    exported: dict[str, tuple[TrainedRun, Any, Path]], tmp_path: Path
) -> None:
    run, samples, out = exported["byol"]
    place = json.loads((out / "config.json").read_text())["run"]
    conr_ray.recluster.main(["--run", place, "--clusters", "3"])
    main(["--run", place, "--clusters", "3", "--format", "onnx", "--out", f"{tmp_path}/out"])
    session = onnxruntime.InferenceSession(f"{tmp_path}/out/model.onnx")
    (clusters,) = session.run(["cluster"], {"samples": samples})
    told = pq.read_table(f"{place}/recluster/3/assignments.parquet").column("cluster")
    assert (clusters == told.to_numpy()).mean() >= 0.999
    card = (tmp_path / "out/README.md").read_text()
    assert ": 3 clusters\n" in card and "128 images" in card
    assert f"The figures are of the run's own {run.num_clusters} clusters." in card
    assert "of the run's own" not in (out / "README.md").read_text()


def test_an_export_goes_to_a_bucket_and_replaces_only_itself(
    exported: dict[str, tuple[TrainedRun, Any, Path]],
    s3_bucket: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, out = exported["propos"]
    run = json.loads((out / "config.json").read_text())["run"]
    place = f"{s3_bucket}/exports/one"
    main(["--run", run, "--format", "safetensors", "--format", "torchscript", "--out", place])
    assert "model.safetensors" in capsys.readouterr().out
    main(["--run", run, "--format", "safetensors", "--out", place])
    names = ["README.md", "config.json", "model.safetensors"]
    assert sorted(Folder(place).file_names("")) == names
    other = json.loads((exported["byol"][2] / "config.json").read_text())["run"]
    with pytest.raises(UserError, match="holds an export of"):
        export(other, place, ["safetensors"])
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"--out=.*: it holds thesis.tex: choose another folder"):
        export(run, str(tmp_path), ["safetensors"])
    with pytest.raises(UserError, match="--format=tflite: no such format: choose from"):
        main(["--run", run, "--format", "tflite", "--out", place])
    with pytest.raises(UserError, match="--format: none is given"):
        main(["--run", run, "--out", place])
    with pytest.raises(UserError, match="one of --run DIR and --best-of SEARCH"):
        main(["--out", place])
    with pytest.raises(UserError, match="is not a search"):
        main(["--best-of", run, "--format", "onnx", "--out", place])


def test_a_run_without_centres_is_refused(
    exported: dict[str, tuple[TrainedRun, Any, Path]],
) -> None:
    config = json.loads((exported["propos"][2] / "config.json").read_text())
    run = TrainedRun.load(config["run"])
    run.state.centers = None
    with pytest.raises(UserError, match="no clusters yet: train it to its next evaluation"):
        ClusteringNetwork.of(run)


def test_a_file_that_gives_something_else_is_refused(
    exported: dict[str, tuple[TrainedRun, Any, Path]],
) -> None:
    run, _, _ = exported["enlarged"]
    network, samples = ClusteringNetwork.of(run), random_samples(run, 5)
    told = network(samples)
    compare("it", told, told, network)
    for place, wrong in enumerate([told[0] + 1e-3, told[1] + 1, *(t + 1e-2 for t in told[2:])]):
        changed = list(told)
        changed[place] = wrong % len(network.centers) if place == 1 else wrong
        with pytest.raises(RunFailed, match=r"it: \w+ differs from the run's by"):
            compare("it", tuple(changed), told, network)


@pytest.mark.parametrize("shape", [(8, 8), (5, 9), (30, 7), (7, 100), (12, 12)])
def test_images_are_prepared_as_in_training(shape: tuple[int, int]) -> None:
    from conr_ray.config import ViewsConfig
    from conr_ray.data.views import Views
    from conr_ray.exporting.network import ImagePreparation

    images = torch.randint(0, 256, (3, 3, *shape), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.0]
    prepared = ImagePreparation(*shape, 9, mean, std)(images)
    assert torch.equal(prepared, Views(ViewsConfig(size=9), mean, std).plain(images))
    assert min(resized_shape(*shape, 9)) >= 9


def test_the_best_trial_of_a_search_is_taken(tmp_path: Path) -> None:
    search = make_search(tmp_path / "search", metric="nmi")
    newest = {
        folder.name: RunDirectory(folder).metric_rows()[-1]["nmi"]
        for folder in (tmp_path / "search" / "trials").iterdir()
    }
    best = max(newest, key=lambda name: newest[name] or 0)
    assert best_run(search.uri, None) == (f"{search.uri}/trials/{best}", ("nmi",))
