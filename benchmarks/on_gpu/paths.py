"""The paths of training that a device is compared with the CPU on.

Each path is a function from a device to named tensors. Inputs are drawn on the CPU.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from conr_ray.config import RunConfig, load_preset
from conr_ray.data.inputs import make_inputs
from conr_ray.data.store import DataSet, open_data
from conr_ray.engine.acceleration import Acceleration
from conr_ray.engine.embedder import Embedder
from conr_ray.engine.evaluation import cluster_data
from conr_ray.engine.loop import train
from conr_ray.engine.observer import Observers
from conr_ray.engine.run_directory import RunDirectory
from conr_ray.engine.take_snapshot import take_snapshot
from conr_ray.engine.trained_run import TrainedRun
from conr_ray.engine.training_state import TrainingState, neighborhood_of
from conr_ray.method.clustering.kmeans import spherical_kmeans
from conr_ray.method.frameworks import OF_ALL_DATA, framework_names
from conr_ray.method.neighbors.bank import MemoryBank, Neighborhood
from conr_ray.method.neighbors.data_neighbors import DataNeighbors
from conr_ray.method.neighbors.reranking import contextual_neighbors, euclidean_neighbors
from on_gpu.stepper import Stepper, step_of

Tensors = dict[str, Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Path:
    """A computation, and how far the device may be from the CPU.

    Attributes:
        tolerance: largest difference of elements, relative to the largest element.
    """

    name: str
    compute: Callable[[torch.device], Tensors]
    tolerance: float


def small_config(**changes: Any) -> RunConfig:
    """The digits preset, cut down to seconds."""
    small = {
        "data.limit": 600,
        "optim.batch_size": 64,
        "bank.size": 256,
        "schedule.epochs": 4,
        "schedule.group_start": 2,
        "schedule.relax_epochs": 1,
        "schedule.warmup_epochs": 1,
        "evaluation.every": 1,
        "checkpoint.every": 1,
    }
    return load_preset("digits", small | {k.replace("__", "."): v for k, v in changes.items()})


def clustered_rows(num_rows: int, width: int, *, cosine: float = 0.8) -> Tensor:
    """Unit-length rows around 10 random centres; rows of one cluster have about this cosine."""
    generator = torch.Generator().manual_seed(0)
    centers = normalize(torch.randn(10, width, generator=generator))
    noise = normalize(torch.randn(num_rows, width, generator=generator))
    return normalize(
        cosine**0.5 * centers.repeat(-(-num_rows // 10), 1)[:num_rows] + (1 - cosine) ** 0.5 * noise
    )


def paths(*, tiny: bool) -> Iterator[Path]:
    """All of them, cheap ones first."""
    num_rows = 600 if tiny else 6000
    yield Path("views", _views, 1e-4)
    yield Path("re-ranking", lambda device: _neighbors(device, num_rows, 0.8), 0)
    yield Path("re-ranking, tight clusters", lambda device: _neighbors(device, num_rows, 0.999), 0)
    for kind in ("contextual", "euclidean"):
        for dtype in (torch.float32, torch.bfloat16):
            name = f"bank, {kind}, {str(dtype).removeprefix('torch.')}"
            yield Path(name, lambda device, k=kind, d=dtype: _bank(device, k, d), 1e-5)  # type: ignore[misc]
    yield Path("k-means", lambda device: _kmeans(device, num_rows), 1e-4)
    for name in framework_names():
        for grouped in (False, True):
            stage = "group" if grouped else "instance"
            yield Path(
                f"step: {name}, {stage} stage",
                lambda device, n=name, g=grouped: _step(device, n, grouped=g),  # type: ignore[misc]
                2e-3,
            )
            if name == "byol":
                yield Path(
                    f"compiled step: {name}, {stage} stage",
                    lambda device, n=name, g=grouped: _step(device, n, grouped=g, compiles=True),  # type: ignore[misc]
                    2e-3,
                )
    yield Path("evaluation, scores, snapshot", _evaluation, 2e-3)
    yield Path("run, stopped and resumed", _run, 0.05)


def _views(device: torch.device) -> Tensors:
    config = load_preset("cifar10", {"views.size": 16, "views.blur_probability": 0.5})
    inputs = make_inputs(config, random_images(64, 3, 20), device)
    positions = torch.arange(64, device=device)
    batch = inputs.take(positions)
    views = {
        f"mild={mild}": inputs.random(batch, 7, positions, mild=mild) for mild in (False, True)
    }
    return views | {
        "plain": inputs.plain(batch),
        "perturbed": inputs.perturbed(batch, 3, positions),
    }


def random_images(num_rows: int, channels: int, side: int) -> DataSet:
    """Images of random pixels, with labels 0 to 9."""
    generator = torch.Generator().manual_seed(1)
    shape = num_rows, channels, side, side
    images = torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy()
    ids, half = torch.arange(num_rows).numpy(), (0.5,) * channels
    return DataSet(images, ids % 10, None, None, ids, half, half, "random", "random pixels")


def _neighbors(device: torch.device, num_rows: int, cosine: float) -> Tensors:
    rows = clustered_rows(num_rows, 64, cosine=cosine).to(device)
    return {
        "contextual": contextual_neighbors(rows, k1=10, k2=2, k=10)[1],
        "euclidean": euclidean_neighbors(rows, k=10)[1],
    }


def _bank(device: torch.device, kind: str, dtype: torch.dtype) -> Tensors:
    near = Neighborhood(kind, 10, 2, 10)
    bank = MemoryBank(500, 32, 64, near, dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(2)
    found: Tensors = {}
    for step in range(12):
        keys = [normalize(torch.randn(64, 32, generator=generator)) for _ in range(2)]
        ids = torch.randperm(1000, generator=generator)[:64]
        neighbors = bank.find([k.to(device) for k in keys], ids.to(device))[0]
        found[f"numbers {step}"] = neighbors.numbers_bk
        found[f"mean keys {step}"] = neighbors.mean_keys_bd
    return found


def _kmeans(device: torch.device, num_rows: int) -> Tensors:
    rows = clustered_rows(num_rows, 64).to(device)
    found = spherical_kmeans(rows, num_rows, 10, seed=5, restarts=4)
    fit = (rows * found.centers_cd[found.labels_b]).sum(1).double().mean()
    return {"mean cosine": fit}


def _step(device: torch.device, name: str, *, grouped: bool, compiles: bool = False) -> Tensors:
    """One step; with `compiles`, networks and views are compiled on a GPU."""
    changes: dict[str, Any] = {"model__framework": name, "bank__size": 0}
    if name == "propos":
        changes["propos__scattering_start"] = 0
    if name in OF_ALL_DATA:
        changes["neighborhood__pool"] = "data"
    config = small_config(**changes)
    how = Acceleration(device, compiles=compiles and device.type == "cuda")
    stepper = Stepper(config, open_data(config.data), how, grouped=grouped)
    views, framework = stepper.views(), stepper.framework
    loss = stepper.train(views, step_of(device, 64, framework.embedding_encoder.embedding_dim))
    grads = [p.grad.flatten() for p in framework.parameters() if p.grad is not None]
    framework.eval()
    return {"loss": loss, "gradients": torch.cat(grads), "embeddings": framework.embed(views[0])}


def _evaluation(device: torch.device) -> Tensors:
    config = small_config()
    data = open_data(config.data)
    state = TrainingState.create(config, data.row_shape, Acceleration(device))
    embedder = Embedder(state.framework, make_inputs(config, data, device), Acceleration(device))
    found = cluster_data(
        config, embedder, num_rows=data.num_rows, num_clusters=10, epoch=1, warm_cd=None
    )
    near = DataNeighbors(neighborhood_of(config), lambda: found.embeddings_bd, data.num_rows)
    snapshot = take_snapshot(near, found, data, epoch=1, fraction=0.8)
    assert snapshot is not None and data.labels is not None
    scores = found.metrics(data.labels, embedder, 11, label_free=True)
    scores |= near.purities(torch.from_numpy(data.labels).to(device))
    fit = (found.embeddings_bd * found.centers_cd[found.clusters_n]).sum(1).mean()
    return {
        "embeddings": found.embeddings_bd,
        "mean cosine": fit,
        "purity": torch.tensor([v for k, v in scores.items() if k.startswith("data_purity")]),
    }


class _Stop(Observers):
    def epoch(self, row: Mapping[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt


def _run(device: torch.device) -> Tensors:
    """A run stopped in its group stage and resumed; its files are then read on the CPU."""
    config = small_config(optim__precision="auto")
    data = open_data(config.data)
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory(folder)
        with contextlib.suppress(KeyboardInterrupt):
            train(config, data, directory, _Stop(), device)
        rows = train(config, data, directory, Observers(), device)
        samples = data.rows[:100]
        there, here = (TrainedRun.load(folder, d).embed(samples).cpu() for d in (device, CPU))
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3)
    # Later epochs differ: training magnifies the last bit.
    return {"first loss": torch.tensor(float(rows[0]["loss"] or 0))}
