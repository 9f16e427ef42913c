"""Whether a run's embeddings have collapsed, and which settings make that likely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from conr_ray.config import RunConfig
from conr_ray.errors import RunCollapsed

# Mean cosine, short of 1. Untrained networks leave 3e-4 or more on digits and trained ones 0.03;
# of a collapse 3e-5 to 0 is left. Noise of bf16 is 1e-6.
_APART = 1e-4
# Beyond ten times what any recipe of the presets uses, or a tenth of it.
_MOST_LR, _MOST_DECAY, _MOST_TEMPERATURE = 1.0, 0.01, 2.0
_LEAST_MOMENTUM, _LEAST_PREDICTOR_FACTOR = 0.5, 0.1


def has_collapsed(row: Mapping[str, Any]) -> bool | None:
    """Whether embeddings nearly coincide by the metrics of an epoch; None if it has no such one."""
    cosine = row.get("mean_cosine")
    return None if cosine is None else 1 - float(cosine) < _APART


def collapse(
    config: RunConfig, row: Mapping[str, Any], num_clusters: int, last_checkpoint: str
) -> RunCollapsed:
    """The error for users: when, by which figures, and what to change.

    Args:
        config: of the run.
        row: metrics of the collapsed epoch.
        num_clusters: clusters asked for.
        last_checkpoint: where the newest one is.
    """
    causes = list(_causes(config, str(row["stage"]), num_clusters))
    remedy = "; ".join(causes[:2]) or "no setting stands out: lower optim.lr, or set another seed"
    figures = f"mean cosine {row['mean_cosine']:.6f}, effective rank {row['effective_rank']:.2f}"
    return RunCollapsed(
        f"the embeddings collapsed at epoch {row['epoch']} ({figures}): {remedy}; newest "
        f"checkpoint: {last_checkpoint}"
    )


def _causes(config: RunConfig, stage: str, num_clusters: int) -> Iterator[str]:
    """Settings far from those of the recipes, each with its remedy, the likeliest first."""
    optim, framework, own = config.optim, config.model.framework, config.framework
    if optim.weight_decay > _MOST_DECAY:
        yield f"optim.weight_decay={optim.weight_decay:g} shrinks all weights to 0: lower it"
    momentum = getattr(own, "momentum", 1.0)
    if momentum < _LEAST_MOMENTUM:
        yield (
            f"{framework}.momentum={momentum:g} leaves no slower target network: raise it to 0.95 "
            "or more"
        )
    factor = getattr(own, "predictor_lr_factor", 1.0)
    if factor < _LEAST_PREDICTOR_FACTOR:
        yield (
            f"{framework}.predictor_lr_factor={factor:g} leaves the predictor behind the encoder: "
            "raise it to 1 or more"
        )
    temperature = getattr(own, "temperature", 0.0)
    if temperature > _MOST_TEMPERATURE:
        yield (
            f"{framework}.temperature={temperature:g} leaves negatives without weight: lower it to "
            "0.5 or less"
        )
    if optim.lr > _MOST_LR:
        yield f"optim.lr={optim.lr:g} is too high: lower it"
    k, class_rows = config.neighborhood.k, (optim.batch_size + config.bank.size) / num_clusters
    if stage == "group" and k > class_rows:
        yield (
            f"neighborhood.k={k} exceeds the {class_rows:.0f} samples that a cluster has in the "
            "pool: lower it"
        )
