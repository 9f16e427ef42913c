"""Whether and where to log to Weights & Biases.

Online if a key is known, offline with WANDB_MODE=offline, otherwise off. An error in tracking never
stops a run.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from conr_ray.config import TrackingConfig
from conr_ray.errors import UserError
from conr_ray.storage.private_folder import private_folder

Mode = Literal["online", "offline", "off"]
# W&B's default hosts, the older and the newer name: `wandb login` stores the key under one of them.
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_DEFAULT_URL = "https://api.wandb.ai"


@dataclass(frozen=True)
class WandbSettings:
    """Where a run is logged.

    `run_uri` is the directory of the logged run. W&B's local files, which `wandb sync` uploads for
    an offline run, are there too; for a bucket they are in a temporary folder, and those of an
    offline run are copied to the bucket when it ends. With `sparing`, figures are not drawn at the
    end of a run that is too short for them.
    """

    mode: Mode
    run_id: str = ""
    group: str | None = None
    run_uri: str = ""
    sparing: bool = False

    def for_run(self, run_id: str, *, group: str | None, run_uri: str) -> WandbSettings:
        """These settings for the run with this id."""
        return replace(self, run_id=run_id, group=group, run_uri=run_uri)

    @property
    def folder(self) -> str:
        """Folder of the local files."""
        return str(private_folder()) if self.in_bucket else self.run_uri

    @property
    def in_bucket(self) -> bool:
        """Whether the run's directory is in a bucket."""
        return "://" in self.run_uri


def wandb_mode(config: TrackingConfig) -> tuple[Mode, str | None]:
    """How to log as far as settings say, and a message for the user if that may surprise."""
    if config.wandb == "off":
        return "off", None
    asked = os.environ.get("WANDB_MODE", "online").lower()
    if asked == "disabled":
        return "off", None
    if asked in ("offline", "dryrun"):
        return "offline", None
    if asked not in ("online", "run"):
        raise UserError(f"WANDB_MODE={asked}: set it to online, offline or disabled")
    if find_key():
        return "online", None
    return "off", (
        "W&B: no key found, so nothing is sent; run `wandb login`, or set WANDB_MODE=offline"
    )


def base_url() -> str:
    """The server that W&B would use: of the environment, else of its file of settings."""
    if own := os.environ.get("WANDB_BASE_URL"):
        return own.rstrip("/")
    folder = os.environ.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    stored = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
        stored.read(Path(folder) / "settings")
    return stored.get("default", "base_url", fallback=_DEFAULT_URL).rstrip("/")


def find_key() -> str | None:
    """The key that W&B would find; without one, W&B itself would prompt for it."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    asked = urlparse(base_url())
    # W&B writes and reads a host with its port.
    own = (asked.netloc, asked.hostname or "")
    try:
        known = netrc.netrc(os.environ.get("NETRC") or os.path.expanduser("~/.netrc"))
    except (OSError, netrc.NetrcParseError):
        return None
    for host in _HOSTS if asked.netloc in _HOSTS else own:
        if found := known.authenticators(host):
            return found[2]
    return None
