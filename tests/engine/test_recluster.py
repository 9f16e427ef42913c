"""A finished run's samples in other numbers of clusters."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import conr_ray.recluster
from conr_ray import TrainedRun, UserError
from conr_ray.data.store import open_data
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.metric_names import AGREEMENT_WITH_LABELS, LABEL_FREE_SCORES
from conr_ray.storage.files import Folder
from tests.tiny_runs import run_here, tiny_config

CONFIG = tiny_config(boundary__initial_fraction=0.6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    RunDirectory(folder).claim(CONFIG, resume=False)
    run_here(CONFIG, folder)
    return folder


def recluster(folder: Path, clusters: str, *more: str) -> list[dict[str, str]]:
    """The rows of recluster.csv."""
    conr_ray.recluster.main(["--run", str(folder), "--clusters", clusters, *more])
    out = Folder(more[1] if "--out" in more else f"{folder}/recluster")
    return list(csv.DictReader(io.StringIO(out.read_text("recluster.csv") or "")))


def test_in_its_own_number_a_run_has_its_own_clusters_and_scores(folder: Path) -> None:
    (row,) = recluster(folder, "10")
    own, found = RunDirectory(folder), Folder(f"{folder}/recluster/10")
    for name in ("assignments.parquet", "clusters.csv"):
        assert own.read_bytes(name) == found.read_bytes(name)
    last = own.metric_rows()[-1]
    for name in (*LABEL_FREE_SCORES, *AGREEMENT_WITH_LABELS):
        assert float(row[name]) == pytest.approx(last[name])
    ours, theirs = TrainedRun.load(folder), TrainedRun.load(folder, num_clusters=10)
    assert ours.state.centers is not None and theirs.state.centers is not None
    assert torch.equal(ours.state.centers, theirs.state.centers)
    assert ours.confident_ratio == theirs.confident_ratio


def test_the_best_of_a_range_can_be_applied_and_nothing_is_embedded_twice(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = recluster(folder, "3..6")
    assert [int(row["num_clusters"]) for row in rows] == [3, 4, 5, 6]
    best = int(max(rows, key=lambda row: float(row["neighbor_consistency"]))["num_clusters"])
    told = capsys.readouterr().out
    assert (
        f"highest neighbor consistency: {best} clusters" in told
        and f"recluster/{best}/assign" in told
    )
    run, samples = TrainedRun.load(folder, num_clusters=best), open_data(CONFIG.data).rows
    table = Folder(f"{folder}/recluster/{best}").read_table("assignments.parquet")
    assert table is not None and run.num_clusters == best
    placement = run.place(samples)
    assert placement.clusters_n.tolist() == table.column("cluster").to_pylist()
    ratios = table.column("boundary_ratio").to_numpy()
    np.testing.assert_allclose(placement.boundary_ratios_n, ratios, rtol=1e-3)
    assert (ratios <= (run.confident_ratio or 0)).sum() == round(0.6 * len(samples))
    assert TrainedRun.load(folder).num_clusters == 10
    (part,) = folder.glob("recluster/embeddings-*/part-000000.parquet")
    before = part.stat().st_mtime_ns
    assert recluster(folder, "3..6") == rows
    assert part.stat().st_mtime_ns == before


def test_auto_takes_the_number_that_shows_in_the_embeddings(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = recluster(folder, "auto")
    number = int(row["num_clusters"])
    told = capsys.readouterr().out
    assert f"by the tree of merged clusters: {number} clusters" in told
    assert TrainedRun.load(folder, num_clusters=number).num_clusters == number
    recluster(folder, "3..6")
    assert "by the tree of merged clusters: " in capsys.readouterr().out


def test_the_clusters_of_a_run_can_be_written_to_a_bucket(folder: Path, s3_bucket: str) -> None:
    recluster(folder, "4", "--out", f"{s3_bucket}/four")
    assert Folder(f"{s3_bucket}/four/4").read_table("centers.parquet") is not None


@pytest.mark.parametrize(
    ("clusters", "told"),
    [
        ("many", "--clusters many: give a number, such as 12, or a range"),
        ("5..", "give a number, such as 12, or a range"),
        ("-3", "give a number"),
        ("1", "fewer than 2 clusters tell nothing"),
        ("5..5", "--clusters 5..5: the range holds one number: give 5"),
        ("0..4", "fewer than 2"),
        ("30..5", "the wrong way round: give 5..30"),
        ("5..301", "--clusters 5..301: the run has 300 images: give no more"),
    ],
)
def test_numbers_that_cannot_be_are_refused(folder: Path, clusters: str, told: str) -> None:
    with pytest.raises(UserError, match=told.replace("..", r"\.\.")):
        recluster(folder, clusters)


def test_clusters_that_are_not_there_or_of_other_networks_are_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"recluster/77 holds no clusters: make them .*s 77$"):
        TrainedRun.load(folder, num_clusters=77)
    with pytest.raises(UserError, match="is not a run"):
        recluster(tmp_path, "4")
    longer = tmp_path / "longer"
    shutil.copytree(folder, longer)
    recluster(longer, "4")
    run_here(tiny_config(boundary__initial_fraction=0.6, schedule__epochs=5), longer)
    with pytest.raises(UserError, match="of the run after 4 epochs, not 5: make them with"):
        TrainedRun.load(longer, num_clusters=4)
    # Of other samples than those of the run.
    text = (longer / "config.yaml").read_text()
    summary = longer / "checkpoints/epoch_000005/summary.json"
    summary.write_text(
        summary.read_text().replace('"data_fingerprint": "', '"data_fingerprint": "0')
    )
    assert "limit: 300" in text
    with pytest.raises(UserError, match="these are not the images that the run was trained on"):
        recluster(longer, "4")
