"""A run's directory applied to samples: what it takes, and what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conr_ray import TrainedRun, UserError
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from tests.tiny_runs import on_vectors, run_here, tiny_config

WIDTH = 12


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Any]:
    """A run on digits and its samples."""
    folder, config = tmp_path_factory.mktemp("images"), tiny_config()
    RunDirectory(folder).claim(config, resume=False)
    run_here(config, folder)
    return TrainedRun.load(folder), open_data(config.data).rows


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainedRun, Any]:
    """The same of vectors."""
    folder = tmp_path_factory.mktemp("vectors")
    rows = np.random.default_rng(0).standard_normal((300, WIDTH), np.float32)
    changes = on_vectors(folder / "vectors.parquet", rows)
    config = tiny_config(**changes, clustering__num_clusters=3)
    run_here(config, folder / "run")
    return TrainedRun.load(str(folder / "run")), rows


def test_arrays_and_tensors_of_samples_get_the_clusters_of_the_run(
    images: tuple[TrainedRun, Any], vectors: tuple[TrainedRun, Any]
) -> None:
    for run, rows in (images, vectors):
        told = run.assign(rows)[0]
        assert len(told.unique()) > 1
        assert torch.equal(told, run.assign(torch.from_numpy(np.array(rows)))[0])
        assert torch.equal(told[:1], run.assign(rows[:1])[0])
        assert run.embed(rows[:0]).shape == (0, 16)
    run, rows = vectors
    assert torch.equal(run.assign(rows)[0], run.assign(rows.astype(np.float64))[0])
    # As other models hand vectors out.
    half = torch.from_numpy(rows).bfloat16().requires_grad_()
    assert torch.equal(run.assign(half)[0], run.assign(half.detach().float().numpy())[0])


def test_the_own_samples_lie_where_the_run_has_written_that_they_lie(tmp_path: Path) -> None:
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        config = tiny_config(optim__precision=precision, boundary__initial_fraction=0.6)
        run_here(config, folder)
        run, rows = TrainedRun.load(folder), open_data(config.data).rows
        told = RunDirectory(folder).read_table("assignments.parquet")
        assert told is not None and run.num_clusters == 10 and run.sample_shape == (1, 8, 8)
        placement = run.place(rows)
        assert placement.clusters_n.tolist() == told.column("cluster").to_pylist()
        ratios = told.column("boundary_ratio").to_numpy()
        np.testing.assert_allclose(placement.boundary_ratios_n, ratios, rtol=1e-3)
        quotient = placement.distances_n / placement.other_distances_n
        assert torch.equal(placement.boundary_ratios_n, quotient)
        assert run.confident_ratio is not None
        assert (ratios <= run.confident_ratio).sum() == round(0.6 * len(rows))


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "images",
            lambda x: (x / 255).astype(np.float32),
            "float32: the run takes uint8 from 0",
        ),
        ("images", lambda x: x > 0, "samples of bool: the run takes uint8 from 0 to 255"),
        ("images", lambda x: x[0], "of shape 1 x 8 x 8: give several, as samples[None]"),
        ("images", lambda x: x[:, 0], "of shape 300 x 8 x 8: give several, as samples[None]"),
        ("images", lambda x: np.repeat(x, 3, 1), "300 x 3 x 8 x 8: the run takes n x 1 x height x"),
        ("images", lambda x: x[:, :, :0], "300 x 1 x 0 x 8: the run takes n x 1 x height x width"),
        ("images", lambda x: None, "samples of shape one number: the run takes n x 1 x height x"),
        ("vectors", lambda x: x.astype(np.int64), "samples of int64: the run takes floats"),
        ("vectors", lambda x: x.astype(np.complex64), "samples of complex64: the run takes floats"),
        ("vectors", lambda x: x[0], "samples of shape 12: give several, as samples[None]"),
        ("vectors", lambda x: x[:, :5], "samples of shape 300 x 5: the run takes n x 12 features"),
        ("vectors", lambda x: np.where(x == x[7], np.nan, x), "sample 7 is not finite as float32"),
        ("vectors", lambda x: x.astype(np.float64) * 1e300, "sample 0 is not finite as float32"),
    ],
)
def test_what_the_run_was_not_trained_on_is_refused_and_nothing_warned_of(
    request: pytest.FixtureRequest, kind: str, change: Any, message: str
) -> None:
    run, rows = request.getfixturevalue(kind)
    given = change(rows)
    with warnings.catch_warnings(action="error"), pytest.raises(UserError) as refused:
        run.assign(given)
    assert message in str(refused.value)


def test_the_newest_checkpoint_that_is_whole_is_used_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(tiny_config(schedule__epochs=3, checkpoint__keep=3), tmp_path)
    states = [tmp_path / f"checkpoints/epoch_00000{epoch}/state.pt" for epoch in (1, 2, 3)]
    states[2].write_bytes(b"")
    states[1].unlink()
    capsys.readouterr()
    assert TrainedRun.load(tmp_path).state.epoch == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{states[2]} is damaged (its checksum does not match): that after 1 epochs is used",
        f"{states[1]} is damaged (it is missing): that after 1 epochs is used",
    ]
    # Nothing but a command that trains deletes them.
    assert states[2].exists()
    states[0].write_bytes(b"")
    with pytest.raises(UserError, match=r"epoch_000003/state\.pt is damaged"):
        TrainedRun.load(tmp_path)
    assert capsys.readouterr().err == ""


def test_what_is_no_trained_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a run: it holds no config\.yaml"):
        TrainedRun.load(tmp_path / "nowhere")
    RunDirectory(tmp_path / "begun").claim(tiny_config(), resume=False)
    with pytest.raises(UserError, match="begun holds no checkpoint: resume the run to have one"):
        TrainedRun.load(tmp_path / "begun")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_not_taken_for_damage(tmp_path: Path) -> None:
    run_here(tiny_config(schedule__epochs=3), tmp_path)
    with pytest.raises(UserError, match="device=cuda: torch sees no GPU here: use cpu"):
        TrainedRun.load(tmp_path, "cuda")
