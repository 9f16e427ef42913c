from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import spearmanr

from conr_ray.engine.run_directory import RunDirectory
from conr_ray.errors import UserError
from conr_ray.reporting.effect_charts import fraction_effect
from conr_ray.reporting.run_data import group_start, metric_names, read_run
from conr_ray.reporting.search_data import (
    agreements,
    bands_of,
    grid_of,
    groups_of,
    read_search,
)
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.storage.files import Folder
from tests.reporting.made_searches import FRACTION, K1_K2, SEEDS, make_search

K1, K2 = "neighborhood.k1", "neighborhood.k2"


def test_a_search_is_read_as_it_was_left(tmp_path: Path) -> None:
    states = ("complete", "complete", "stopped", "failed", "running")
    data = read_search(make_search(tmp_path / "mine", states))
    assert data.name == "mine"
    assert data.states == {"complete": 2, "stopped": 1, "failed": 1, "interrupted": 1}
    assert data.best is not None and data.best.state == "complete"
    assert data.best.figures["nmi"] == max(t.figures["nmi"] or 0 for t in data.complete)
    assert data.failures == {3: "no luck 3"}
    assert data.labelled and data.outcome == "acc"
    # Trial 0 trained the trunk of 12 epochs; the others went on from it.
    assert data.cost.unshared_epochs == 20 + 20 + 16 + 16
    assert data.cost.epochs == 20 + 8 + 4 + 4
    running = read_search(SearchDirectory(Folder(tmp_path / "mine")), running=True)
    assert running.states["running"] == 1


def test_reading_writes_nothing_and_a_renamed_folder_is_read_too(tmp_path: Path) -> None:
    make_search(tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    journal = (tmp_path / "after" / "study.journal").read_bytes()
    data = read_search(SearchDirectory(Folder(tmp_path / "after")))
    assert len(data.trials) == 6
    assert (tmp_path / "after" / "study.journal").read_bytes() == journal


def test_a_search_that_has_just_begun_has_no_trials(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "a", ())
    (tmp_path / "a" / "study.journal").unlink()
    assert read_search(directory).trials == []
    assert not (tmp_path / "a" / "study.journal").exists()


def test_a_study_in_a_database_has_to_be_named(tmp_path: Path) -> None:
    make_search(tmp_path / "a")
    (tmp_path / "a" / "study.journal").unlink()
    with pytest.raises(UserError, match="give the study's URL"):
        read_search(SearchDirectory(Folder(tmp_path / "a")))


def test_a_damaged_journal_is_told_in_a_line(tmp_path: Path) -> None:
    make_search(tmp_path / "a")
    file = tmp_path / "a" / "study.journal"
    file.write_bytes(b"{garbage\n" + file.read_bytes())
    told = r"of \d+ entries, all after the first 0 are damaged or missing: restore the file"
    with pytest.raises(UserError, match=told):
        read_search(SearchDirectory(Folder(tmp_path / "a")))


def test_trials_with_damaged_files_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "a")
    (tmp_path / "a/trials/0002-made/metrics.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a/trials/0003-made/origin.json").write_text("{")
    data = read_search(directory)
    assert set(data.problems) == {"trial 0002-made", "trial 0003-made"}
    assert sum(t.values is not None for t in data.trials) == 5


def test_the_grid_holds_means_by_k1_and_k2(tmp_path: Path) -> None:
    fields = {K1: {"choice": [5, 10]}, K2: {"choice": [1, 2]}, **SEEDS}
    directory = make_search(
        tmp_path / "a", ("complete",) * 12, fields=fields, sampler="grid", first=None
    )
    data = read_search(directory)
    grid = grid_of(data, K1, K2, "acc")
    assert grid is not None
    assert [str(r) for r in grid.rows] == ["5", "10"] and [str(c) for c in grid.columns] == [
        "1",
        "2",
    ]
    for r, k1 in enumerate((5, 10)):
        for c, k2 in enumerate((1, 2)):
            values = [
                t.figures["acc"] or 0 for t in data.trials if (t.point[K1], t.point[K2]) == (k1, k2)
            ]
            assert grid.counts[r][c] == len(values)
            if values:
                assert grid.means[r][c] == pytest.approx(statistics.mean(values))
    assert grid_of(data, K1, "boundary.initial_fraction", "acc") is None


def test_many_values_of_k1_are_put_into_ranges(tmp_path: Path) -> None:
    directory = make_search(
        tmp_path / "a", ("complete",) * 40, fields=K1_K2, sampler="random", epochs=4, start=2
    )
    data = read_search(directory)
    grid = grid_of(data, K1, K2, "acc")
    assert grid is not None and len(grid.rows) == 10
    assert sum(map(sum, grid.counts)) == 40
    assert all(low.high < high.low for low, high in zip(grid.rows, grid.rows[1:], strict=False))
    assert any(" to " in str(one) for one in grid.rows)


def test_groups_have_mean_and_deviation_over_seeds(tmp_path: Path) -> None:
    directory = make_search(
        tmp_path / "a", ("complete",) * 9, fields={**FRACTION, **SEEDS}, sampler="random"
    )
    data = read_search(directory)
    groups = groups_of(data, "boundary.initial_fraction", "acc")
    assert sum(len(g.outcomes) for g in groups) == 9
    assert [g.value for g in groups] == sorted(g.value for g in groups)
    for group in groups:
        same = [
            t.figures["acc"]
            for t in data.trials
            if t.point["boundary.initial_fraction"] == group.value
        ]
        assert sorted(group.outcomes) == sorted(v for v in same if v is not None)
        assert (group.deviation is None) == (len(same) == 1)


def test_scores_are_ranked_against_acc(tmp_path: Path) -> None:
    data = read_search(make_search(tmp_path / "a"))
    found = {one.score: one for one in agreements(data)}
    assert set(found) == {"label_free", "silhouette", "neighbor_consistency"}
    trials = found["label_free"].trials
    expected = spearmanr(
        [t.figures["label_free"] for t in trials], [t.figures["acc"] for t in trials]
    ).statistic
    assert found["label_free"].rho == pytest.approx(expected) == pytest.approx(1.0)
    unlabelled = make_search(tmp_path / "b", metric="label_free", labelled=False)
    assert agreements(read_search(unlabelled)) == []
    few = read_search(make_search(tmp_path / "c", ("complete", "complete")))
    assert [one.rho for one in agreements(few)] == [None] * 3


def test_bands_are_means_over_the_trials_of_a_method(tmp_path: Path) -> None:
    fields = {
        "schedule.group_start": {"choice": [12, "never"]},
        "neighborhood.kind": {"choice": ["contextual", "euclidean"]},
        **SEEDS,
    }
    directory = make_search(
        tmp_path / "a",
        ("complete",) * 13,
        fields=fields,
        sampler="grid",
        first=[{"schedule.group_start": 12}],
    )
    data = read_search(directory)
    bands = {band.variant: band for band in bands_of(data, "nmi")}
    assert set(bands) == {"CoNR", "Euclidean neighbours", "Framework alone"}
    assert sum(band.num_trials for band in bands.values()) == 13
    for variant, band in bands.items():
        last = [t.rows[-1]["nmi"] for t in data.trials if data.variants[t.number] == variant]
        assert band.means[-1] == pytest.approx(statistics.mean(last))  # type: ignore[type-var]
        assert band.epochs[-1] == 20
    # In the instance stage a run is evaluated seldom; no epoch is there that only some have.
    assert 13 not in bands["Framework alone"].epochs and 13 in bands["CoNR"].epochs


def test_several_metrics_have_a_pareto_set(tmp_path: Path) -> None:
    directory = make_search(tmp_path / "a", metric=["nmi", "train_time_s"])
    data = read_search(directory)
    assert any(t.in_pareto_set for t in data.trials)
    assert data.best is not None and data.best.in_pareto_set


def test_a_run_is_read_with_its_snapshot_and_map(finished_run: Path) -> None:
    data = read_run(RunDirectory(finished_run))
    assert data.problems == {}
    assert data.main_metrics == ["acc", "nmi", "ari", "balanced_acc", "neighbor_purity"]
    assert data.figures["acc"] == data.rows[-1]["acc"]
    assert group_start(data.rows) == 2
    assert {"acc", "loss", "fraction", "lr"} <= metric_names(data.rows)
    assert data.snapshot is not None and data.positions is not None
    assert data.positions.shape == (300, 2)
    assert data.variant == "CoNR"


@pytest.mark.parametrize(
    ("metric", "labelled", "better"),
    [("nmi", True, max), ("loss", False, min), ("train_time_s", False, min), ("loss", True, max)],
)
def test_the_best_is_the_smallest_where_the_search_makes_the_outcome_small(
    tmp_path: Path, metric: str, labelled: bool, better: Callable[[list[float]], float]
) -> None:
    # With labels fields are compared by ACC, whatever the search makes small.
    data = read_search(make_search(tmp_path / "mine", metric=metric, labelled=labelled))
    means = [group.mean for group in groups_of(data, "boundary.initial_fraction", data.outcome)]
    assert data.best_of(means) == better(means)
    chart = fraction_effect(data)
    assert chart is not None
    assert f"The best mean is {better(means):.3f}" in chart.views[0].caption
