"""Agreement with the CPU, waits for the device, and times, written to check.json as they come."""

from __future__ import annotations

import json
import math
import platform
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from conr_ray.method import compiled
from on_gpu.paths import CPU, Tensors, paths
from on_gpu.times import card_rates, times
from on_gpu.waits import waits


def check(out: Path, device: torch.device, *, tiny: bool) -> int:
    """All checks; returns the exit status: 1 if a path fails or disagrees."""
    found = _Findings(out / "check.json")
    found.add("machine", _machine(device))
    found.attempt("rates", lambda: card_rates(device, tiny=tiny))
    agreement: dict[str, Any] = {}
    for path in paths(tiny=tiny):
        started = time.perf_counter()
        try:
            with _exact_products():
                expected = path.compute(CPU)
                with _routes_of_other_devices(device):
                    figures = _compare(expected, path.compute(device))
            worst = max(figures.values())
            result = {"ok": worst <= path.tolerance, "differences": figures}
        except Exception as error:
            result = {"ok": False, "error": _told(error)}
        agreement[path.name] = {**result, "tolerance": path.tolerance}
        print(f"{'ok   ' if result['ok'] else 'FAILS'} {path.name}: {_short(result)}", flush=True)
        agreement[path.name]["seconds"] = time.perf_counter() - started
        found.add("agreement", agreement)
    found.attempt("waits", lambda: waits(device))
    for name, measure in times(device, tiny=tiny, rates=found.tree.get("rates", {})):
        found.attempt(f"times/{name}", measure)
    failed = [name for name, result in agreement.items() if not result["ok"]]
    failed += [name for name, value in found.tree.items() if "error" in str(value)[:9]]
    agreeing = sum(result["ok"] for result in agreement.values())
    print(f"{agreeing} of {len(agreement)} paths agree; failed: {failed or 'none'}")
    return 1 if failed else 0


class _Findings:
    """A JSON file that is whole after every finding."""

    def __init__(self, file: Path) -> None:
        self.tree: dict[str, Any] = {}
        self._file = file

    def add(self, name: str, value: Any) -> None:
        self.tree[name] = value
        self._file.write_text(json.dumps(self.tree, indent=1) + "\n")

    def attempt(self, name: str, measure: Callable[[], Any]) -> None:
        """Add what `measure` returns, or its error: one failure does not end the others."""
        started = time.perf_counter()
        try:
            value = measure()
        except Exception as error:
            value = {"error": _told(error)}
        self.add(name, value)
        print(f"{time.perf_counter() - started:6.1f} s  {name}: {json.dumps(value)}", flush=True)


def _machine(device: torch.device) -> dict[str, Any]:
    on_card = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_card else platform.processor() or "CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


@contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products and convolutions without TF32, which would hide faults."""
    owners = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [owner.fp32_precision for owner in owners]
    for owner in owners:
        owner.fp32_precision = "ieee"
    try:
        yield
    finally:
        for owner, precision in zip(owners, before, strict=True):
            owner.fp32_precision = precision


@contextmanager
def _routes_of_other_devices(device: torch.device) -> Iterator[None]:
    """In a rehearsal on a CPU, the operations that a GPU would run instead of compiled loops."""
    serves = compiled.serves
    if device.type == "cpu":
        compiled.serves = lambda device: False
    try:
        yield
    finally:
        compiled.serves = serves


def _compare(expected: Tensors, found: Tensors) -> dict[str, float]:
    """Largest difference of each tensor, relative to its largest element.

    Of integers, the share of elements that differ.
    """
    assert expected.keys() == found.keys()
    figures = {}
    for name, left in expected.items():
        left, right = left.detach().cpu(), found[name].detach().cpu()
        if left.shape != right.shape:
            raise ValueError(f"{name}: {tuple(right.shape)} instead of {tuple(left.shape)}")
        if left.is_floating_point():
            scale = left.double().abs().max().clamp_min(1e-12)
            figures[name] = float((left.double() - right.double()).abs().max() / scale)
            if math.isnan(figures[name]):
                figures[name] = math.inf
        else:
            figures[name] = float((left != right).double().mean())
    return figures


def _told(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"


def _short(result: dict[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    return f"largest difference {max(result['differences'].values()):.1e}"
