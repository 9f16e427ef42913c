"""Neighbours, outliers, wrong members and calibration, against plain versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

from conr_ray.curation import members
from conr_ray.curation.calibration import Tail, precisions, threshold
from conr_ray.curation.cells import nearest
from conr_ray.curation.members import wrong_members
from conr_ray.curation.outliers import outliers
from conr_ray.curation.samples import Samples, of_array


def of_vectors(vectors: np.ndarray[Any, Any], folder: Path) -> Samples:
    keys = pa.table({"row": pa.array(np.arange(len(vectors)))})
    return of_array(vectors, keys, None, folder, "vectors")


@pytest.mark.parametrize(("count", "least"), [(2, 1.0), (40, 1.0), (3000, 0.9)])
def test_neighbours_are_exact_for_few_vectors_and_nearly_so_for_many(
    count: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conr_ray.curation.cells._CELL_ROWS", 50)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, 8)) + 3 * rng.normal(size=(30, 8))[rng.integers(0, 30, count)]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    found = nearest(rows, 10, tmp_path)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -9)
    width = min(10, count - 1)
    right = np.argsort(-similar, axis=1)[:, :width]
    shared = [
        len(set(a) & set(b)) for a, b in zip(found.rows_nk.tolist(), right.tolist(), strict=True)
    ]
    assert np.mean(shared) / width >= least
    taken = np.take_along_axis(similar, np.array(found.rows_nk, np.int64), 1)
    np.testing.assert_allclose(found.similarities_nk, taken, atol=1e-5)


def test_a_small_close_group_from_elsewhere_is_far_though_its_members_are_near_each_other(
    tmp_path: Path,
) -> None:
    digits = load_digits()
    rng = np.random.default_rng(0)
    # A few per cent of letters-like patterns: a digit's pixels, shuffled in one way.
    strange = digits.data[digits.target == 3][:40][:, rng.permutation(64)]
    both = np.concatenate([digits.data, strange]).astype(np.float32)
    outer = np.arange(len(both)) >= len(digits.data)
    samples = of_vectors(both, tmp_path)
    neighbors = nearest(samples.vectors_nd, 20, tmp_path / "near")
    found = outliers(samples, neighbors)
    near = -np.asarray(neighbors.similarities_nk)[:, 9]
    assert average_precision_score(outer, found.scores_n) > 0.99
    assert average_precision_score(outer, near) < 0.5
    # The others may be strange digits.
    assert outer[found.rows_m].mean() >= 0.95 and outer[found.rows_m].sum() == 40


def test_members_of_a_cluster_whose_context_is_in_another_are_named(tmp_path: Path) -> None:
    digits = load_digits()
    clusters = digits.target.astype(np.int64).copy()
    moved = np.random.default_rng(0).permutation(len(clusters))[:40]
    clusters[moved] = (clusters[moved] + 3) % 10
    samples = of_vectors(digits.data.astype(np.float32), tmp_path)
    neighbors = nearest(samples.vectors_nd, 20, tmp_path / "near")
    sound = np.ones(len(clusters), bool)
    found = wrong_members(neighbors, clusters, sound)
    assert np.isin(moved, found.rows_m).mean() > 0.95
    # 12 to 14 others are found, the same whoever is moved: 5, 8 and 9 whose contexts are all, or
    # nearly all, of 1, 3, 7 or 9. They look so in these pixels, so that votes cannot tell them from
    # those that were moved; with as few as these the precision is at most 40 of 52 to 54.
    assert np.isin(found.rows_m, moved).mean() > 0.75
    others = found.rows_m[~np.isin(found.rows_m, moved)]
    assert set(digits.target[others].tolist()) <= {3, 5, 8, 9}
    named = dict(zip(found.rows_m.tolist(), found.others_m.tolist(), strict=True))
    right = [named[row] == digits.target[row] for row in moved.tolist() if row in named]
    # One or two of those that are moved look like a third digit.
    assert np.mean(right) >= 0.95
    unknown = np.full_like(clusters, -1)
    assert len(wrong_members(neighbors, unknown, sound).rows_m) == 0


def test_votes_of_blocks_are_those_of_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = load_digits()
    samples = of_vectors(digits.data.astype(np.float32), tmp_path)
    monkeypatch.setattr("conr_ray.curation.cells._CELL_ROWS", 100)
    neighbors = nearest(samples.vectors_nd, 20, tmp_path / "near")
    assert sorted(neighbors.order_n.tolist()) == list(range(len(digits.data)))
    clusters = digits.target.astype(np.int64).copy()
    clusters[::40] = (clusters[::40] + 3) % 10
    sound = np.ones(len(clusters), bool)
    sound[5] = False
    whole = members._votes(neighbors, clusters, sound)
    sizes: list[int] = []
    surroundings = members._surroundings

    def counted(*arguments: Any) -> Any:
        found = surroundings(*arguments)
        sizes.append(len(found))
        assert sound[found].all()
        return found

    monkeypatch.setattr(members, "_surroundings", counted)
    monkeypatch.setattr(members, "_BLOCK", 150)
    parts = members._votes(neighbors, clusters, sound)
    assert len(sizes) == 12 and max(sizes) == 750
    for left, right in zip(whole[:2], parts[:2], strict=True):
        assert np.abs(left - right).mean() < 0.01 and np.quantile(np.abs(left - right), 0.95) < 0.05
    assert (whole[2] == parts[2])[whole[1] > 0.2].mean() > 0.98


def test_precision_is_what_the_tail_lets_expect() -> None:
    rng = np.random.default_rng(0)
    ordinary, true = rng.exponential(1.0, 20_000), rng.normal(14, 2, 300)
    scores = np.concatenate([ordinary, true])
    tail = Tail.between(scores, 0.5, 0.9)
    told = precisions(scores, tail)
    least = threshold(scores, told, 0.9)
    above = scores >= least
    real = (np.arange(len(scores)) >= len(ordinary))[above].mean()
    assert real > 0.85 and above[len(ordinary) :].mean() > 0.9
    assert abs(told[above].min() - real) < 0.1
    order = np.argsort(scores)
    assert (np.diff(told[order]) >= 0).all() and told[scores < np.median(scores)].max() == 0
    # Where all scores are equal there is nothing to find.
    same = np.ones(50)
    assert threshold(same, precisions(same, Tail.between(same, 0.5, 0.9)), 0.9) == np.inf
