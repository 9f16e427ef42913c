"""How metrics, fields and numbers are written in a report."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from conr_ray.metric_names import COST_METRICS, LABEL_FREE_METRICS, LABELLED_METRICS

_TITLES = {
    "acc": "ACC",
    "nmi": "NMI",
    "ari": "ARI",
    "neighbor_purity": "neighbour purity",
    "neighbor_consistency": "neighbour consistency",
    "label_free": "label-free score",
    "lr": "learning rate",
    "fraction": "kept fraction",
    "train_time_s": "training time, s",
    "epoch_time_s": "time of an epoch, s",
    "discovery_time_s": "time to find neighbours, s",
    "images_per_s": "images per second",
    "data_purity_contextual": "purity of contextual neighbours in all data",
    "data_purity_euclidean": "purity of Euclidean neighbours in all data",
    "neighborhood.kind": "neighbours",
}
_COUNTED = ("epoch", "stage")
_FIRST = (*LABELLED_METRICS, *LABEL_FREE_METRICS, "fraction", "lr", "momentum")
_USER_IN_URI = re.compile(r"(\w://)[^/@\s\"'<>]+@")


def title(name: str) -> str:
    """A metric, or the last part of a dotted field, as written in text."""
    if name in _TITLES:
        return _TITLES[name]
    leaf = name.rpartition(".")[2]
    return _TITLES.get(leaf, leaf.replace("_", " "))


def titles(fields: Iterable[str]) -> dict[str, str]:
    """Display names of several dotted fields: in full if their last parts are equal."""
    found = {name: title(name) for name in fields}
    words = list(found.values())
    return {name: name if words.count(word) > 1 else word for name, word in found.items()}


def ordered(names: set[str]) -> list[str]:
    """Metrics in display order: agreement with labels first, times last."""
    known = [name for name in _FIRST if name in names and name not in COST_METRICS]
    return [*known, *sorted(names - set(known) - set(_COUNTED))]


def number(value: Any) -> str:
    """A value in a table: a number to four decimals, a dash for None."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value == 0 or 1e-3 <= abs(value) < 1e4:
            return f"{value:.4f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"
        return f"{value:.3g}"
    return str(value)


def precise(value: float) -> str:
    """A metric to four decimals, or as `number` writes it if it is very small or large."""
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 else number(float(value))


def counted(count: int, noun: str) -> str:
    """1 trial, 2 trials."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def score(value: float | None) -> str:
    """A metric between 0 and 1, to three decimals."""
    return "-" if value is None else f"{value:.3f}"


def without_secrets(text: str) -> str:
    """`text` without user names and passwords in URIs."""
    return _USER_IN_URI.sub(r"\1", text)
