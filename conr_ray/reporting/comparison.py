"""Runs side by side: final figures, fields that differ, curves and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from conr_ray.config import field_names, get_field
from conr_ray.engine.snapshot import Snapshot
from conr_ray.reporting.blocks import Block, Cell, Columns, Fact, Facts, Page, Section, Table
from conr_ray.reporting.names import number, ordered, score, title
from conr_ray.reporting.run_charts import cluster_sizes, confusion_chart, map_chart, run_curves
from conr_ray.reporting.run_data import RunData
from conr_ray.reporting.run_page import attempt
from conr_ray.reporting.run_pictures import example_pictures, neighbor_pictures
from conr_ray.tracking.progress import duration

# Fields that say where things are and what is kept; they do not define a run.
_PLACES = ("checkpoint", "tracking")

Build = Callable[[RunData, Snapshot], Block | None]


def comparison_page(runs: Sequence[RunData]) -> Page:
    """The page that compares two or more runs."""
    names = [run.name for run in runs]
    shared = [name for name in runs[0].main_metrics if all(name in r.figures for r in runs)]
    facts = []
    for name in shared[:3]:
        best = max(runs, key=lambda run: run.figures[name])
        facts.append(Fact(f"best {title(name)}", score(best.figures[name]), best.name))
    facts.append(Fact("runs", str(len(runs))))
    return Page(f"Comparison of {len(runs)} runs", ", ".join(names), Facts(facts), sections(runs))


def sections(runs: Sequence[RunData], prefix: str = "compare") -> list[Section]:
    """The sections of a comparison; `prefix` makes their anchors unique."""
    found = [
        Section(f"{prefix}-figures", "Final figures", [final_figures(runs)]),
        Section(f"{prefix}-fields", "Fields that differ", [differing_fields(runs)]),
        Section(
            f"{prefix}-curves", "Curves", attempt("the curves", lambda: list(run_curves(runs)))
        ),
    ]
    parts: tuple[tuple[str, str, Build], ...] = (
        ("neighbours", "Neighbours", lambda run, snapshot: neighbor_pictures(snapshot, run.names)),
        ("map", "Maps of the embeddings", map_of),
        ("confusion", "Classes and clusters", lambda run, snapshot: _clusters(snapshot)),
        (
            "examples",
            "Examples of clusters",
            lambda run, snapshot: example_pictures(snapshot, run.names),
        ),
    )
    for anchor, text, build in parts:
        columns = side_by_side(runs, text.lower(), build)
        if any(blocks for _, blocks in columns.parts):
            found.append(Section(f"{prefix}-{anchor}", text, [columns]))
    return found


def side_by_side(runs: Sequence[RunData], what: str, build: Build) -> Columns:
    """The result of `build` for each run that has a snapshot."""

    def blocks(run: RunData) -> list[Block]:
        snapshot = run.snapshot
        return [] if snapshot is None else attempt(what, lambda: build(run, snapshot))

    return Columns([(run.name, blocks(run)) for run in runs])


def map_of(run: RunData, snapshot: Snapshot) -> Block | None:
    """The map of a run's embeddings, if it is known."""
    return None if run.positions is None else map_chart(snapshot, run.positions, run.names)


def _clusters(snapshot: Snapshot) -> Block:
    return confusion_chart(snapshot) or cluster_sizes(snapshot)


def final_figures(runs: Sequence[RunData]) -> Table:
    """One row per run: its last metrics, epochs and time."""
    names = [n for n in ordered(set().union(*(r.figures for r in runs))) if not n.endswith("_s")]
    rows = [
        [
            Cell.of(run.name),
            *(Cell.of_metric(run.figures.get(name)) for name in names),
            Cell.of(len(run.rows)),
            Cell.of(run.time_s, duration(run.time_s)),
        ]
        for run in runs
    ]
    columns = ("run", *map(title, names), "epochs", "time")
    return Table("Latest value of each metric", columns, rows, interactive=True)


def differing_fields(runs: Sequence[RunData]) -> Table:
    """One row per field that differs between runs."""
    rows = []
    names = {run.config.model.framework: None for run in runs}
    for name in dict.fromkeys(name for kind in names for name in field_names(kind)):
        owner = name.partition(".")[0]
        values = [
            None
            if owner in names and owner != run.config.model.framework
            else get_field(run.config, name)
            for run in runs
        ]
        if name.partition(".")[0] not in _PLACES and any(v != values[0] for v in values):
            rows.append([name, *(number(value) for value in values)])
    caption = "1 field differs" if len(rows) == 1 else f"{len(rows)} fields differ"
    if not rows:
        return Table.of("The runs have the same config", ("field",), [])
    return Table.of(caption, ("field", *(run.name for run in runs)), rows)


def renamed(run: RunData, name: str) -> RunData:
    """`run` under another name."""
    return dataclasses.replace(run, name=name)


def with_distinct_names(runs: Sequence[RunData], uris: Sequence[str]) -> list[RunData]:
    """The runs; equal names are distinguished by the parent folder, or a number."""
    named = list(runs)
    for place, run in enumerate(runs):
        if [other.name for other in runs].count(run.name) > 1:
            parent = uris[place].rpartition("/")[0].rpartition("/")[2]
            named[place] = renamed(run, f"{parent}/{run.name}")
    names = [run.name for run in named]
    return [
        renamed(run, f"{run.name} ({place})") if names.count(run.name) > 1 else run
        for place, run in enumerate(named, start=1)
    ]
