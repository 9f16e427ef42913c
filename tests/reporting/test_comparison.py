from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import conr_ray.report
from conr_ray.errors import UserError
from tests.reporting.made_searches import make_search
from tests.reporting.pages import Page


def compare(out: Path, *folders: Path) -> Page:
    """The page of these folders."""
    words = [str(folder) for folder in folders]
    conr_ray.report.main(["--compare", *words, "--out", str(out)])
    return Page(out.read_text())


@pytest.mark.slow
def test_runs_stand_side_by_side(finished_run: Path, byol_run: Path, tmp_path: Path) -> None:
    page = compare(tmp_path / "c.html", finished_run, byol_run)
    parts = ("figures", "fields", "curves", "neighbours", "map", "confusion", "examples")
    assert page.sections == [f"compare-{part}" for part in parts]
    # The one field in which they differ, and nothing that says where they are.
    assert "1 field differs field finished byol schedule.group_start 2 never" in page.text
    curves = page.charts[0]
    names = [trace["name"] for trace in curves[0]["figure"]["data"]]
    assert names == ["finished", "byol"]
    assert len(page.all("div", class_="column")) == 8


def test_a_search_is_there_with_its_best_trial(finished_run: Path, tmp_path: Path) -> None:
    make_search(tmp_path / "mine")
    page = compare(tmp_path / "c.html", tmp_path / "mine", finished_run)
    assert "mine, trial " in page.text
    # Its trials have no snapshot: the other's figures stand alone.
    assert "no snapshot to draw this from" in page.text


def test_equal_names_are_told_apart(finished_run: Path, tmp_path: Path) -> None:
    for parent in ("one", "two"):
        shutil.copytree(finished_run, tmp_path / parent / "run")
    page = compare(tmp_path / "c.html", tmp_path / "one/run", tmp_path / "two/run")
    assert "one/run, two/run" in page.text and "The runs have the same config" in page.text
    page = compare(tmp_path / "c.html", tmp_path / "one/run", tmp_path / "one/run")
    assert "one/run (1), one/run (2)" in page.text


def test_what_cannot_be_compared_is_told(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two or more directories"):
        compare(tmp_path / "c.html", finished_run)
    make_search(tmp_path / "mine", ("failed",))
    with pytest.raises(UserError, match="no trial has trained all its epochs"):
        compare(tmp_path / "c.html", finished_run, tmp_path / "mine")


def test_the_file_is_by_default_in_the_working_directory(
    finished_run: Path, byol_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conr_ray.report.main(["--compare", str(finished_run), str(byol_run)])
    assert (tmp_path / "compare.html").exists()
