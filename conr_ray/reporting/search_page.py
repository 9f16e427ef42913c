"""The page of a search."""

from __future__ import annotations

from collections.abc import Mapping

from conr_ray.metric_names import AGREEMENT_WITH_LABELS, LABEL_FREE_SCORES
from conr_ray.reporting import comparison
from conr_ray.reporting.blocks import (
    Block,
    Cell,
    Code,
    Fact,
    Facts,
    Note,
    Page,
    Section,
    Table,
)
from conr_ray.reporting.effect_charts import (
    fraction_effect,
    label_free_agreement,
    neighbor_grid_map,
    variant_bands,
)
from conr_ray.reporting.names import counted, number, score, title
from conr_ray.reporting.run_page import attempt, cluster_section, figure_section
from conr_ray.reporting.search_charts import (
    cost_chart,
    importances,
    learning_curves,
    parallel_coordinates,
    pareto_set,
)
from conr_ray.reporting.search_data import SearchData
from conr_ray.searching.trial_table import Trial
from conr_ray.tracking.progress import duration

_LABELLED, _LABEL_FREE = tuple(AGREEMENT_WITH_LABELS), tuple(LABEL_FREE_SCORES)[:2]


def search_page(data: SearchData) -> Page:
    """The page of a search's current state."""
    space = data.space
    sizes = {"max": "maximise", "min": "minimise"}
    aims = " and ".join(
        f"{sizes[direction]} {title(metric)}"
        for metric, direction in zip(space.metrics, space.directions, strict=True)
    )
    subject = space.config().data.title
    subtitle = f"Search on {subject} to {aims}"
    sections = [Section("trials", "Trials", _trials(data))]
    if data.best_run is not None:
        sections += cluster_section(data.best_run, f"Clusters of {data.best_run.name}")
    for anchor, text, builds in (
        ("curves", "Learning curves", [learning_curves]),
        ("fields", "What the fields do", [parallel_coordinates, importances]),
        ("effects", "Neighbours and fraction", [neighbor_grid_map, fraction_effect]),
        ("methods", "CoNR and its baselines", [variant_bands]),
        ("pareto", "Pareto set", [pareto_set]),
        ("scores", "Scores without labels", [label_free_agreement]),
        ("cost", "Cost", [cost_chart]),
    ):
        blocks: list[Block] = []
        for build in builds:
            blocks += attempt(text.lower(), lambda build=build: build(data))  # type: ignore[misc]
        if blocks:
            sections.append(Section(anchor, text, blocks))
    sections += _best_figures(data)
    sections.append(Section("space", "Space", [Code("space.yaml", data.space_yaml)]))
    hints = {trial.number: _hint(trial, data.fields) for trial in data.trials}
    going_on = data.states["running"]
    ended = len(data.trials) - going_on
    state = ""
    if data.running:
        state = f"running: {counted(ended, 'trial')} ended, {going_on} in progress"
    return Page(f"{subject}: {data.name}", subtitle, Facts(_headline(data)), sections, state, hints)


def _headline(data: SearchData) -> list[Fact]:
    best, facts = data.best, []
    if best is not None and best.values is not None:
        for metric, value in zip(data.space.metrics, best.values, strict=True):
            facts.append(Fact(f"best {title(metric)}", score(value), f"trial {best.number}"))
        shown = _LABELLED if data.labelled else _LABEL_FREE
        for name in shown:
            if name not in data.space.metrics and best.figures.get(name) is not None:
                facts.append(Fact(title(name), score(best.figures[name]), f"trial {best.number}"))
    states = ", ".join(f"{count} {state}" for state, count in data.states.most_common())
    facts.append(Fact("trials", str(len(data.trials)), states))
    cost = data.cost
    if cost.unshared_epochs:
        facts.append(Fact("cost", duration(cost.time_s), f"{cost.epochs:,} epochs trained"))
    if cost.epochs < cost.unshared_epochs:
        saved = 1 - cost.epochs / cost.unshared_epochs
        facts.append(
            Fact(
                "trunks saved",
                f"{saved:.0%}",
                f"{cost.unshared_epochs - cost.epochs:,} of {cost.unshared_epochs:,} epochs",
            )
        )
    return facts


def _trials(data: SearchData) -> list[Block]:
    if not data.trials:
        return [Note("no trial has started yet")]
    space = data.space
    shown = _LABELLED if data.labelled else _LABEL_FREE
    figures = list(dict.fromkeys([*space.metrics, *shown]))
    rows = []
    for rank, trial in enumerate(data.trials, start=1):
        state = data.state(trial)
        if len(space.metrics) > 1 and trial.in_pareto_set:
            state = "Pareto set"
        rows.append(
            [
                Cell.of(rank),
                Cell.of(trial.number),
                Cell.of(state),
                *(Cell.of_metric(trial.figures.get(name)) for name in figures),
                *(Cell.of(trial.point.get(name)) for name in space.search),
                Cell.of(trial.epochs),
                Cell.of(trial.time_s, duration(trial.time_s)),
            ]
        )
    fields = data.fields.values()
    columns = ["rank", "trial", "state", *map(title, figures), *fields, "epochs", "time"]
    states = sorted({row[2].text for row in rows})
    caption = "All trials, the best first; epochs and time are without those of trunks"
    table = Table(caption, columns, rows, interactive=True, choices=states, choice_column=2)
    blocks: list[Block] = [table]
    if data.failures:
        failed = [(number, reason) for number, reason in sorted(data.failures.items())]
        blocks.append(Table.of("Why trials failed", ("trial", "reason"), failed))
    blocks += [Note(f"{what}: {problem}") for what, problem in sorted(data.problems.items())]
    return blocks


def _best_figures(data: SearchData) -> list[Section]:
    best, alone = data.best_run, data.best_alone
    if best is None:
        return []
    sections = []
    if alone is not None:
        runs = [best, alone]
        found: list[Block] = [comparison.final_figures(runs)]
        maps = comparison.side_by_side(runs, "the map", comparison.map_of)
        sections.append(
            Section(
                "alone",
                "The best trial and the best without a group stage",
                [*found, maps],
                f"Of the trials with a group stage {best.name} is the best, of those without "
                f"{alone.name}.",
            )
        )
    return sections + figure_section(best, f"Figures of {best.name}")


def _hint(trial: Trial, names: Mapping[str, str]) -> str:
    fields = ", ".join(f"{word} {number(trial.point.get(n))}" for n, word in names.items())
    return f"trial {trial.number}, {trial.state}: {fields}"
