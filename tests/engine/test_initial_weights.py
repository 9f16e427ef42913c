"""Runs that start from the weights of another run, of its export, or of a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet18

import conr_ray.train
from conr_ray import Clusterer
from conr_ray.config import ModelConfig, RunConfig
from conr_ray.data.store import open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.initial_weights import InitialWeights, check_initial_weights
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.training_state import TrainingState
from conr_ray.engine.trunk_store import trunk_name
from conr_ray.errors import UserError
from conr_ray.exporting.export_folder import export
from conr_ray.method.collectives import rank
from conr_ray.method.networks import portable_names
from tests.engine.test_loop import StopAfter, assert_same_tensors, final_state
from tests.engine.test_trunk import fork, origin_of, store_in, the_trunk
from tests.gloo_workers import run_workers
from tests.tiny_runs import TINY, as_settings, on_vectors, run_here, tiny_config, without_times

IMAGE = (1, 8, 8)
RGB = (3, 32, 32)
WIDTHS = ModelConfig().widths


def resnet_config(**changes: Any) -> RunConfig:
    fields = {"model__backbone": "resnet18", "model__stem": "imagenet", **changes}
    return tiny_config(model__widths=WIDTHS, **fields)


def started(config: RunConfig, row_shape: tuple[int, ...] = IMAGE) -> TrainingState:
    """The state with which a run of `config` begins."""
    state = TrainingState.create(config, row_shape, Acceleration(torch.device("cpu"), "fp32"))
    if config.model.init is not None:
        state.start_from(InitialWeights.read(config.model.init).fitted(config, row_shape))
    return state


def encoder_of(folder: Path | str) -> dict[str, Tensor]:
    """Of the last checkpoint: the network that the run clusters with."""
    return InitialWeights.read(str(folder)).tensors


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run to start from, beside its export."""
    folder = tmp_path_factory.mktemp("old") / "run"
    run_here(tiny_config(seed=1), folder)
    RunDirectory(folder).write_config(tiny_config(seed=1))
    export(str(folder), f"{folder}-export", ["safetensors"])
    return folder


def test_a_run_starts_from_another_ones_encoder_in_all_its_networks(old: Path) -> None:
    state, fresh = started(tiny_config(model__init=str(old))), started(tiny_config())
    encoder = encoder_of(old)
    assert {name.partition(".")[0] for name in encoder} == {"backbone", "projector"}
    for network in (state.framework.encoder, state.framework.target.encoder):
        own = portable_names(network)
        for name, tensor in encoder.items():
            assert torch.equal(own[name], tensor), name
    # What is no part of an encoder is as in any run.
    predictors = (s.framework.predictor.state_dict() for s in (state, fresh))
    assert_same_tensors(*predictors)


def test_a_run_its_checkpoint_elsewhere_and_its_export_are_the_same_weights(
    old: Path, s3_bucket: str
) -> None:
    bucket = RunDirectory(f"{s3_bucket}/run")
    for name in RunDirectory(old).paths_below("checkpoints"):
        data = RunDirectory(old).read_bytes(f"checkpoints/{name}")
        assert data is not None
        bucket.write_bytes(f"checkpoints/{name}", data)
        bucket.write_bytes(f"files/{Path(name).name}", data)
    exported = f"{old}-export/model.safetensors"
    bucket.write_bytes("files/model.safetensors", Path(exported).read_bytes())
    places = [str(old), exported, bucket.uri, f"{bucket.uri}/files/model.safetensors"]
    assert len({InitialWeights.read(place).digest for place in places}) == 1


def test_other_heads_are_drawn_anew_and_another_framework_takes_the_encoder(old: Path) -> None:
    wider = started(tiny_config(model__init=str(old), model__embedding_dim=24))
    backbone = {n: t for n, t in encoder_of(old).items() if n.startswith("backbone.")}
    own, fresh = (
        portable_names(s.framework.encoder)
        for s in (wider, started(tiny_config(model__embedding_dim=24)))
    )
    for name in own:
        if name in backbone:
            assert torch.equal(own[name], backbone[name])
        elif name.startswith("projector."):
            assert torch.equal(own[name], fresh[name])
    moco = started(tiny_config(model__init=str(old), model__framework="moco"))
    own = portable_names(moco.framework.encoder)
    assert all(torch.equal(own[name], tensor) for name, tensor in encoder_of(old).items())
    # The projector of SimSiam ends with a normalisation.
    simsiam = tiny_config(model__init=str(old), model__framework="simsiam")
    taken = InitialWeights.read(str(old)).fitted(simsiam, IMAGE)
    assert taken.keys() == backbone.keys()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("pt", torch.float32), ("pth", torch.float16), ("safetensors", torch.bfloat16)],
)
def test_files_with_torchvisions_names_of_any_precision_are_read(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    network = resnet18(weights=None).to(dtype)
    file = tmp_path / f"weights.{kind}"
    tensors = network.state_dict()
    save_file(tensors, file) if kind == "safetensors" else torch.save(tensors, file)
    state = started(resnet_config(model__init=str(file)), RGB)
    layers = state.framework.encoder.backbone.layers.state_dict()
    assert {name for name in tensors if name not in layers} == {"fc.weight", "fc.bias"}
    for name, tensor in layers.items():
        assert torch.equal(tensor, tensors[name].to(tensor.dtype)), name
    # Without the count of batches, as older files are.
    old = {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    weights = [InitialWeights.read(str(f)) for f in (file, tmp_path / "old.pth")]
    assert weights[0].digest == weights[1].digest


def test_widths_that_fit_are_named(old: Path) -> None:
    config = tiny_config(model__init=str(old), model__widths=[4, 8, 16])
    with pytest.raises(UserError, match=r"set model\.widths=\[4, 8\]$"):
        check_initial_weights(config, IMAGE)


def test_without_a_backbone_the_projector_has_to_fit(tmp_path: Path) -> None:
    vectors = torch.randn(300, 12).numpy()
    changes = on_vectors(tmp_path / "vectors.parquet", vectors)
    changes |= {"model__backbone": "identity", "clustering__num_clusters": 3}
    changes["model__widths"] = WIDTHS
    run_here(tiny_config(**changes, schedule__epochs=3), tmp_path / "old")
    same, wider = (
        tiny_config(**changes, model__init=f"{tmp_path}/old", model__embedding_dim=width)
        for width in (16, 24)
    )
    check_initial_weights(same, (12,))
    with pytest.raises(UserError, match=r"has no weights, and of the projector .*embedding_dim"):
        check_initial_weights(wider, (12,))


def test_a_run_without_checkpoint_of_a_newer_format_or_diverged_is_refused(
    old: Path, tmp_path: Path
) -> None:
    RunDirectory(tmp_path / "begun").write_config(tiny_config())
    state = final_state(old)
    newer, diverged = RunDirectory(tmp_path / "newer"), RunDirectory(tmp_path / "diverged")
    newer.save_checkpoint(4, {**state, "layout": 99, "version": "9.9"}, {}, keep=1)
    framework = {
        n: t * float("nan") if t.is_floating_point() else t for n, t in state["framework"].items()
    }
    diverged.save_checkpoint(4, {**state, "framework": framework}, {}, keep=1)
    changed = RunDirectory(tmp_path / "changed")
    changed.save_checkpoint(4, state, {}, keep=1)
    changed.write_text("config.yaml", "model: {heads: 3}\n")
    for name, message in (
        ("begun", "holds no checkpoint: resume the run to have one"),
        ("newer", "was written by conr_ray 9.9 in another layout .*: give a run that this version"),
        ("diverged", "holds NaN or infinity: give weights from before it diverged"),
        ("changed", "config.yaml: model.heads.*: give a run that this version reads"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            InitialWeights.read(str(tmp_path / name))
        assert str(caught.value).startswith(f"model.init={tmp_path}/{name}: ")


def test_a_resumed_run_needs_the_weights_no_more(old: Path, tmp_path: Path) -> None:
    source = tmp_path / "w.safetensors"
    source.write_bytes(Path(f"{old}-export/model.safetensors").read_bytes())
    config = tiny_config(model__init=str(source))
    whole = run_here(config, tmp_path / "whole")
    assert whole[0]["loss"] != run_here(tiny_config(), tmp_path / "fresh")[0]["loss"]
    digest = InitialWeights.read(str(source)).digest
    record = json.loads((tmp_path / "whole/initial_weights.json").read_text())
    assert record == {"source": str(source), "sha256": digest}
    with pytest.raises(KeyboardInterrupt):
        run_here(config, tmp_path / "run", StopAfter(1))
    source.unlink()
    assert without_times(run_here(config, tmp_path / "run")) == without_times(whole)
    assert_same_tensors(final_state(tmp_path / "run"), final_state(tmp_path / "whole"))


def test_a_trunk_is_of_its_initial_weights_wherever_they_are(old: Path, tmp_path: Path) -> None:
    exported = f"{old}-export/model.safetensors"
    digest = InitialWeights.read(exported).digest
    names = {
        trunk_name(tiny_config(model__init=place), "images", digest) for place in ("a", "/b.pt")
    }
    names.add(trunk_name(tiny_config(model__init="a"), "images", "other"))
    names.add(trunk_name(tiny_config(), "images"))
    assert len(names) == 3
    store = store_in(tmp_path, 2)
    for folder, source in (("first", exported), ("second", str(old))):
        fork(tiny_config(model__init=source), store, tmp_path / folder)
    assert [origin_of(tmp_path / f).built_epochs for f in ("first", "second")] == [2, 0]
    whole = run_here(tiny_config(model__init=str(old)), tmp_path / "whole")
    for folder in ("first", "second"):
        rows = RunDirectory(tmp_path / folder).metric_rows()
        assert without_times(rows) == without_times(whole)
        record = json.loads((tmp_path / folder / "initial_weights.json").read_text())
        assert record["sha256"] == digest
    assert json.loads(Path(the_trunk(store).uri, "initial_weights.json").read_text())
    # Others have another.
    fork(tiny_config(), store, tmp_path / "third")
    assert origin_of(tmp_path / "third").built_epochs == 2


@pytest.mark.long
def test_what_an_encoder_has_learned_helps_at_once(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        **{"data__limit": None, "model__widths": [16, 32], "model__head_hidden_dim": 64},
        **{"model__embedding_dim": 32, "schedule__group_start": "never", "bank__size": 0},
    }
    old = tiny_config(**fields, schedule__epochs=15, evaluation__every=15, seed=1)
    run_here(old, tmp_path / "old")
    nmi = []
    for init in (None, str(tmp_path / "old")):
        config = tiny_config(**fields, schedule__epochs=2, model__init=init)
        nmi.append(float(run_here(config, tmp_path / f"from {init is None}")[0]["nmi"] or 0))
    assert nmi[1] > nmi[0] + 0.1


def _command(storage: Path, *words: str) -> Path:
    """The folder of a run that the command has trained in this process."""
    conr_ray.train.main(
        ["--local", "--storage", str(storage), "--name", "run", *as_settings(TINY), *words]
    )
    return storage / "run"


def test_the_command_trains_more_clusters_of_other_images_from_the_encoder_of_a_run(
    old: Path, tmp_path: Path
) -> None:
    pixels = open_data(tiny_config(data__limit=None).data).rows[-160:, 0]
    for number, image in enumerate(pixels):
        file = tmp_path / f"photos/{number:03d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    own = {"data.source": "folder", "data.path": tmp_path / "photos", "data.limit": "null"}
    more = as_settings({**own, "clustering.num_clusters": 20})
    run = _command(tmp_path, "--preset", "digits", "--init", str(old), *more)
    assigned = RunDirectory(run).read_table("assignments.parquet")
    assert assigned is not None and len(assigned) == 160
    assert len(set(assigned.column("cluster").to_pylist())) == 20
    config = RunDirectory(run).read_config()
    assert config is not None and config.model.init == str(old)


def test_the_command_goes_on_without_the_file_and_trains_more_epochs(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "w.safetensors"
    file.write_bytes(Path(f"{old}-export/model.safetensors").read_bytes())
    words = ["--preset", "digits", "--init", "w.safetensors"]
    run = _command(tmp_path / "runs", *words)
    file.unlink()
    longer = [*words, "--resume", "--set", "schedule.epochs=6"]
    assert run == _command(tmp_path / "runs", *longer)
    assert len(RunDirectory(run).metric_rows()) == 6
    with pytest.raises(UserError, match=r"holds another run \(model\.init: "):
        _command(tmp_path / "runs", "--preset", "digits", "--resume")


@pytest.mark.slow
def test_the_clusterer_takes_it_too(old: Path) -> None:
    rows = open_data(tiny_config(data__limit=300).data).rows[:100, 0]
    fields: dict[str, Any] = {
        "evaluation__neighbors": False,
        **{"model__widths": [4, 8], "model__head_hidden_dim": 32, "model__embedding_dim": 16},
        **{"schedule__epochs": 2, "schedule__group_start": 1, "schedule__warmup_epochs": 0},
    }
    losses = [
        Clusterer(10, verbose=False, **fields, **init).fit(rows).history_["loss"][0]
        for init in ({}, {"model__init": str(old)})
    ]
    assert losses[0] != losses[1]
    with pytest.raises(UserError, match=r"^model\.init=/.*/nowhere\.pt: there is no such file"):
        Clusterer(10, verbose=False, model__init="nowhere.pt").fit(rows)


def _start_together(config: RunConfig, folder: Path, places: list[Path]) -> Any:
    """A run's rows, or why it has none; each worker is in a folder of its own."""
    os.chdir(places[rank()])
    try:
        return without_times(run_here(config, folder))
    except UserError as error:
        return str(error)


def _fork_together(config: RunConfig, folder: Path) -> Any:
    return without_times(fork(config, store_in(folder, 2), folder / "fork"))


@pytest.mark.slow
def test_two_workers_start_from_the_same_weights(old: Path, tmp_path: Path) -> None:
    config = tiny_config(model__init=str(old))
    alone = without_times(run_here(config, tmp_path / "alone"))
    rows = run_workers(_start_together, 2, config, tmp_path / "pair", [tmp_path] * 2)
    assert rows[0] == rows[1]
    for row, other in zip(rows[0], alone, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-3)
    assert (tmp_path / "pair/initial_weights.json").exists()
    forked = run_workers(_fork_together, 2, config, tmp_path)
    assert forked == rows and origin_of(tmp_path / "fork").built_epochs == 2
    # On another node there may be no such file, or another.
    places = [tmp_path / name for name in ("here", "there")]
    for place in places:
        place.mkdir()
    exported = Path(f"{old}-export/model.safetensors").read_bytes()
    places[0].joinpath("w.safetensors").write_bytes(exported)
    config = tiny_config(model__init="w.safetensors")
    apart = "model.init=w.safetensors: another worker cannot read it, or finds other weights"
    told = run_workers(_start_together, 2, config, tmp_path / "none", places)
    assert told[0].startswith(apart) and "there is no such file" in told[1]
    save_file({"0.weight": torch.ones(1)}, places[1] / "w.safetensors")
    told = run_workers(_start_together, 2, config, tmp_path / "other", places)
    assert told[0] == told[1] and told[0].startswith(apart)
    with pytest.raises(UserError, match="another worker cannot read it"):
        RunDirectory(tmp_path / "other").raise_failure()
