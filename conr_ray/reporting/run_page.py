"""The page of one run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

from conr_ray.errors import last_line
from conr_ray.reporting.blocks import Block, Code, Fact, Facts, Note, Page, Section
from conr_ray.reporting.names import score, title
from conr_ray.reporting.run_charts import cluster_sizes, confusion_chart, map_chart, run_curves
from conr_ray.reporting.run_data import RunData
from conr_ray.reporting.run_pictures import cluster_blocks, neighbor_pictures
from conr_ray.tracking.progress import duration

logger = logging.getLogger(__name__)


def run_page(data: RunData, extra: list[Section] | None = None) -> Page:
    """The page of a run; `extra` sections come before its config."""
    config = data.config
    subtitle = f"{data.variant} on {config.data.title}, seed {config.seed}"
    blocks: list[Block] = [Note(problem) for problem in _of(data, "curves", "origin", "weights")]
    blocks += attempt("the curves", lambda: list(run_curves([data])))
    sections = cluster_section(data)
    sections.append(Section("curves", "Curves", blocks or [Note("no epoch has ended yet")]))
    sections += figure_section(data)
    sections += extra or []
    sections.append(Section("config", "Config", [Code("config.yaml", config.as_written())]))
    heading = f"{config.data.title}: {data.name}"
    return Page(heading, subtitle, Facts(headline(data)), sections)


def headline(data: RunData) -> list[Fact]:
    """The main figures of a run."""
    facts = [Fact(title(name), score(data.figures[name])) for name in data.main_metrics[:4]]
    epochs = len(data.rows)
    facts.append(Fact("epochs", f"{epochs:,}", f"of {data.config.schedule.epochs:,}"))
    facts.append(Fact("time", duration(data.time_s)))
    if data.origin is not None:
        facts.append(
            Fact("forked", f"epoch {data.origin.epoch}", f"from trunk {data.origin.trunk}")
        )
    if data.weights is not None:
        licence = data.weights.get("licence")
        of_others = data.weights.get("field") == "model.weights"
        note = f"licence: {licence or 'not known'}" if of_others else ""
        source = str(data.weights.get("found") or data.weights.get("source"))
        facts.append(Fact("started from", source.rstrip("/").rpartition("/")[2], note))
    return facts


def cluster_section(data: RunData, text: str = "Clusters") -> list[Section]:
    """The clusters in a run's snapshot under the heading `text`; nothing if there is none."""
    snapshot = data.snapshot
    if snapshot is None:
        return []
    names = data.edits.names()
    blocks = attempt("the examples", lambda: cluster_blocks(snapshot, data.names, names))
    blocks += [Note(problem) for problem in _of(data, "edits")]
    intro = f"As found by the networks after {snapshot.epoch} epochs"
    intro += ", and changed by a person." if data.edits.active else "."
    return [Section("clusters", text, blocks, intro)]


def figure_section(data: RunData, text: str = "Figures") -> list[Section]:
    """The figures of a run's snapshot under the heading `text`; a note if there is none."""
    snapshot, positions = data.snapshot, data.positions
    if snapshot is None:
        notes: list[Block] = [Note(problem) for problem in _of(data, "figures")]
        return [Section("figures", text, notes)] if notes else []
    blocks = attempt("the neighbours", lambda: neighbor_pictures(snapshot, data.names))
    if positions is not None:
        blocks += attempt("the map", lambda: map_chart(snapshot, positions, data.names))
    blocks += attempt("the confusion matrix", lambda: confusion_chart(snapshot))
    if snapshot.confusion is None:
        blocks += attempt("the sizes of clusters", lambda: cluster_sizes(snapshot))
    intro = f"Drawn from the networks after {snapshot.epoch} epochs."
    return [Section("figures", text, blocks, intro)]


def attempt(what: str, build: Callable[[], Block | list[Block] | None]) -> list[Block]:
    """The blocks that `build` returns; a note if it fails.

    Tables on disk may be damaged or from another version; the rest is still shown.
    """
    try:
        found = build()
    except Exception as error:
        problem = f"cannot draw {what}: {last_line(error)}"
        _warn_once(problem)
        return [Note(problem)]
    if found is None:
        return []
    return list(found) if isinstance(found, list) else [found]


@functools.cache
def _warn_once(problem: str) -> None:
    logger.warning(problem, exc_info=True)


def _of(data: RunData, *parts: str) -> list[str]:
    return [data.problems[part] for part in parts if part in data.problems]
