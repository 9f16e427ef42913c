"""Weights & Biases: one run for each trial, written by one process.

Online where a key is known, offline where WANDB_MODE=offline, and off where neither is. What goes
wrong in tracking never stops a run.
"""

from __future__ import annotations

import logging
import netrc
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from conr_ray.config import RunConfig, TrackingConfig
from conr_ray.engine.observer import MetricRow, Observers
from conr_ray.errors import UserError

logger = logging.getLogger(__name__)

Mode = Literal["online", "offline", "off"]
# Where W&B is if nothing else is said, under its older and its newer name: `wandb login` writes a
# key under one of them.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


@dataclass(frozen=True)
class WandbSettings:
    """Where a run is logged.

    `folder` holds the local files, under which `wandb sync` finds an offline run.
    """

    mode: Mode
    run_id: str = ""
    name: str = ""
    group: str | None = None
    folder: str | None = None

    def for_run(self, run_id: str, *, name: str, group: str | None, folder: str) -> WandbSettings:
        """These settings for one run."""
        local = folder if "://" not in folder else tempfile.gettempdir()
        return replace(self, run_id=run_id, name=name, group=group, folder=local)


def wandb_mode(config: TrackingConfig) -> tuple[Mode, str | None]:
    """How to log, and a sentence for the user where that may surprise."""
    if config.wandb == "off":
        return "off", None
    asked = os.environ.get("WANDB_MODE", "online").lower()
    if asked == "disabled":
        return "off", None
    if asked in ("offline", "dryrun"):
        return "offline", None
    if asked not in ("online", "run"):
        raise UserError(f"WANDB_MODE={asked}: set it to online, offline or disabled")
    if _has_key():
        return "online", None
    return "off", (
        "W&B: no key found, so nothing is sent; run `wandb login`, or set WANDB_MODE=offline"
    )


def _has_key() -> bool:
    """Whether W&B would find a key. Asked of W&B itself, it would prompt for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    asked = urlparse(os.environ.get("WANDB_BASE_URL", ""))
    # W&B writes and reads a host with its port.
    hosts = (asked.netloc, asked.hostname or "") if asked.netloc else _HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
        return any(known.authenticators(host) for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def open_wandb(settings: WandbSettings, config: RunConfig) -> Observers:
    """The observer that logs to `settings`; the null observer where logging is off or fails."""
    if settings.mode == "off":
        return Observers()
    try:
        return Observers([_WandbRun(settings, config)])
    except Exception as error:
        logger.warning("W&B does not start, the run goes on without: %s", error)
        return Observers()


class _WandbRun:
    """Logs each epoch's row; after the first failure it only stays quiet."""

    def __init__(self, settings: WandbSettings, config: RunConfig) -> None:
        import wandb

        self._working = True
        self._run = wandb.init(
            project=config.tracking.project,
            id=settings.run_id,
            name=settings.name,
            group=settings.group,
            resume="allow",
            mode=settings.mode if settings.mode == "offline" else None,
            dir=settings.folder,
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")

    def inherit(self, rows: Sequence[MetricRow]) -> None:
        for row in rows:
            self.epoch(row)

    def epoch(self, row: MetricRow) -> None:
        known: dict[str, Any] = {name: value for name, value in row.items() if value is not None}
        self._attempt(lambda: self._run.log(known))

    def end(self, error: BaseException | None) -> None:
        # A scheduler stops a trial by SystemExit: no failure.
        failed = error is not None and not isinstance(error, SystemExit)
        self._attempt(lambda: self._run.finish(exit_code=int(failed)))

    def _attempt(self, action: Any) -> None:
        if not self._working:
            return
        try:
            action()
        except Exception as error:
            self._working = False
            logger.warning("W&B fails, the run goes on without: %s", error)
