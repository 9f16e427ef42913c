"""The README.md of an export: what the network was trained on, how well, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from conr_ray.config import RunConfig
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.errors import printable
from conr_ray.exporting.formats import FORMATS
from conr_ray.exporting.network import OUTPUTS
from conr_ray.exporting.snippets import snippet
from conr_ray.metric_names import AGREEMENT_WITH_LABELS, LABEL_FREE_SCORES, SPREAD

_USER_IN_URI = re.compile(r"(\w://)[^/@\s]+@")


def model_card(
    run: TrainedRun, config: Mapping[str, Any], formats: Sequence[str], chosen_by: Sequence[str]
) -> str:
    """Markdown of an export of `run`, whose clusters may be others than the run's own.

    `config` is the export's config.json; `chosen_by` are the metrics of the run's search.
    """
    kept = config["input"]
    shape = " x ".join(map(str, kept["shape"]))
    name, labels_n = data_name(run.config), run.state.pseudo_labels
    count = 0 if labels_n is None else len(labels_n)
    parts = [
        f"# {name}: {config['num_clusters']} clusters",
        f"A network that embeds {kept['kind']} and assigns them to clusters, trained without "
        f"labels by CoNR on top of {config['framework']}.",
        "## Data",
        f"- {name}: {count:,} {kept['kind']} of {shape}",
        f"- Samples: {kept['dtype']} (n, {shape.replace(' x ', ', ')})"
        + (", channels first, values from 0 to 255" if kept["kind"] == "images" else ""),
        "## Metrics",
        *_metrics(run, config["num_clusters"], chosen_by),
        "## Training",
        f"- {config['epochs']} epochs, seed {run.config.seed}, {config['backbone']['name']}, "
        f"embeddings of {config['embedding_dim']} numbers",
        *_start(run.config, config["initial_weights"]),
        f"- Precision in training: {run.config.optim.precision}; exported in fp32",
        f"- conr_ray {config['conr_ray']}, torch {config['torch']}",
        "## Outputs",
        f"`{'`, `'.join(OUTPUTS)}`: the embedding has unit length; distances are Euclidean, from "
        "the own centre and from the nearest other one; the boundary ratio is their quotient. "
        + _confidence(config["confident_ratio"]),
        "## Limits",
        "- Every sample gets a cluster, also one that is like none of the training data: look at "
        "the boundary ratio.",
        "- Numbers of clusters have no meaning of their own.",
        "- Images of another size or channel count have to be made those of the data first.",
        "## How to load",
    ]
    for name in formats:
        parts.append(f"`{FORMATS[name].file}`, in this folder:")
        parts.append(f"```python\n{snippet(name, dict(config))}```")
    return re.sub(r"(?m)^(- .*)\n\n(?=- )", r"\1\n", "\n\n".join(parts)) + "\n"


def _start(config: RunConfig, recorded: Mapping[str, Any] | None) -> list[str]:
    """Whose weights the run started from, if any, and their licence."""
    if (source := config.model.init) is not None:
        return [f"- Started from the weights of {_last_part(source)}"]
    if recorded is None:
        return []
    found, licence = _last_part(str(recorded.get("found"))), recorded.get("licence")
    learned = {"all": "all of it", "last_blocks": "its last blocks", "head": "none of it"}
    return [
        f"- The backbone started from the weights {found}, SHA-256 {recorded['sha256']}; "
        f"{learned[config.model.train]} learned further",
        f"- Licence of these weights: {printable(str(licence))}"
        if licence
        else "- Licence of these weights: not known; look it up before you pass the network on",
    ]


def _last_part(place: str) -> str:
    """A file's name without its folder; others as they are."""
    is_path = place.startswith("/") or "://" in place
    return printable(place.rstrip("/").rpartition("/")[2] if is_path else place)


def data_name(config: RunConfig) -> str:
    """What the user calls the data: the last part of its path, or its name."""
    data = config.data
    path = _USER_IN_URI.sub(r"\1", str(data.path or "")).rstrip("/").rpartition("/")[2]
    name = data.name if data.source == "torchvision" else path
    return printable(name or data.source)


def _metrics(run: TrainedRun, num_clusters: int, chosen_by: Sequence[str]) -> list[str]:
    latest: dict[str, float] = {}
    for row in run.state.history:
        latest |= {name: float(v) for name, v in row.items() if isinstance(v, int | float)}
    labelled = {n: m for n, m in AGREEMENT_WITH_LABELS.items() if n in latest}
    others = {n: m for n, m in (LABEL_FREE_SCORES | SPREAD).items() if n in latest}
    lines = []
    for known, seen in ((labelled, "uses labels"), (others, "label-free")):
        lines += [f"| {name} | {latest[name]:.4f} | {seen} | {m} |" for name, m in known.items()]
    table = ["| metric | value | labels | meaning |", "| --- | --- | --- | --- |", *lines]
    told = ["On the training data. Training uses no labels."]
    if run.num_clusters != num_clusters:
        told.append(f"The figures are of the run's own {run.num_clusters} clusters.")
    if not labelled:
        told.append("No figure here saw a label.")
    if chosen_by:
        says = "used labels" if set(chosen_by) & set(AGREEMENT_WITH_LABELS) else "used no labels"
        told.append(f"The run is a search's best trial in {', '.join(chosen_by)}, which {says}.")
    return [" ".join(told), *(["\n".join(table)] if lines else [])]


def _confidence(ratio: float | None) -> str:
    if ratio is None:
        return "The run has not ended, so that no ratio is known up to which it is sure."
    return f"Up to a ratio of {ratio:.4f} the run is confident."
