"""A search on disk that is moved, renamed, asked for twice, or given other images."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from conr_ray.engine.initial_weights import weights_digest
from conr_ray.engine.trunk_store import TrunkStore, open_trunks, trunk_name
from conr_ray.errors import UserError
from conr_ray.scaling.actor_locks import ActorLocks
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching.live_display import LiveDisplay
from conr_ray.searching.run_search import run_search
from conr_ray.searching.search_directory import SearchDirectory
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.study_searcher import POINT
from conr_ray.storage.files import Folder
from conr_ray.tracking.wandb_settings import WandbSettings
from tests.search.test_space import K1, START, space_of

FIELDS = {K1: {"int": [5, 20]}}


def at(folder: Path) -> SearchDirectory:
    return SearchDirectory(Folder(folder))


def test_a_renamed_search_keeps_its_study(tmp_path: Path) -> None:
    space = space_of(tmp_path, FIELDS)
    at(tmp_path / "a").claim(space, resume=False)
    at(tmp_path / "a").open_study(space).ask()
    (tmp_path / "a").rename(tmp_path / "b")
    at(tmp_path / "b").check(space, resume=True)
    assert len(at(tmp_path / "b").open_study(space).trials) == 1


def test_a_search_goes_on_where_its_images_have_moved(tmp_path: Path) -> None:
    def space(path: str, **fixed: Any) -> SearchSpace:
        fields = {"data.source": "folder", "data.path": path, **fixed}
        return space_of(tmp_path, FIELDS, fixed=fields)

    directory = at(tmp_path / "search")
    directory.claim(space("/here"), resume=False)
    directory.claim(space("/there"), resume=True)
    known = directory.read_space()
    assert known is not None and known.fixed["data.path"] == "/there"
    with pytest.raises(UserError, match="another search"):
        directory.check(space("/there", seed=1), resume=True)


def test_a_search_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    space, directory = space_of(tmp_path, FIELDS), at(tmp_path / "search")
    directory.claim(space, resume=False)
    directory.open_study(space).set_user_attr("images", "those")
    with pytest.raises(UserError, match="is a search on other data"):
        run_search(
            space,
            directory,
            WorkerResources(),
            WandbSettings("off"),
            Console(file=io.StringIO()),
            num_trials=1,
            fingerprint="these",
        )


def test_one_process_at_a_time_runs_a_search(tmp_path: Path) -> None:
    again = at(tmp_path).held()
    with at(tmp_path).held(), pytest.raises(UserError, match="another process runs this search"):
        again.__enter__()
    with at(tmp_path).held():
        pass


# What the live display says


@pytest.fixture
def display(tmp_path: Path) -> Callable[..., tuple[LiveDisplay, TrunkStore, io.StringIO]]:
    def make(search: Any) -> tuple[LiveDisplay, TrunkStore, io.StringIO]:
        space, told = space_of(tmp_path, search, metric="nmi"), io.StringIO()
        trunks = open_trunks(str(tmp_path / "trunks"), space.group_starts, ActorLocks())
        assert trunks is not None
        return LiveDisplay(space, 2, Console(file=told, width=200), trunks, "images"), trunks, told

    return make


def started(display: LiveDisplay, trial_id: str, point: dict[str, Any]) -> SimpleNamespace:
    trial = SimpleNamespace(trial_id=trial_id, config={POINT: point})
    display.on_trial_start(0, [], trial)
    return trial


def shown(display: LiveDisplay) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(display._panel())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_of_a_store_that_searches_share_only_awaited_trunks_are_shown(display: Any) -> None:
    live, trunks, _ = display({START: {"choice": [20, 30]}})
    trunks.directory("another").write_metrics([{"epoch": 0}] * 9)
    config = live._space.config({START: 20})
    name = trunk_name(config, "images")
    trunks.directory(name).write_metrics([{"epoch": epoch} for epoch in range(5)])
    trial = started(live, "one", {START: 20})
    assert f"trunk {name}: 5 of 20 epochs" in shown(live)
    assert "another" not in shown(live)
    live.on_trial_result(1, [], trial, {"epochs": 21, "nmi": 0.5})
    assert "trunk" not in shown(live)


def test_a_trunk_of_initial_weights_is_shown_while_they_are_there(
    display: Any, tmp_path: Path
) -> None:
    file = tmp_path / "w.pt"
    torch.save({"0.weight": torch.ones(2)}, file)
    live, trunks, _ = display({"model.init": {"choice": [None, str(file), f"{file}2"]}})
    point = {"model.init": str(file)}
    config = live._space.config(point)
    name = trunk_name(config, "images", weights_digest(config.model, config.views.size))
    trunks.directory(name).write_metrics([{"epoch": epoch} for epoch in range(5)])
    started(live, "gone", {"model.init": f"{file}2"})
    assert "trunk" not in shown(live)
    started(live, "one", point)
    assert f"trunk {name}: 5 of {config.group_start_epoch} epochs" in shown(live)


def test_trials_without_a_group_stage_wait_for_no_trunk(display: Any) -> None:
    live, _, _ = display({START: {"choice": [0, "never", 30]}})
    started(live, "one", {START: 0})
    assert "trunk" not in shown(live)


def test_a_trial_that_reported_nothing_has_failed(display: Any) -> None:
    live, _, told = display({START: {"choice": [20, 30]}})
    live.on_trial_complete(1, [], started(live, "one", {START: 20}))
    assert "trial 1/2 failed (it reported nothing) after 0 epochs" in told.getvalue()


@pytest.mark.parametrize("begun", ["nmi", "neighbor_consistency"])
def test_a_search_whose_labels_appear_or_vanish_says_that_its_metric_would_change(
    tmp_path: Path, begun: str
) -> None:
    from conr_ray.data.store import open_data
    from conr_ray.scaling.resources import ClusterOptions
    from conr_ray.whole_search import WholeSearch

    def search(metric: str, *, resume: bool) -> WholeSearch:
        fixed = {} if metric == "nmi" else {"data.label_column": None}
        tree = {"clustering.num_clusters": 10, **fixed}
        space = space_of(tmp_path, FIELDS, fixed=tree, metric="auto")
        options = ClusterOptions()
        whole = WholeSearch(space, at(tmp_path / "search"), options, resume=resume)
        return whole.checked(open_data(space.config().data))

    other = "neighbor_consistency" if begun == "nmi" else "nmi"
    first = search(begun, resume=False)
    has = {"nmi": "labels", "neighbor_consistency": "no labels"}[begun]
    assert first.metric_note == f"metric: {begun}, since it is auto and the data have {has}"
    first.directory.claim(first.space, resume=False)
    with pytest.raises(UserError, match=f"its metric is {begun}, now {other}, as of metric: auto"):
        search(other, resume=True)
