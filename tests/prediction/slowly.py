"""The command in a process of its own, slow enough to be met at its work."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

import conr_ray.predict
import conr_ray.prediction.predict
from conr_ray.command_line import run_command
from conr_ray.prediction.output import PredictionDirectory
from conr_ray.prediction.samples import SampleForm
from tests.gloo_workers import start_server

# Forked from the server of those workers, which has imported torch.
_CONTEXT = multiprocessing.get_context("forkserver")


def _predict_slowly(
    arguments: list[str], pause_s: float, log: Path | None, environment: dict[str, str]
) -> None:
    # That of the server, which may have begun before.
    os.environ.update(environment)
    if log is not None:
        os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 2)
    torch.set_num_threads(1)
    assert conr_ray.prediction.predict.predict.__kwdefaults__ is not None
    conr_ray.prediction.predict.predict.__kwdefaults__["part_rows"] = 16
    SampleForm.batch_rows = property(lambda form: 8)  # type: ignore[assignment]
    write = PredictionDirectory.write_part

    def slowly(directory: PredictionDirectory, number: int, rows: Any) -> None:
        time.sleep(pause_s)
        write(directory, number, rows)

    PredictionDirectory.write_part = slowly  # type: ignore[method-assign]
    sys.argv = ["predict", *arguments]
    run_command(conr_ray.predict.main)


def start(
    run: str,
    images: Path | str,
    out: Path | str,
    *options: str,
    pause_s: float = 0.1,
    log: Path | None = None,
) -> BaseProcess:
    """The command with parts of 16 rows, with a pause before each; its errors go to `log`."""
    words = ["--run", run, "--images", str(images), "--out", str(out), "--local", *options]
    start_server()
    process = _CONTEXT.Process(target=_predict_slowly, args=(words, pause_s, log, dict(os.environ)))
    process.start()
    return process


def parts_of(out: Path) -> set[Path]:
    """The parts that are written."""
    return set((out / "predictions").glob("part-*.parquet"))
