"""How often a step and an evaluation wait for the device, and where."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import conr_ray
from conr_ray.data.store import open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import cluster_data
from on_gpu.paths import small_config
from on_gpu.stepper import Stepper, step_of

Waits = dict[str, int]
_PACKAGE = f"{Path(conr_ray.__file__).parent}/"


def waits(device: torch.device) -> dict[str, Waits]:
    """For a step of each stage and an evaluation, waits by the line that asked for them.

    Counted by torch on a GPU; on a CPU nothing waits.
    """
    return {
        "instance step": _step(device, grouped=False),
        "group step": _step(device, grouped=True),
        "group step, bank of 256": _step(device, grouped=True, bank_size=256),
        "evaluation": _evaluation(device),
    }


def _step(device: torch.device, *, grouped: bool, bank_size: int = 0) -> Waits:
    config = small_config(bank__size=bank_size)
    stepper = Stepper(config, open_data(config.data), Acceleration(device), grouped=grouped)
    stepper.fill_bank()
    views = stepper.views()
    first, second = (step_of(device, 64, config.model.embedding_dim, n) for n in (3, 4))
    stepper.train(views, first)
    return _counted(device, lambda: stepper.train(views, second))


def _evaluation(device: torch.device) -> Waits:
    config = small_config()
    data, how = open_data(config.data), Acceleration(device)
    stepper = Stepper(config, data, how, grouped=False)
    embedder = Embedder(stepper.framework, stepper.inputs, how)

    def evaluate() -> object:
        return cluster_data(
            config, embedder, num_rows=data.num_rows, num_clusters=10, epoch=1, warm_cd=None
        )

    evaluate()
    return _counted(device, evaluate)


def _counted(device: torch.device, work: Callable[[], object]) -> Waits:
    if device.type != "cuda":
        work()
        return {}
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message):
            frames = [f for f in traceback.extract_stack() if f.filename.startswith(_PACKAGE)]
            last = frames[-1] if frames else None
            place = f"{last.filename.removeprefix(_PACKAGE)}:{last.lineno}" if last else "torch"
            found[place] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found)
