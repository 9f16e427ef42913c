"""How a run computes on its device: precision, memory format, fused and compiled operations.

On a CPU nothing but the precision differs from plain torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._triton import has_triton

from conr_ray.config import OptimConfig
from conr_ray.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Acceleration:
    """What is set for a device.

    Attributes:
        device: where the run computes.
        precision: of the networks: fp32, tf32 or bf16.
        compiles: whether networks and views are compiled.
    """

    device: torch.device
    precision: str = "fp32"
    compiles: bool = False

    @classmethod
    def of(cls, optim: OptimConfig, device: torch.device) -> Acceleration:
        """What `optim` asks for; its precision is not auto.

        Raises:
            UserError: the device lacks the precision.
        """
        lacking = {"tf32": not has_tf32(device), "bf16": not has_bf16(device)}
        if lacking.get(optim.precision):
            others = " or ".join(p for p in ("fp32", "bf16") if not lacking.get(p))
            raise UserError(
                f"optim.precision={optim.precision}: {_name(device)} does not have it: set "
                f"{others}, in a run of another name if this one has begun"
            )
        compiles = optim.compile == "auto" and device.type == "cuda"
        if compiles and not has_triton():
            logger.warning("optim.compile=auto: Triton is missing, so nothing is compiled")
            compiles = False
        return cls(device, optim.precision, compiles)

    def autocast(self) -> torch.autocast:
        """Mixed precision for the forward passes of the networks, as a reusable context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def place(self, network: nn.Module) -> None:
        """Move a network to the device, and compile its parts where that pays.

        The parts are its children, which are called as a whole; names in its state dict stay.
        """
        # Faster on GPUs, and on CPUs too.
        network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compiles:
            for part in network.children():
                part.compile(dynamic=False)

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """`function`, compiled where that pays; it must not branch on values of tensors."""
        if not self.compiles:
            return function
        return torch.compile(function, dynamic=False)

    @property
    def sgd_options(self) -> dict[str, Any]:
        """Options of torch's SGD: one kernel for all parameters on a GPU."""
        return {"fused": True} if self.device.type == "cuda" else {}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Settings of the process for training; restored at the end."""
        if self.device.type != "cuda":
            yield
            return
        products = "tf32" if self.precision == "tf32" else "ieee"
        cudnn: Any = torch.backends.cudnn
        settings: list[tuple[Any, str, Any]] = [
            (cudnn, "benchmark", True),
            # Both: torch refuses to name one precision of cuDNN where the two differ.
            (cudnn.conv, "fp32_precision", products),
            (cudnn.rnn, "fp32_precision", products),
            (torch.backends.cuda.matmul, "fp32_precision", products),
        ]
        if self.compiles:
            # A forward program that cannot be compiled runs as it is, with a warning. All compiled
            # modules of a process share one limit on programs.
            compiler: Any = torch._dynamo.config
            settings += [(compiler, "suppress_errors", True), (compiler, "recompile_limit", 64)]
        before = [getattr(owner, name) for owner, name, _ in settings]
        for owner, name, value in settings:
            setattr(owner, name, value)
        try:
            yield
        finally:
            for (owner, name, _), value in zip(settings, before, strict=True):
                setattr(owner, name, value)
            if self.compiles:
                torch._dynamo.reset()


def has_bf16(device: torch.device) -> bool:
    """Whether networks can compute in bfloat16 there, if slowly on some CPUs."""
    return device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)


def has_tf32(device: torch.device) -> bool:
    """Whether there are TF32 products."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
