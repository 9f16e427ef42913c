"""Opens the observer that logs to Weights & Biases."""

from __future__ import annotations

import logging
from dataclasses import replace

from conr_ray.config import RunConfig
from conr_ray.engine.observer import Observer
from conr_ray.tracking.wandb_settings import WandbSettings

logger = logging.getLogger(__name__)


def open_wandb(settings: WandbSettings, config: RunConfig) -> Observer:
    """The observer that logs to `settings`: offline where W&B does not start online.

    If logging is off or fails, it is the null observer.
    """
    if settings.mode == "off":
        return Observer()
    try:
        # W&B and matplotlib take a second to import.
        from conr_ray.tracking.wandb_run import WandbRun

        return WandbRun(settings, config)
    except Exception as error:
        if settings.mode == "online":
            logger.warning("cannot start W&B, logging offline: %s", error)
            return open_wandb(replace(settings, mode="offline", sparing=True), config)
        logger.warning("cannot start W&B, continuing without it: %s", error)
        return Observer()
