"""Schedules of learning rate, target momentum and kept fraction. Steps count from 0."""

from __future__ import annotations

import math


def learning_rate(step: int, warmup_steps: int, cosine_steps: int, peak: float) -> float:
    """Linear from near 0 to `peak` over the warm-up, then along a half cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, cosine_steps)
    return peak * (1 + math.cos(math.pi * progress)) / 2


def target_momentum(step: int, num_steps: int, initial: float) -> float:
    """From `initial` to 1 along a cosine over all steps (BYOL)."""
    return 1 - (1 - initial) * (1 + math.cos(math.pi * step / num_steps)) / 2


def kept_fraction(epoch: int, group_start: int, relax_epochs: int, initial: float) -> float:
    """Fraction f of the global batch kept in a group-stage epoch: linear from `initial` to 1."""
    if epoch - group_start >= relax_epochs:
        return 1.0
    return initial + (1 - initial) * (epoch - group_start) / relax_epochs
