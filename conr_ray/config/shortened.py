"""A preset's schedule in fewer epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conr_ray.config.reading import load_preset

_EPOCHS = "schedule.epochs"
_WITHIN = ("group_start", "relax_epochs", "warmup_epochs")


def shortened(preset: str, overrides: Mapping[str, Any]) -> dict[str, int]:
    """Fields of the schedule that `preset` sets and that do not fit into fewer epochs.

    They keep their share of the run. Fields that `overrides` sets stay, and so do all if the
    preset's fit into its `schedule.epochs`.

    Raises:
        UserError: there is no such preset.
    """
    schedule = load_preset(preset).schedule
    epochs = overrides.get(_EPOCHS)
    if not isinstance(epochs, int) or not 0 < epochs < schedule.epochs:
        return {}
    own = {leaf: getattr(schedule, leaf) for leaf in _WITHIN if f"schedule.{leaf}" not in overrides}
    start = own.get("group_start", 0)
    if own.get("warmup_epochs", 0) <= epochs and (start == "never" or start < epochs):
        return {}
    counts = {leaf: count for leaf, count in own.items() if isinstance(count, int)}
    return {f"schedule.{leaf}": count * epochs // schedule.epochs for leaf, count in counts.items()}


def told_of_shortened(changed: Mapping[str, int], epochs: int) -> str:
    """A line that tells what `shortened` has changed."""
    told = ", ".join(f"{name}={value}" for name, value in changed.items())
    return f"the preset's schedule, fitted to schedule.epochs={epochs}: {told}; --set changes them"
