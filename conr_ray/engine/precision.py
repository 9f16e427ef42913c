"""What `optim.precision=auto` stands for."""

from __future__ import annotations

import hashlib
import platform
import time
from pathlib import Path
from typing import Any

import torch

from conr_ray.config import OWN_SIDE, RunConfig
from conr_ray.data.cache import default_cache_dir
from conr_ray.engine.acceleration import Acceleration, has_bf16, has_tf32
from conr_ray.engine.training_state import backbone_of
from conr_ray.method.backbone_names import is_timm
from conr_ray.method.collectives import broadcast_first, rank
from conr_ray.pretrained import preparation_of

_PRECISIONS = ("fp32", "tf32", "bf16")
# Rows of the trial batch, and the share of float32's time that bfloat16 must stay below.
_TRIAL_ROWS, _CLEARLY_FASTER = 16, 0.9


def settled_precision(
    config: RunConfig, kept: str, row_shape: tuple[int, ...], device: torch.device
) -> str:
    """The precision of a run: fp32, tf32 or bf16, as the first worker has it; called by all.

    It is what the run has kept so far or, if that is `auto`, what is best here.
    """
    own = 0
    if rank() == 0:
        own = _PRECISIONS.index(
            best_precision(config, row_shape, device) if kept == "auto" else kept
        )
    return _PRECISIONS[int(broadcast_first(torch.tensor(own, device=device)))]


def best_precision(config: RunConfig, row_shape: tuple[int, ...], device: torch.device) -> str:
    """The precision for a new run on this machine.

    On GPUs it is bf16 where they have it, else tf32 where they have that. On CPUs with bfloat16
    instructions, a forward and a backward pass of the backbone are timed in each, once for a
    machine and a network: runs side by side, and later ones, choose alike.
    """
    if device.type == "cuda":
        if has_bf16(device):
            return "bf16"
        return "tf32" if has_tf32(device) else "fp32"
    mkldnn: Any = torch.backends.mkldnn
    if not mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32"
    file = _file_of_choice(config, row_shape)
    try:
        known = file.read_text()
    except OSError:
        known = ""
    if known in _PRECISIONS:
        return known
    choice = "bf16" if _bfloat16_is_faster(config, row_shape) else "fp32"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(choice)
    except OSError:
        pass  # Then the next run tries again.
    return choice


def _file_of_choice(config: RunConfig, row_shape: tuple[int, ...]) -> Path:
    """Where the choice for this machine and network is kept."""
    machine = platform.processor(), platform.machine(), torch.get_num_threads(), torch.__version__
    network = config.model.model_dump_json(), config.views.size, row_shape
    name = hashlib.sha256(repr((machine, network)).encode()).hexdigest()[:16]
    return default_cache_dir() / "precision" / name


def _bfloat16_is_faster(config: RunConfig, row_shape: tuple[int, ...]) -> bool:
    """Whether it is on this CPU, for the backbone of `config`."""
    with torch.random.fork_rng(devices=[]):
        backbone = backbone_of(config, row_shape)
        view_shape = row_shape
        if is_timm(config.model.backbone) and not config.embeds_once:
            size = preparation_of(config.model.backbone, config.views.size).size
            view_shape = (3, size, size)
        elif len(row_shape) == 3:
            size = config.views.size or OWN_SIDE
            view_shape = (row_shape[0], size, size)
        inputs = torch.rand(_TRIAL_ROWS, *view_shape)
    cpu = torch.device("cpu")
    Acceleration(cpu).place(backbone)
    if not any(True for _ in backbone.parameters()):
        return False

    def seconds(precision: str) -> float:
        with Acceleration(cpu, precision).autocast():
            started = time.perf_counter()
            torch.autograd.backward(backbone(inputs).float().sum())
            return time.perf_counter() - started

    times = {p: [seconds(p) for _ in range(3)][1:] for p in ("bf16", "fp32")}
    return min(times["bf16"]) < _CLEARLY_FASTER * min(times["fp32"])
