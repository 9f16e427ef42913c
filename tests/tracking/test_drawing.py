from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pyarrow.compute as pc
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.snapshot import Snapshot
from conr_ray.tracking import drawing
from conr_ray.tracking.embedding_map import map_2d, plane_2d
from conr_ray.tracking.wandb_media import snapshot_media
from tests.tiny_runs import run_here, tiny_config


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("run")
    run_here(tiny_config(), folder)
    found = Snapshot.read(RunDirectory(folder))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    folder = tmp_path_factory.mktemp("unlabelled")
    rng = np.random.default_rng(0)
    for number in range(100):
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    run_here(
        tiny_config(data__source="folder", data__path=str(folder), data__limit=None),
        folder / "run",
    )
    found = Snapshot.read(RunDirectory(folder / "run"))
    assert found is not None
    return found


def frames(figure: Figure) -> list[str]:
    (axes,) = figure.axes
    patches = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    return [to_hex(patch.get_edgecolor()) for patch in patches]


# What matplotlib, XML or a page would take for something else, or has no room for.
ODD_NAMES = (
    *("$\\LaTeX$", "$", "a_b^c", "100 % \\", "<b>&amp;", "line\nend\x00\x1b[31m", "\ud800\uffff"),
    *("🙂名", "x" * 300, "_hidden"),
)


def is_drawn(figure: Figure | None) -> bool:
    """Whether it can be written as PNG and SVG and is no blank page."""
    assert figure is not None
    png = drawing.written(figure, "png", 100)
    assert drawing.written(figure, "svg", 100)
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return bool(pixels.std() > 5)


def test_wrong_neighbours_and_hard_positives_are_framed(snapshot: Snapshot) -> None:
    figure = drawing.neighbor_grid(snapshot)
    assert is_drawn(figure) and figure is not None
    wrong = pc.sum(pc.invert(snapshot.neighbors["right"])).as_py()
    hard = pc.sum(snapshot.neighbors["hard"]).as_py()
    assert wrong and hard
    found = frames(figure)
    assert (found.count(drawing.WRONG), found.count(drawing.HARD)) == (wrong, hard)
    assert len(found) == wrong + hard


def test_names_of_classes_are_drawn_as_they_are(snapshot: Snapshot) -> None:
    odd = dataclasses.replace(snapshot, class_names=ODD_NAMES)
    figures = {
        "map": drawing.embedding_map(odd, plane_2d(odd.embeddings)),
        "confusion": drawing.confusion_matrix(odd),
        "neighbors": drawing.neighbor_grid(odd),
        "clusters": drawing.cluster_examples(odd),
    }
    for name, figure in figures.items():
        assert is_drawn(figure) and figure is not None
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            svg = drawing.written(figure, "svg", 100).decode()
        texts = [element.text for element in ElementTree.fromstring(svg).iter() if element.text]
        if name != "neighbors":
            shown = {"$\\LaTeX$", "a_b^c", "<b>&amp;", "line\\nend\\x00\\x1b[31m"}
            for word in shown:
                assert any(word in text for text in texts), (name, word)
        assert max(map(len, texts)) < 100
    # The same as W&B is given them.
    assert set(snapshot_media(odd, 0.0)) >= {f"figures/{name}" for name in figures}


def test_without_labels_nothing_is_framed_and_there_is_no_matrix(unlabelled: Snapshot) -> None:
    figure = drawing.neighbor_grid(unlabelled)
    assert is_drawn(figure) and figure is not None
    assert frames(figure) == [] and not figure.legends
    assert drawing.confusion_matrix(unlabelled) is None
    assert is_drawn(drawing.cluster_examples(unlabelled))
    assert is_drawn(drawing.embedding_map(unlabelled, plane_2d(unlabelled.embeddings)))


def test_samples_near_a_boundary_are_small_on_the_map(snapshot: Snapshot) -> None:
    figure = drawing.embedding_map(snapshot, plane_2d(snapshot.embeddings))
    assert is_drawn(figure)
    ratios = snapshot.samples["boundary_ratio"].to_numpy()
    clusters = snapshot.samples["cluster"].to_numpy()
    parts = figure.axes[0].collections
    assert len(parts) == len(np.unique(clusters))
    for cluster, part in zip(np.unique(clusters), parts, strict=True):
        order = np.argsort(ratios[clusters == cluster])
        assert (np.diff(np.asarray(part.get_sizes())[order]) <= 1e-5).all()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert sorted(label.partition(": ")[2] for label in labels) == list("0123456789")


def test_the_matrix_has_its_matches_on_the_diagonal(snapshot: Snapshot) -> None:
    assert snapshot.confusion is not None
    assert is_drawn(drawing.confusion_matrix(snapshot))
    classes, clusters, counts_rc = drawing.confusion_counts(snapshot.confusion)
    for row in snapshot.confusion.to_pylist():
        place = classes.index(row["label"]), clusters.index(row["cluster"])
        assert counts_rc[place] == row["count"]
        assert row["matched"] == (place[0] == place[1])


def test_examples_of_all_clusters_are_drawn(snapshot: Snapshot) -> None:
    figure = drawing.cluster_examples(snapshot)
    assert is_drawn(figure) and figure is not None
    texts = {text.get_text().partition(":")[0] for text in figure.axes[0].texts}
    assert {str(cluster) for cluster in range(10)} <= texts


def test_a_map_keeps_near_ones_near_and_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.eye(5, 20), 60, axis=0)
    points = (groups + 0.2 * rng.normal(size=groups.shape)).astype(np.float32)
    places = map_2d(points)
    assert places.shape == (300, 2) and places.dtype == np.float32
    near = NearestNeighbors(n_neighbors=5).fit(places).kneighbors(return_distance=False)
    same = np.arange(300)[:, None] // 60 == near // 60
    assert same.mean() > 0.97
    assert (map_2d(points) == places).all()


@pytest.mark.parametrize("count", [1, 2, 9, 10, 40])
@pytest.mark.parametrize("width", [1, 16])
def test_few_samples_have_a_map_too(count: int, width: int) -> None:
    points = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    for places in (map_2d(points), plane_2d(points)):
        assert places.shape == (count, 2) and np.isfinite(places).all()


def test_many_clusters_have_colours_of_their_own(tmp_path: Path) -> None:
    assert len(set(drawing.cluster_colors(100))) == 100
    assert len(set(drawing.cluster_colors(7))) == 7
