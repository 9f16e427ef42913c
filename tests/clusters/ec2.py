"""EC2, IAM and S3 of moto on a port of a sandbox, where each running instance is a real host."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import boto3

from tests.clusters import moto_server
from tests.clusters.namespaces import GATEWAY, Host, Sandbox
from tests.waiting import HANG_S

URL = f"http://{GATEWAY}:5000"
VARIABLES = {
    "AWS_ENDPOINT_URL": URL,
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-west-2",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Ec2:
    """The service, and the thread that starts and ends hosts as instances come and go."""

    def __init__(self, sandbox: Sandbox, host_variables: Mapping[str, str]) -> None:
        self.hosts: dict[str, Host] = {}
        self.error: Exception | None = None
        self._capacity = sandbox.folder / "capacity.json"
        self._sandbox = sandbox
        self._host_variables = host_variables
        self._stop = threading.Event()

    def __enter__(self) -> Ec2:
        self._sandbox.start(
            [sys.executable, moto_server.__file__, GATEWAY, "5000", str(self._capacity)],
            self._sandbox.folder / "moto.log",
            {**os.environ, **VARIABLES},
        )
        _wait_for_answer(URL, self._sandbox.folder / "moto.log")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def client(self, service: str) -> Any:
        """A client of boto3."""
        return boto3.client(
            service,
            region_name=VARIABLES["AWS_DEFAULT_REGION"],
            endpoint_url=URL,
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def instances(self) -> list[dict[str, Any]]:
        """All that were ever started."""
        found = self.client("ec2").describe_instances()["Reservations"]
        return [instance for reservation in found for instance in reservation["Instances"]]

    def limit(self, **left: int) -> None:
        """No more instances can be started than these: `spot=0`, `on_demand=2`."""
        self._capacity.write_text(json.dumps(left))

    def _watch(self) -> None:
        ended: set[str] = set()
        while not self._stop.wait(0.5):
            try:
                for instance in self.instances():
                    name, state = instance["InstanceId"], instance["State"]["Name"]
                    if state == "running" and name not in self.hosts:
                        self.hosts[name] = self._start(instance)
                    elif state in ("shutting-down", "terminated") and name not in ended:
                        ended.add(name)
                        if name in self.hosts:
                            self.hosts[name].end()
            except Exception as error:
                self.error = error
                raise

    def _start(self, instance: dict[str, Any]) -> Host:
        keys = self.client("ec2").describe_key_pairs(
            KeyNames=[instance["KeyName"]], IncludePublicKey=True
        )
        return self._sandbox.add_host(
            [instance["PrivateIpAddress"], instance["PublicIpAddress"]],
            keys["KeyPairs"][0]["PublicKey"],
            self._host_variables,
        )


def _wait_for_answer(url: str, log: Path) -> None:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/moto-api/", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"moto does not answer\n{log.read_text()}")
