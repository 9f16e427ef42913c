"""Corrections spread to samples with similar contexts, and by `recluster --edits`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import conr_ray.recluster
from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.session import Session
from conr_ray.edits.log import JUNK
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import UserError
from conr_ray.method.clustering.corrections import corrected_clusters
from tests.browsing.conftest import digits, run  # noqa: F401


def test_a_correction_pulls_its_neighbours_and_nobody_else() -> None:
    # Three groups, in each all are neighbours; a clustering that has two of them as one.
    groups = np.repeat(np.arange(3), 8)
    near = torch.tensor(
        [[j for j in range(24) if groups[j] == groups[i] and j != i] for i in range(24)]
    )
    clusters = torch.tensor([0] * 16 + [1] * 8)
    fixed = torch.zeros(24, dtype=torch.bool)
    assert corrected_clusters(near, clusters, fixed, 3).tolist() == clusters.tolist()
    clusters[[8, 9, 10, 11, 12]] = 2
    fixed[[8, 9, 10, 11, 12]] = True
    found = corrected_clusters(near, clusters, fixed, 3)
    assert found.tolist() == [0] * 8 + [2] * 8 + [1] * 8


def test_what_is_fixed_stays_against_all_neighbours() -> None:
    near = torch.tensor([[j for j in range(40) if j != i] for i in range(40)])
    clusters = torch.zeros(40, dtype=torch.int64)
    clusters[0] = 1
    fixed = clusters == 1
    assert corrected_clusters(near, clusters, fixed, 2).tolist() == [1] + [0] * 39
    clusters[5] = -1
    assert corrected_clusters(near, clusters, fixed, 2)[5] == 0


def test_recluster_with_edits(run: Path) -> None:  # noqa: F811
    with pytest.raises(UserError, match=r"nothing of .* is changed"):
        conr_ray.recluster.main(["--run", str(run), "--edits"])
    with Session(open_collection(str(run))) as session:
        session.merge([0, 1], into=1)
        session.rename(1, "round ones")
        moved = session.members(2, 0, 4).tolist()
        session.move(moved, 5)
        session.move(session.members(7, 0, 2).tolist(), JUNK)
        before = [session.cluster_of(row) for row in range(300)]
    conr_ray.recluster.main(["--run", str(run), "--edits"])
    folder = run / "recluster/9"
    assert yaml.safe_load((folder / "names.yaml").read_text()) == {1: "round ones"}
    found = pq.read_table(folder / "assignments.parquet")["cluster"].to_numpy()
    assert (found[moved] == 5).all() and found.min() == 1 and found.max() == 9
    same = np.array(before) == found
    assert 0.6 < same.mean() < 1
    again = TrainedRun.load(run, num_clusters=9, edits=True)
    assert again.edits is not None and again.edits.names == {1: "round ones"}
