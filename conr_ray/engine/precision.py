"""What `optim.precision=auto` stands for."""

from __future__ import annotations

import time

import torch

from conr_ray.config import RunConfig
from conr_ray.engine.acceleration import Acceleration, has_bf16, has_tf32
from conr_ray.engine.training_state import make_backbone
from conr_ray.method.collectives import broadcast_first

# Rows of the trial batch, and the share of float32's time that bfloat16 must stay below.
_TRIAL_ROWS, _CLEARLY_FASTER = 16, 0.9


def chosen_precision(config: RunConfig, row_shape: tuple[int, ...], device: torch.device) -> str:
    """The precision of a new run: fp32, tf32 or bf16; the same on all workers.

    On GPUs it is bf16 where they have it, else tf32 where they have that. On CPUs with bfloat16
    instructions, the first worker times a forward and a backward pass of the backbone in each.
    """
    if device.type == "cuda":
        if has_bf16(device):
            return "bf16"
        return "tf32" if has_tf32(device) else "fp32"
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "fp32"
    faster = broadcast_first(torch.tensor(_bfloat16_is_faster(config, row_shape), device=device))
    return "bf16" if faster else "fp32"


def _bfloat16_is_faster(config: RunConfig, row_shape: tuple[int, ...]) -> bool:
    """Whether it is on this CPU, for the backbone of `config`."""
    with torch.random.fork_rng(devices=[]):
        backbone = make_backbone(config.model, row_shape)
        size = config.views.size
        view_shape = (row_shape[0], size, size) if len(row_shape) == 3 else row_shape
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
