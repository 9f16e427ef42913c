"""The view of a search in Weights & Biases, built by the library `wandb-workspaces`.

Assumptions: each trial is a run with its config nested in sections, a history whose rows have
`epoch`, group = the search's name and job type `trial`; the search itself is a run of job type
`search` with its own name as id and group, and the space's tree as config["space"].

A field such as `neighborhood.k1` of a nested config has four names, all built by the library from
one dotted name. W&B keeps a config as {section: {"value": {...}}}, so that the word
`value` comes after the section (wandb_workspaces 0.4.13: `expr.groupby_str_to_key` says so, and
that a flat key "neighborhood.k1" would be another one):

    parallel coordinates, scatter   config:neighborhood.value.k1   _metric_to_backend_pc
    grouping of runs                config, neighborhood.value.k1  _groupby_to_key
    pinned columns                  config:neighborhood.value.k1   not made by the library, whose
                                    RunsetSettings passes them on; the same name as above
    parameter importance            no field: it shows all of the config, against a metric's name

Metrics are `summary:acc` in the first three, and plain names in curves and importance.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

import wandb
import wandb_workspaces.workspaces as ws
from pydantic import ValidationError
from wandb_workspaces.reports.v2 import interface as wr

from conr_ray.errors import UserError, last_line
from conr_ray.metric_names import AGREEMENT_WITH_LABELS, COST_METRICS, LABEL_FREE_SCORES
from conr_ray.searching.dimension import Dimension
from conr_ray.searching.space import SearchSpace
from conr_ray.searching.wandb_search import search_run_id

FIGURES = ("figures/neighbors", "figures/map", "figures/confusion", "figures/clusters")
_TRAINING = ("loss", "neighbor_purity", "fraction", "lr", "momentum")
# Most runs in a panel; W&B's default is 10.
_MOST_RUNS = 100


def search_workspace(
    entity: str, project: str, search_name: str, space: SearchSpace
) -> ws.Workspace:
    """The unsaved view of a search.

    Runs are the search's trials, the best first. If seeds are searched along with other fields,
    runs that differ only in the seed form a group, and curves show its mean and deviation.

    Args:
        entity: W&B user or team.
        project: project of the trials' runs.
        search_name: the search's name, which is the group of its runs.
        space: the search space, with explicit metrics (not auto).
    """
    results = dict.fromkeys(
        [*(m for m in space.metrics if m not in COST_METRICS), *AGREEMENT_WITH_LABELS]
    )
    rest = [name for name in LABEL_FREE_SCORES if name not in results]
    training = [name for name in _TRAINING if name not in results]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_without_symbols(f"search {search_name}"),
        sections=[
            _section("Search", _search_panels(space), columns=1, rows=2),
            _section(f"Fields against {space.metric}", _scatter_panels(space)),
            _section("Results over epochs", [_curve(name) for name in results]),
            _section("Training over epochs", [_curve(name) for name in training]),
            _section("Label-free scores over epochs", [_curve(name) for name in rest]),
            _section(
                "Figures",
                [
                    wr.MediaBrowser(title=key.partition("/")[2], media_keys=[key], num_columns=2)
                    for key in FIGURES
                ],
                columns=2,
            ),
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=_MOST_RUNS),
        runset_settings=_runs(search_name, space),
    )


def save_workspace(workspace: ws.Workspace) -> str:
    """Save the view as a new one in its project; return its URL.

    Raises:
        UserError: there is no key, or W&B is not reachable or refuses the request.
    """
    with _told_in_one_line(workspace.entity, workspace.project):
        return str(workspace.save().url)  # type: ignore[no-untyped-call]


def space_of(entity: str, project: str, search_name: str) -> SearchSpace:
    """The space of a search, read from its run in W&B.

    Raises:
        UserError: there is no key, or W&B is not reachable or has no such search.
    """
    with _told_in_one_line(entity, project):
        try:
            run = wandb.Api().run(f"{entity}/{project}/{search_run_id(search_name)}")
        except wandb.errors.CommError as error:
            if "not found" not in str(error):
                raise
            raise UserError(
                f"search {search_name}: no such run in {entity}/{project}: check the project and "
                "the search's name"
            ) from None
        tree = run.config.get("space")
    if tree is None:
        raise UserError(f"search {search_name}: this run is not a search: give a search")
    try:
        return SearchSpace.model_validate(tree)
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(
            f"search {search_name}: its space is from another version ({place}): use the "
            "version that ran the search"
        ) from None


def _section(
    name: str, panels: list[wr.PanelTypes], *, columns: int = 3, rows: int = 2
) -> ws.Section:
    layout = ws.SectionLayoutSettings(columns=columns, rows=rows)
    # A section's axis setting overrides the view's.
    axis = ws.SectionPanelSettings(x_axis="epoch")
    return ws.Section(
        name=name, panels=panels, is_open=True, layout_settings=layout, panel_settings=axis
    )


def _search_panels(space: SearchSpace) -> list[wr.PanelTypes]:
    fields = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(name), display_name=name, log=d.log)
        for name, d in space.search.items()
    ]
    # Better is up.
    metrics = [
        wr.ParallelCoordinatesPlotColumn(
            metric=wr.SummaryMetric(metric), display_name=metric, inverted=direction == "min"
        )
        for metric, direction in zip(space.metrics, space.directions, strict=True)
    ]
    # W&B colours lines by the last axis.
    columns = [*fields, *reversed(metrics)]
    return [
        wr.ParallelCoordinatesPlot(title="fields and metric", columns=columns),
        *(wr.ParameterImportancePlot(with_respect_to=metric) for metric in space.metrics),
    ]


def _scatter_panels(space: SearchSpace) -> list[wr.PanelTypes]:
    panels: list[wr.PanelTypes] = [
        wr.ScatterPlot(
            title=f"{space.metric} over {name}",
            x=wr.Config(name),
            y=wr.SummaryMetric(space.metric),
            log_x=_is_log(dimension),
        )
        for name, dimension in space.search.items()
    ]
    panels += [
        wr.ScatterPlot(
            title=f"{space.metric} over {metric}",
            x=wr.SummaryMetric(metric),
            y=wr.SummaryMetric(space.metric),
        )
        for metric in space.metrics[1:]
    ]
    return panels


def _is_log(dimension: Dimension) -> bool | None:
    # Left out if not set, as the app does.
    return True if dimension.log else None


def _curve(metric: str) -> wr.LinePlot:
    return wr.LinePlot(
        title=metric,
        x="epoch",
        y=[metric],
        max_runs_to_show=_MOST_RUNS,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _runs(search_name: str, space: SearchSpace) -> ws.RunsetSettings:
    others = [name for name in space.search if name != "seed"]
    columns = [_config_column(name) for name in space.search]
    columns += [f"summary:{metric}" for metric in space.metrics]
    return ws.RunsetSettings(
        filters=f"Metric('Group') == {_literal(search_name)} and Metric('JobType') == 'trial'",
        groupby=[ws.Config(name) for name in others] if "seed" in space.search else [],
        order=[ws.Ordering(ws.Summary(space.metric), ascending=space.direction == "min")],
        pinned_columns=columns,
    )


def _config_column(field: str) -> str:
    section, *leaf = field.split(".")
    return "config:" + ".".join([section, "value", *leaf])


def _literal(text: str) -> str:
    """A Python literal of `text` without the characters that the library's filters rewrite.

    It doubles every = and completes < and > before it parses a filter.
    """
    plain = "".join(
        c if c.isascii() and (c.isalnum() or c in "-_. ") else f"\\U{ord(c):08x}" for c in text
    )
    return f"'{plain}'"


def _without_symbols(text: str) -> str:
    """`text` as the name of a view: the library rejects some characters, such as = and +."""
    refused = ("So", "Sk", "Sm", "Sc", "Cs")
    return "".join("-" if unicodedata.category(c) in refused else c for c in text)


@contextmanager
def _told_in_one_line(entity: str, project: str) -> Iterator[None]:
    """Raise W&B's errors as UserErrors."""
    place = f"project {entity}/{project}"
    try:
        # With silent set, the library does not prompt for a key. A process that used W&B before
        # keeps what was set for messages until it is told again.
        wandb.termsetup(wandb.setup(wandb.Settings(silent=True)).settings, None)
        yield
    except UserError:
        raise
    except wandb.errors.UsageError:
        raise UserError(
            f"{place}: no W&B key found: run `wandb login`, or set WANDB_API_KEY"
        ) from None
    # Request failures are not a wandb.Error, and their class is not public.
    except Exception as error:
        told = last_line(error)
        if "did not respond in time" in told:
            told = "W&B does not answer: check the network, and WANDB_BASE_URL if it is set"
        elif isinstance(error, wandb.errors.AuthenticationError):
            told = f"W&B does not accept the key ({told}): run `wandb login`, or set WANDB_API_KEY"
        else:
            told = f"W&B refuses the request ({told}): check the entity and the project"
        raise UserError(f"{place}: {told}") from None
