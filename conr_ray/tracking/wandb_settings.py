"""Whether and where to log to Weights & Biases.

Online if a key is known, offline with WANDB_MODE=offline, otherwise off. An error in tracking never
stops a run.
"""

from __future__ import annotations

import netrc
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from conr_ray.config import TrackingConfig
from conr_ray.errors import UserError

Mode = Literal["online", "offline", "off"]
# W&B's default hosts, the older and the newer name: `wandb login` stores the key under one of them.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")


@dataclass(frozen=True)
class WandbSettings:
    """Where a run is logged.

    `run_uri` is the directory of the logged run. W&B's local files, which `wandb sync` uploads for
    an offline run, are there too, or in a temporary folder if it is in a bucket.
    """

    mode: Mode
    run_id: str = ""
    group: str | None = None
    run_uri: str = ""

    def for_run(self, run_id: str, *, group: str | None, run_uri: str) -> WandbSettings:
        """These settings for the run with this id."""
        return replace(self, run_id=run_id, group=group, run_uri=run_uri)

    @property
    def folder(self) -> str:
        """Folder of the local files."""
        return self.run_uri if "://" not in self.run_uri else tempfile.gettempdir()


def wandb_mode(config: TrackingConfig) -> tuple[Mode, str | None]:
    """How to log, and a message for the user if that may surprise."""
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
    """Whether W&B would find a key; W&B itself would prompt for one."""
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
