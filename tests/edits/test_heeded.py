"""What a person has changed, heeded by predict, report and `Clusterer`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import conr_ray.predict
import conr_ray.report
from conr_ray.browsing.opened import open_collection
from conr_ray.browsing.session import Session
from conr_ray.errors import UserError
from conr_ray.estimator import Clusterer
from tests.browsing.conftest import digits, run  # noqa: F401

DIGITS = ["--dataset", "digits", "--set", "data.limit=200", "--local"]


@pytest.fixture
def edited(run: Path) -> Path:  # noqa: F811
    with Session(open_collection(str(run))) as session:
        session.merge([0, 1], into=1)
        session.rename(1, "round ones")
        session.split(2)
    return run


def predicted(run: Path, out: Path, *more: str) -> np.ndarray:  # type: ignore[type-arg] # noqa: F811
    conr_ray.predict.main(["--run", str(run), "--out", str(out), *DIGITS, *more])
    parts = sorted(out.glob("predictions/*.parquet"))
    return np.concatenate([pq.read_table(part)["cluster"].to_numpy() for part in parts])


def test_predict_heeds_them(edited: Path, tmp_path: Path) -> None:
    plain = predicted(edited, tmp_path / "plain", "--no-edits")
    found = predicted(edited, tmp_path / "edited")
    assert {0, 1, 2} <= set(plain.tolist()) and 10 not in plain and 0 not in found
    assert ((found == 1) == np.isin(plain, (0, 1))).all()
    assert (np.isin(found, (2, 10)) == (plain == 2)).all() and (found == 10).any()
    others = ~np.isin(plain, (0, 1, 2))
    assert (found[others] == plain[others]).all()
    told = json.loads((tmp_path / "edited/prediction.json").read_text())
    assert told["names"] == {"1": "round ones"}
    with Session(open_collection(str(edited))) as session:
        session.undo()
    with pytest.raises(UserError, match="clusters that have been changed since"):
        predicted(edited, tmp_path / "edited")
    assert 10 not in predicted(edited, tmp_path / "edited", "--all")


def test_reports_show_them(edited: Path, tmp_path: Path) -> None:
    predicted(edited, tmp_path / "new")
    with Session(open_collection(str(tmp_path / "new"))) as session:
        session.rename(3, "threes <3")
        session.merge([4, 5], into=5)
    for folder, names in ((edited, ["round ones"]), (tmp_path / "new", ["round ones", "&lt;3"])):
        conr_ray.report.main([str(folder)])
        text = (folder / "report.html").read_text()
        assert all(name in text for name in names)
    assert "cluster 4 (" not in text and "cluster 5 (" in text
    conr_ray.report.main([str(edited), "--no-edits"])
    assert "round ones" not in (edited / "report.html").read_text()


def test_a_clusterer_heeds_them(edited: Path) -> None:
    found, plain = Clusterer.load(edited), Clusterer.load(edited, edits=False)
    assert found.cluster_names_ == {1: "round ones"} and plain.cluster_names_ == {}
    assert ((found.labels_ == 1) == np.isin(plain.labels_, (0, 1))).all()
    assert (found.labels_ == 10).any()


def test_moved_images_stay_where_they_are_put(run: Path) -> None:  # noqa: F811
    with Session(open_collection(str(run))) as session:
        session.move([3, 4], 7)
    assert Clusterer.load(run).labels_[[3, 4]].tolist() == [7, 7]
