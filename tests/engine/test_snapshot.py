from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from conr_ray.config import RunConfig
from conr_ray.data.pictures import as_picture
from conr_ray.data.store import open_data
from conr_ray.engine.metric_rows import MetricRow
from conr_ray.engine.observer import Observer
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.method.clustering.metrics import clustering_accuracy
from conr_ray.method.neighbors.reranking import contextual_neighbors
from tests.gloo_workers import run_workers
from tests.tiny_runs import run_here, tiny_config


class Album(Observer):
    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def snapshot(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return tiny_config()


@pytest.fixture(scope="module")
def folder(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_here(config, folder)
    return folder


@pytest.fixture
def snapshot(folder: Path) -> Snapshot:
    found = Snapshot.read(RunDirectory(folder))
    assert found is not None
    return found


def test_samples_are_those_of_the_run_with_labels_and_clusters(
    config: RunConfig, folder: Path, snapshot: Snapshot
) -> None:
    images = open_data(config.data)
    assert (snapshot.epoch, snapshot.num_images) == (4, 300)
    assert snapshot.samples["sample_id"].to_pylist() == images.sample_ids.tolist()
    assert images.labels is not None
    assert snapshot.samples["label"].to_pylist() == images.labels.tolist()
    assignments = RunDirectory(folder).read_table("assignments.parquet")
    for name in ("sample_id", "cluster", "boundary_ratio", "kept"):
        assert snapshot.samples[name].to_pylist() == assignments[name].to_pylist()
    lengths = np.linalg.norm(snapshot.embeddings, axis=1)
    assert snapshot.embeddings.shape == (300, 16)
    assert np.allclose(lengths, 1, atol=1e-3)


def test_neighbors_are_the_nearest_and_marked_by_label(
    config: RunConfig, snapshot: Snapshot
) -> None:
    ids = snapshot.samples["sample_id"].to_pylist()
    label = dict(zip(ids, snapshot.samples["label"].to_pylist(), strict=True))
    rows: list[dict[str, Any]] = snapshot.neighbors.to_pylist()
    lists: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        assert row["right"] == (label[row["query_id"]] == label[row["sample_id"]])
        lists.setdefault((row["query_id"], row["kind"]), []).append(row["sample_id"])
    queries = {query for query, _ in lists}
    assert {label[query] for query in queries} == set(range(10))
    _, near = NearestNeighbors(n_neighbors=40).fit(snapshot.embeddings).kneighbors()
    near_ids = {own: [ids[i] for i in found] for own, found in zip(ids, near, strict=True)}
    _, contextual = contextual_neighbors(torch.from_numpy(snapshot.embeddings), k1=10, k2=2, k=11)
    for query in queries:
        # Embeddings on disk are of half precision: of near ties either may come first.
        same = set(lists[query, "euclidean"]) & set(near_ids[query][:10])
        assert len(same) >= 9
        expected = [ids[i] for i in contextual[ids.index(query), 1:].tolist()]
        assert len(set(lists[query, "contextual"]) & set(expected)) >= 7
    for row in rows:
        only = row["sample_id"] not in lists[row["query_id"], "euclidean"]
        assert row["hard"] == (row["right"] and row["kind"] == "contextual" and only)
    assert [row["rank"] for row in rows] == list(range(1, 11)) * 20
    assert any(row["hard"] for row in rows)


def test_examples_are_the_innermost_and_the_outermost_of_each_cluster(snapshot: Snapshot) -> None:
    samples: list[dict[str, Any]] = snapshot.samples.to_pylist()
    for cluster in range(10):
        ratios = {s["sample_id"]: s["boundary_ratio"] for s in samples if s["cluster"] == cluster}
        shown: dict[str, list[int]] = {"typical": [], "boundary": []}
        for row in snapshot.examples.to_pylist():
            if row["cluster"] == cluster:
                shown[row["kind"]].append(row["sample_id"])
        inner_first = sorted(ratios, key=lambda i: ratios[i])
        assert shown["typical"] == inner_first[:5]
        assert shown["boundary"] == inner_first[::-1][: max(0, min(5, len(ratios) - 5))]


def test_all_that_is_shown_has_its_picture(config: RunConfig, snapshot: Snapshot) -> None:
    images = open_data(config.data)
    pictures = dict(
        zip(*(snapshot.pictures[n].to_pylist() for n in ("sample_id", "png")), strict=True)
    )
    shown = {row["query_id"] for row in snapshot.neighbors.to_pylist()}
    for table in (snapshot.neighbors, snapshot.examples):
        shown |= set(table["sample_id"].to_pylist())
    assert set(pictures) == shown
    place = {int(sample): row for row, sample in enumerate(images.sample_ids)}
    for sample, png in pictures.items():
        pixels = np.asarray(Image.open(io.BytesIO(png)))
        assert (pixels == images.rows[place[sample], 0]).all()


def test_the_confusion_matrix_counts_all_and_its_diagonal_is_the_accuracy(
    folder: Path, snapshot: Snapshot
) -> None:
    assert snapshot.confusion is not None
    cells: list[dict[str, Any]] = snapshot.confusion.to_pylist()
    assert sum(cell["count"] for cell in cells) == 300
    right = sum(cell["count"] for cell in cells if cell["matched"])
    assert right / 300 == pytest.approx(RunDirectory(folder).metric_rows()[-1]["acc"])
    labels, clusters = (
        np.repeat([c[name] for c in cells], [c["count"] for c in cells])
        for name in ("label", "cluster")
    )
    assert clustering_accuracy(labels, clusters) == pytest.approx(right / 300)


def test_without_labels_nothing_is_right_or_wrong(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    for number, pixels in enumerate(load_digits().images[:100]):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(tmp_path / f"{number}.png")
    config = tiny_config(
        data__source="folder", data__path=str(tmp_path), data__limit=None, data__classes=None
    )
    run_here(config, tmp_path / "run")
    found = Snapshot.read(RunDirectory(tmp_path / "run"))
    assert found is not None
    assert found.confusion is None and found.class_names is None
    assert found.samples["label"].null_count == 100
    assert found.neighbors["right"].null_count == found.neighbors.num_rows > 0
    assert found.class_name(None) == "unlabelled"


@pytest.mark.slow
def test_who_draws_takes_no_time_from_the_epoch(tmp_path: Path) -> None:
    class Slow(Observer):
        told: ClassVar[list[object]] = []

        def snapshot(self, snapshot: Snapshot) -> None:
            self.told.append(snapshot.epoch)
            time.sleep(3)

        def epoch(self, row: MetricRow) -> None:
            self.told.append(row["epoch"])

    rows = run_here(tiny_config(), tmp_path, Slow())
    assert Slow.told == [0, 1, 2, 4, 3]
    assert all(float(row["epoch_time_s"] or 0) < 2.5 for row in rows[1:])


def test_snapshots_are_taken_when_due_and_after_the_last_epoch(tmp_path: Path) -> None:
    album = Album()
    run_here(tiny_config(evaluation__snapshot_every=3), tmp_path, album)
    assert [s.epoch for s in album.snapshots] == [3, 4]


def _snapshot_of_workers(folder: str) -> None:
    run_here(tiny_config(), Path(folder))


def test_two_workers_write_the_snapshot_of_one(tmp_path: Path, snapshot: Snapshot) -> None:
    run_workers(_snapshot_of_workers, 2, str(tmp_path))
    both = Snapshot.read(RunDirectory(tmp_path))
    assert both is not None
    assert both.samples["sample_id"].equals(snapshot.samples["sample_id"])
    assert both.neighbors["query_id"].equals(snapshot.neighbors["query_id"])
    assert both.pictures.num_rows > 100


def test_pictures_of_large_images_are_small() -> None:
    wide = np.zeros((3, 100, 200), np.uint8)
    assert Image.open(io.BytesIO(as_picture(wide))).size == (128, 64)
    assert Image.open(io.BytesIO(as_picture(wide))).mode == "RGB"
