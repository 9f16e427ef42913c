"""Run a command on the head of a cluster from another machine, by ray://."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

import conr_ray
from conr_ray.engine.stopping import signals_handled
from conr_ray.errors import RunFailed, UserError
from conr_ray.scaling.cluster import NOT_JOINED, check_reachable, not_joined

# Options that name a file on the caller's machine.
_FILES = ("--space", "--config")
# Attempts to connect: the head forks a server for each client while its other threads are in gRPC,
# which sometimes kills the new process (ray-project/ray#63202).
_TRIES = 4
# Time for an interrupted command to print its last lines.
_LAST_LINES_S = 30


def run_on_head(module: str, arguments: Sequence[str], address: str) -> None:
    """Run `python -m module` with this package and these arguments on the head of a cluster.

    Space and config files are sent along; other paths are on the cluster. The command's output is
    printed here. It ends with the connection.

    Raises:
        UserError: there is no cluster.
        RunFailed: the command failed; its output says why.
    """
    package = str(Path(conr_ray.__file__).parent)
    check_reachable(address)
    wandb = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    _connect(address, {"py_modules": [package], "env_vars": wandb})
    # --option=value is the same as --option value.
    pairs = (word.split("=", 1) if word.startswith("--") else [word] for word in arguments)
    sent = [word for pair in pairs for word in pair]
    sent[sent.index(address)] = "auto"
    files = {
        place: (Path(sent[place]).name, _read(sent[place]))
        for place in range(1, len(sent))
        if sent[place - 1] in _FILES and "://" not in sent[place]
    }
    on_head = ray.remote(_Command).options(
        num_cpus=0, max_concurrency=2, resources={"node:__internal_head__": 0.001}
    )
    command: Any = on_head.remote(module, sent, files)
    ended = command.run.remote()
    try:
        with signals_handled():
            status = ray.get(ended)
    except KeyboardInterrupt:
        # Its last lines say how to resume.
        ray.get(command.interrupt.remote())
        ray.wait([ended], timeout=_LAST_LINES_S)
        raise KeyboardInterrupt(", and on the cluster too") from None
    finally:
        # A process that runs another command connects again.
        ray.shutdown()
    if status:
        raise RunFailed(f"the command failed on the cluster with status {status}")


def _connect(address: str, runtime_env: dict[str, Any]) -> None:
    for tries_left in reversed(range(_TRIES)):
        try:
            ray.init(address, runtime_env=runtime_env, logging_level=logging.ERROR)
            return
        except NOT_JOINED as error:
            if not (tries_left and isinstance(error, ConnectionAbortedError)):
                raise not_joined(address, error) from None


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


class _Command:
    """Runs the command on the head, as a separate process whose output goes to the caller."""

    def __init__(
        self, module: str, arguments: list[str], files: dict[int, tuple[str, bytes]]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="conr_ray_")
        for place, (name, content) in files.items():
            file = Path(self._folder.name, name)
            file.write_bytes(content)
            arguments[place] = str(file)
        package = str(Path(conr_ray.__file__).parents[1])
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        # Ray's processes block SIGINT, and their children inherit that.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self) -> int:
        """Print its output until it ends; return its status."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            print(line, end="", flush=True)
        self._folder.cleanup()
        return self._process.wait()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)
