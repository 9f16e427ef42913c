"""The view of a search in W&B: its specification, and how W&B's refusals are told."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

import conr_ray.report
from conr_ray.errors import UserError
from conr_ray.metric_names import LABEL_FREE_SCORES
from conr_ray.reporting.wandb_workspace import (
    FIGURES,
    save_workspace,
    search_workspace,
    space_of,
)
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.space_file import load_space
from tests.reporting.wandb_server import WandbServer, wandb_server
from tests.waiting import HANG_S

SPACES = Path(__file__).parents[2] / "search_spaces"
CIFAR = load_space(SPACES / "cifar10.yaml")
BYOL = load_space(SPACES / "ablation_byol.yaml")
# The panel's name in a specification.
PARALLEL, IMPORTANCE = "Parallel Coordinates Plot", "Parameter Importance"
SCATTER, LINES, MEDIA = "Scatter Plot", "Run History Line Plot", "Media Browser"


def specification(space: SearchSpace, name: str = "first") -> dict[str, Any]:
    """What W&B is sent, as the JSON that is sent."""
    view = search_workspace("me", "digits", name, space)._to_model()
    spec = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"displayName": view.display_name, **spec["section"]}


def panels(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """Config of each panel of a kind, in their order."""
    sections = spec["panelBankConfig"]["sections"]
    return [p["config"] for s in sections for p in s["panels"] if p["viewType"] == kind]


def two_metrics() -> SearchSpace:
    search = {"optim.lr": {"float": [0.01, 1], "log": True}, "optim.momentum": {"choice": [0, 0.9]}}
    tree = {"preset": "digits", "metric": ["nmi", "train_time_s"], "search": search}
    return SearchSpace.model_validate(tree)


# The specification


def test_parallel_coordinates_go_through_the_searched_fields_to_the_metric() -> None:
    (config,) = panels(specification(CIFAR), PARALLEL)
    columns = config["columns"]
    assert [column["displayName"] for column in columns] == [*CIFAR.search, "nmi"]
    assert [column["accessor"] for column in columns][:3] == [
        "config:bank.value.size",
        "config:neighborhood.value.k1",
        "config:neighborhood.value.k2",
    ]
    assert columns[-1]["accessor"] == "summary:nmi" and not columns[-1]["inverted"]
    # k1, k2 and k are searched on a logarithmic scale.
    assert [column.get("log", False) for column in columns] == [
        *(dimension.log for dimension in CIFAR.search.values()),
        False,
    ]


def test_a_field_outside_the_sections_is_named_as_well() -> None:
    (config,) = panels(specification(BYOL), PARALLEL)
    assert "config:seed.value" in [column["accessor"] for column in config["columns"]]


def test_each_searched_field_is_scattered_against_the_metric() -> None:
    configs = panels(specification(CIFAR), SCATTER)
    fields = [section + ".value." + leaf for section, leaf in (n.split(".") for n in CIFAR.search)]
    assert [config["xAxis"] for config in configs] == [f"config:{name}" for name in fields]
    assert {config["yAxis"] for config in configs} == {"summary:nmi"}
    logs = [config.get("xAxisLogScale", False) for config in configs]
    assert logs == [dimension.log for dimension in CIFAR.search.values()]


def test_several_metrics_all_have_their_panels() -> None:
    spec = specification(two_metrics())
    assert [c["targetKey"] for c in panels(spec, IMPORTANCE)] == ["nmi", "train_time_s"]
    columns = panels(spec, PARALLEL)[0]["columns"]
    # The first metric is last, where lines get their colours; a cost is good where it is small.
    assert [(c["accessor"], c["inverted"]) for c in columns[-2:]] == [
        ("summary:train_time_s", True),
        ("summary:nmi", False),
    ]
    assert (panels(spec, SCATTER)[-1]["xAxis"], panels(spec, SCATTER)[-1]["yAxis"]) == (
        "summary:train_time_s",
        "summary:nmi",
    )
    assert ["train_time_s"] not in [config["metrics"] for config in panels(spec, LINES)]
    assert spec["runSets"][0]["sort"]["keys"] == [
        {"key": {"section": "summary", "name": "nmi"}, "ascending": False}
    ]


@pytest.mark.parametrize("metric", ["acc", "neighbor_purity", "neighbor_consistency", "loss"])
def test_curves_go_over_epochs_and_are_there_once(metric: str) -> None:
    space = CIFAR.model_copy(update={"metrics": (metric,)})
    spec = specification(space)
    configs = panels(spec, LINES)
    assert {config["xAxis"] for config in configs} == {"epoch"}
    shown = [name for config in configs for name in config["metrics"]]
    expected = {"acc", "nmi", "ari", "loss", "neighbor_purity", "fraction", "lr", "momentum"}
    assert sorted(shown) == sorted(expected | set(LABEL_FREE_SCORES))
    assert shown[0] == metric
    assert spec["settings"]["xAxis"] == "epoch"
    for section in spec["panelBankConfig"]["sections"]:
        assert section["localPanelSettings"]["xAxis"] == "epoch"
    ascending = spec["runSets"][0]["sort"]["keys"][0]["ascending"]
    assert ascending == (metric == "loss")


def test_images_have_media_panels() -> None:
    configs = panels(specification(CIFAR), MEDIA)
    assert [config["mediaKeys"] for config in configs] == [[key] for key in FIGURES]


@pytest.mark.parametrize("name", ["first", "lr=0.1 'a' <b> \"c\" \\ é\N{SNOWMAN}", "a and b or c"])
def test_runs_are_the_trials_of_the_search(name: str) -> None:
    spec = specification(CIFAR, name)
    filters = spec["runSets"][0]["filters"]["filters"]
    assert [(f["key"], f["op"], f["value"]) for f in filters] == [
        ({"section": "run", "name": "group"}, "=", name),
        ({"section": "run", "name": "jobType"}, "=", "trial"),
    ]
    assert [f.get("connector") for f in filters] == [None, "AND"]
    assert not any(f["disabled"] for f in filters)
    assert spec["displayName"].startswith("search ")


def test_runs_are_grouped_where_seeds_are_searched() -> None:
    assert specification(CIFAR)["runSets"][0]["grouping"] == []
    assert specification(BYOL)["runSets"][0]["grouping"] == [
        {"section": "config", "name": "schedule.value.group_start"},
        {"section": "config", "name": "neighborhood.value.kind"},
    ]
    configs = panels(specification(BYOL), LINES)
    assert {(c["groupAgg"], c["groupArea"]) for c in configs} == {("mean", "stddev")}


def test_the_searched_fields_are_columns_beside_the_name() -> None:
    feed = specification(BYOL)["runSets"][0]["runFeed"]
    assert feed["columnOrder"] == [
        "run:displayName",
        "config:schedule.value.group_start",
        "config:neighborhood.value.kind",
        "config:seed.value",
        "summary:acc",
    ]
    assert set(feed["columnPinned"]) == set(feed["columnOrder"])


# The server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A W&B of this machine, and a key for it."""
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
        monkeypatch.setattr(wandb.Api, "_HTTP_TIMEOUT", 3)
        yield running


def saved(project: str = "digits") -> str:
    return save_workspace(search_workspace("me", project, "first", CIFAR))


def told(function: Any, *arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_saved_view_has_the_url_that_it_was_saved_under(
    server: WandbServer, capfd: pytest.CaptureFixture[str]
) -> None:
    # Something else in this process has used W&B, and let it talk.
    wandb.termsetup(wandb.Settings(), None)
    url = saved()
    (view,) = server.views
    short = view["name"].removeprefix("nw-").removesuffix("-v")
    assert url == f"{server.url}/me/digits?nw={short}"
    assert view["displayName"] == "search first"
    sent = json.loads(view["spec"])["section"]
    assert sent["panelBankConfig"]["sections"][0]["name"] == "Search"
    # The command prints the URL.
    assert capfd.readouterr() == ("", "")


def test_a_space_is_read_back_from_the_run_of_its_search(server: WandbServer) -> None:
    for space in (CIFAR, BYOL, two_metrics()):
        tree = space.model_dump(mode="json", by_alias=True, exclude_unset=True)
        server.runs["first"] = {"space": tree, "trials": 8}
        assert space_of("me", "digits", "first") == space


def test_the_command_saves_the_view_of_a_search_that_is_there(
    server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.runs["first"] = {"space": CIFAR.model_dump(mode="json", by_alias=True)}
    conr_ray.report.main(["--wandb", "me/digits", "--search", "first"])
    assert len(server.views) == 1
    assert capsys.readouterr().out.startswith("view: http")


def test_a_run_that_is_not_there_is_told(server: WandbServer) -> None:
    for place in ("digits", "other"):
        assert told(space_of, "me", place, "first") == (
            f"search first: no such run in me/{place}: check the project and the search's name"
        )


def test_a_run_that_is_no_search_is_told(server: WandbServer) -> None:
    server.runs = {"trial": {"seed": 0}, "newer": {"space": {"preset": "digits", "shape": 3}}}
    message = told(space_of, "me", "digits", "trial")
    assert message == "search trial: this run is not a search: give a search"
    message = told(space_of, "me", "digits", "newer")
    assert message.startswith("search newer: its space is from another version (search): use")


def test_a_project_that_is_not_there_is_told(server: WandbServer) -> None:
    message = told(saved, "other")
    assert message.startswith("project me/other: W&B refuses the request (")
    assert "not found" in message
    assert message.endswith("): check the entity and the project")


def test_a_key_that_wandb_refuses_is_told(server: WandbServer) -> None:
    server.key_is_known = False
    for function, arguments in ((saved, ()), (space_of, ("me", "digits", "first"))):
        message = told(function, *arguments)
        assert message.startswith("project me/digits: W&B does not accept the key (")
        assert message.endswith("not logged in): run `wandb login`, or set WANDB_API_KEY")


def test_a_key_of_another_shape_is_told(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    assert told(saved).startswith(
        "project me/digits: W&B does not accept the key (WANDB_API_KEY invalid"
    )
    assert server.questions == []


@pytest.mark.slow
def test_a_wandb_that_does_not_answer_is_told(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.is_broken = True
    expected = (
        "project me/digits: W&B does not answer: check the network, and WANDB_BASE_URL if it is set"
    )
    assert told(saved) == expected
    # Port 1 is one that nobody listens at.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert told(saved) == expected


@pytest.mark.slow
def test_nobody_is_asked_for_a_key_at_a_terminal(server: WandbServer, tmp_path: Path) -> None:
    code = (
        "from conr_ray.reporting.wandb_workspace import space_of\n"
        "try:\n    space_of('me', 'digits', 'first')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    environment = {name: v for name, v in os.environ.items() if name != "WANDB_API_KEY"}
    environment |= {"HOME": str(tmp_path), "TERM": "xterm"}
    terminal, end = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=end,
            stdout=subprocess.PIPE,
            stderr=end,
            text=True,
            timeout=HANG_S,
        )
    finally:
        os.close(terminal)
        os.close(end)
    place = "project me/digits: no W&B key found"
    assert done.stdout == f"{place}: run `wandb login`, or set WANDB_API_KEY\n"
    assert server.questions == []
