from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

import conr_ray.report
from conr_ray.errors import UserError
from tests.reporting.made_searches import FRACTION, K1_K2, SEEDS, make_search


def figures(folder: Path, out: Path) -> set[str]:
    """Names of the figures that the command draws, each of which can be read."""
    conr_ray.report.main([str(folder), "--figures", str(out)])
    for file in out.iterdir():
        if file.suffix == ".svg":
            ElementTree.parse(file)
        else:
            assert min(Image.open(file).size) > 100
    kinds = {kind: {f.stem for f in out.glob(f"*.{kind}")} for kind in ("svg", "png")}
    assert kinds["svg"] == kinds["png"]
    return kinds["svg"]


@pytest.mark.slow
def test_a_search_has_figures_of_what_it_searched(tmp_path: Path) -> None:
    fields = {**K1_K2, **FRACTION, **SEEDS, "schedule.group_start": {"choice": [12, "never"]}}
    first = [{"schedule.group_start": 12}, {"schedule.group_start": "never"}]
    make_search(tmp_path / "a", ("complete",) * 8, fields=fields, first=first)
    found = figures(tmp_path / "a", tmp_path / "out")
    common = {"curves", "importances", "label_free", "cost"}
    assert found == common | {"k1_k2", "fraction", "methods"}
    text = (tmp_path / "out" / "methods.svg").read_text()
    # Words stay words, which can be searched and set in another font.
    assert "Framework alone" in text and "epochs trained" in text


def test_several_metrics_have_a_pareto_set(tmp_path: Path) -> None:
    make_search(tmp_path / "a", metric=["nmi", "train_time_s"])
    assert "pareto" in figures(tmp_path / "a", tmp_path / "out")


@pytest.mark.slow
def test_a_run_has_curves_and_the_figures_of_its_snapshot_and_equal_ones_are_equal_files(
    finished_run: Path, tmp_path: Path
) -> None:
    curves = {"agreement", "label_free", "loss"}
    for name in ("one", "two"):
        found = figures(finished_run, tmp_path / name)
        assert found == curves | {"neighbors", "map", "confusion", "examples"}
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_where_nothing_can_be_drawn_or_written_it_is_told(tmp_path: Path) -> None:
    make_search(tmp_path / "begun", ())
    with pytest.raises(UserError, match="nothing to draw"):
        figures(tmp_path / "begun", tmp_path / "out")
    make_search(tmp_path / "a")
    (tmp_path / "file").touch()
    told = r"/out/\w+.svg cannot be written \(Not a directory\): give another folder$"
    with pytest.raises(UserError, match=told):
        figures(tmp_path / "a", tmp_path / "file" / "out")
