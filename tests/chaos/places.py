"""Where the results of a search under attack lie: each place can fail in ways of its own."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import boto3
from moto.server import ThreadedMotoServer

from tests.reporting.wandb_server import wandb_server

Failure = Callable[[random.Random], None]
# How long storage is away or full, in seconds.
AWAY_S = (1.0, 6.0)
_SMALL_MIB = 48


class Disk:
    """A folder on the disk of this machine."""

    def __init__(self, scratch: Path) -> None:
        self.folder: Path | None = scratch / "results"
        self.folder.mkdir()
        self.uri = str(self.folder)
        self.environment: dict[str, str] = {}

    @property
    def failures(self) -> list[Failure]:
        """What makes it fail for a while."""
        return []

    def close(self) -> None: ...


class SmallDisk(Disk):
    """A file system of its own, which can be full or read-only; needs root."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        options = ["-t", "tmpfs", "-o", f"size={_SMALL_MIB}m", "tmpfs"]
        subprocess.run(["mount", *options, self.uri], check=True, capture_output=True)

    @property
    def failures(self) -> list[Failure]:
        return [self.fill, self.make_read_only]

    def fill(self, numbers: random.Random) -> None:
        """Leave no byte free for a while."""
        ballast = Path(self.uri, "ballast")
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        time.sleep(numbers.uniform(*AWAY_S))
        ballast.unlink()

    def make_read_only(self, numbers: random.Random) -> None:
        """Refuse all writes for a while."""
        # Refused while a file is open for writing.
        for _ in range(50):
            if self._remount("ro"):
                time.sleep(numbers.uniform(*AWAY_S))
                assert self._remount("rw")
                return
            time.sleep(0.05)

    def _remount(self, mode: str) -> bool:
        command = ["mount", "-o", f"remount,{mode}", self.uri]
        return subprocess.run(command, capture_output=True).returncode == 0

    def close(self) -> None:
        subprocess.run(["umount", "-l", self.uri], check=True)


class Bucket:
    """A bucket of an S3 server on this machine, which can be away."""

    def __init__(self, scratch: Path) -> None:
        self.folder: Path | None = None
        self._port = 0
        self.come_back()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ.update(self.environment)
        name = f"chaos-{secrets.token_hex(4)}"
        boto3.client("s3").create_bucket(Bucket=name)
        self.uri = f"s3://{name}"

    @property
    def failures(self) -> list[Failure]:
        return [self.drop_bucket]

    def drop_bucket(self, numbers: random.Random) -> None:
        """Refuse connections for a while."""
        self.go_away()
        time.sleep(numbers.uniform(*AWAY_S))
        self.come_back()

    def go_away(self) -> None:
        """Refuse connections."""
        self._server.stop()

    def come_back(self) -> None:
        """Take connections again, with all that was kept."""
        # What it keeps is kept by this process, also while it is away.
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def close(self) -> None:
        self._server.stop()


class Tracker:
    """W&B's stand-in, which can be away."""

    def __init__(self) -> None:
        self._held = ExitStack()
        server = self._held.enter_context(wandb_server())
        self._port = server.server_port
        self.environment = {
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "0" * 40,
        }

    @property
    def failures(self) -> list[Failure]:
        return [self.drop_wandb]

    def drop_wandb(self, numbers: random.Random) -> None:
        """Refuse connections for a while."""
        self._held.close()
        time.sleep(numbers.uniform(*AWAY_S))
        self._held.enter_context(wandb_server(self._port))

    def close(self) -> None:
        self._held.close()


Place = Disk | Bucket
