"""Times of steps, views and evaluation, beside the card's own rates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from conr_ray.config import RunConfig, load_preset
from conr_ray.data.store import DataSet
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import DataClustering, cluster_data
from conr_ray.engine.precision import best_precision
from on_gpu.paths import random_images, small_config
from on_gpu.stepper import Stepper, step_of

Figures = dict[str, Any]
Measure = tuple[str, Callable[[], Figures]]


def card_rates(device: torch.device, *, tiny: bool) -> Figures:
    """Products per second in each precision, and bytes per second of a copy."""
    side = 64 if tiny else 8192
    found: Figures = {}
    for name in ("bfloat16", "float32"):
        square = torch.randn(side, side, device=device, dtype=getattr(torch, name))
        seconds = _seconds(device, partial(torch.mm, square, square), 10)
        found[f"{name} TFLOP/s"] = 2 * side**3 / seconds / 1e12
    block = torch.empty(2**20 if tiny else 2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(block)
    seconds = _seconds(device, partial(target.copy_, block), 10)
    found["TB/s"] = 2 * block.numel() / seconds / 1e12
    return found


def times(device: torch.device, *, tiny: bool, rates: Mapping[str, float]) -> Iterator[Measure]:
    """Each measurement with its name, the most important first."""
    config, data = _setting(tiny=tiny)
    precision = best_precision(config, data.row_shape, device)
    plain, compiled = (Acceleration(device, precision, compiles=c) for c in (False, True))
    ways = {"plain": plain, "compiled": compiled}
    if device.type == "cpu":
        del ways["compiled"]
    rate = rates.get("bfloat16 TFLOP/s" if precision == "bf16" else "float32 TFLOP/s")
    for name, how in ways.items():
        for grouped in (False, True):
            stage = "group" if grouped else "instance"
            measure = partial(_step, config, data, how, grouped=grouped, rate=rate)
            yield f"{stage} step, {name}", measure
    for size in (256, 512) if tiny else (16_384, 65_536):
        wide = config.model_copy(update={"bank": config.bank.model_copy(update={"size": size})})
        how = ways.get("compiled", plain)
        yield (
            f"group step, bank of {size}",
            partial(_step, wide, data, how, grouped=True, rate=rate),
        )
    yield "evaluation", partial(_evaluation, config, data, ways.get("compiled", plain))


def _setting(*, tiny: bool) -> tuple[RunConfig, DataSet]:
    """CIFAR-10's recipe on random pixels."""
    if tiny:
        return small_config(bank__size=0), random_images(600, 1, 8)
    return load_preset("cifar10"), random_images(60_000, 3, 32)


def _step(
    config: RunConfig, data: DataSet, how: Acceleration, *, grouped: bool, rate: float | None
) -> Figures:
    """Milliseconds of a whole step, of its views alone, and the share of the card's rate."""
    device, num_rows = how.device, config.optim.batch_size
    with how.applied():
        # What cannot be compiled must not be measured as if it were.
        torch._dynamo.config.suppress_errors = False
        stepper = Stepper(config, data, how, grouped=grouped)
        stepper.fill_bank()
        step = step_of(device, num_rows, config.model.embedding_dim)
        started = time.perf_counter()
        flops = _flops(stepper, step) if not how.compiles else None
        first = stepper.train(stepper.views(), step)
        _wait(device)
        first_s = time.perf_counter() - started
        count = 2 if num_rows < 128 else 20
        whole_s = _seconds(device, lambda: stepper.train(stepper.views(), step), count)
        views_s = _seconds(device, stepper.views, count)
    figures = {"ms": 1e3 * whole_s, "views_ms": 1e3 * views_s, "first_s": first_s}
    figures |= {"loss": float(first), "images_per_s": num_rows / whole_s}
    if flops is not None:
        figures["TFLOP"] = flops / 1e12
        if rate:
            figures["share of the rate"] = flops / 1e12 / whole_s / rate
    if device.type == "cuda":
        figures["GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
        torch.cuda.reset_peak_memory_stats(device)
    return figures


def _flops(stepper: Stepper, step: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        stepper.train(stepper.views(), step)
    return float(counter.get_total_flops())


def _evaluation(config: RunConfig, data: DataSet, how: Acceleration) -> Figures:
    """Milliseconds to embed all samples, to cluster them, and for the scores."""
    device = how.device
    with how.applied():
        stepper = Stepper(config, data, how, grouped=False)
        embedder = Embedder(stepper.framework, stepper.inputs, how)
        rows = torch.arange(data.num_rows, device=device)
        embed_s = _seconds(device, lambda: embedder.plain(rows), 1)

        def cluster(warm_cd: Tensor | None) -> DataClustering:
            return cluster_data(
                config,
                embedder,
                num_rows=data.num_rows,
                num_clusters=10,
                epoch=1,
                warm_cd=warm_cd,
            )

        found = cluster(None)
        cold_s = _seconds(device, lambda: cluster(None), 1) - embed_s
        warm_s = _seconds(device, lambda: cluster(found.centers_cd), 1) - embed_s
        scores_s = _seconds(
            device, lambda: found.metrics(data.labels, embedder, 3, label_free=True), 1
        )
    figures = {"embed": embed_s, "cluster": cold_s, "cluster warm": warm_s, "scores": scores_s}
    return {f"{name}_ms": 1e3 * seconds for name, seconds in figures.items()}


def _seconds(device: torch.device, work: Callable[[], object], count: int) -> float:
    """Median over three of the mean time of `count` calls, after two that warm up."""
    for _ in range(2):
        work()
    found = []
    for _ in range(3):
        _wait(device)
        started = time.perf_counter()
        for _ in range(count):
            work()
        _wait(device)
        found.append((time.perf_counter() - started) / count)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
