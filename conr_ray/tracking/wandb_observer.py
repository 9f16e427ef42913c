"""Opens the observer that logs to Weights & Biases."""

from __future__ import annotations

import logging

from conr_ray.config import RunConfig
from conr_ray.engine.observer import Observer
from conr_ray.tracking.wandb_settings import WandbSettings

logger = logging.getLogger(__name__)


def open_wandb(settings: WandbSettings, config: RunConfig) -> Observer:
    """The observer that logs to `settings`; the null observer if logging is off or fails."""
    if settings.mode == "off":
        return Observer()
    try:
        # W&B and matplotlib take a second to import.
        from conr_ray.tracking.wandb_run import WandbRun

        return WandbRun(settings, config)
    except Exception as error:
        logger.warning("cannot start W&B, continuing without it: %s", error)
        return Observer()
