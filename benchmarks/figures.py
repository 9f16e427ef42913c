"""What the figures of a run cost: in training, where they go to W&B, and afterwards.

    python benchmarks/figures.py --preset fashion_mnist --set data.limit=10000

Trains the preset once with W&B offline, one process and one thread, and times what its observer
spends on figures, for a snapshot after every tenth epoch and the last. Then draws them all anew, as
`conr_ray.report` does: the 2-D map by t-SNE, the four figures as PNG and SVG, the HTML file.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@contextmanager
def timed(name: str, into: dict[str, float]) -> Iterator[None]:
    """Add the seconds spent inside to `into`."""
    started = time.perf_counter()
    yield
    into[name] = into.get(name, 0.0) + time.perf_counter() - started


def train_with_wandb(folder: Path, preset: str, fields: dict[str, Any]) -> None:
    """Train, and print the share of the figures."""
    import torch

    from conr_ray.config import load_preset
    from conr_ray.data.store import open_data
    from conr_ray.engine.loop import train
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.tracking import wandb_run
    from conr_ray.tracking.wandb_media import snapshot_media
    from conr_ray.tracking.wandb_settings import WandbSettings

    config, times, counts = load_preset(preset, fields), dict[str, float](), []
    draw = snapshot_media

    def drawn(*args: Any) -> Any:
        counts.append(args[0].epoch)
        with timed("figures", times):
            return draw(*args)

    wandb_run.snapshot_media = drawn  # type: ignore[attr-defined, assignment]
    settings = WandbSettings("offline").for_run("run", group=None, run_uri=str(folder))
    torch.set_num_threads(1)
    directory = RunDirectory(folder)
    directory.claim(config, resume=False)
    with timed("run", times):
        observer = wandb_run.WandbRun(settings, config)
        train(config, open_data(config.data), directory, observer, torch.device("cpu"))
    print(
        f"run {times['run']:.0f} s, figures after epochs {counts}: {times['figures']:.2f} s, "
        f"{times['figures'] / times['run']:.1%}"
    )


def draw_all(folder: Path) -> None:
    """Draw what there is, and print the times."""
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.snapshot import Snapshot
    from conr_ray.tracking import drawing
    from conr_ray.tracking.embedding_map import map_2d

    times: dict[str, float] = {}
    snapshot = Snapshot.read(RunDirectory(folder))
    assert snapshot is not None
    with timed("map", times):
        positions = map_2d(snapshot.embeddings)
    figures: dict[str, Figure | None] = {}
    with timed("figures", times):
        figures["neighbors"] = drawing.neighbor_grid(snapshot)
        figures["map"] = drawing.embedding_map(snapshot, positions)
        figures["confusion"] = drawing.confusion_matrix(snapshot)
        figures["clusters"] = drawing.cluster_examples(snapshot)
    for kind in ("png", "svg"):
        with timed(kind, times):
            for figure in figures.values():
                if figure is not None:
                    figure.savefig(io.BytesIO(), format=kind)
    parts = ", ".join(f"{name} {value:.1f} s" for name, value in times.items())
    print(f"{snapshot.samples.num_rows} samples: {sum(times.values()):.1f} s ({parts})")


def main() -> None:
    """Parse, train, draw."""
    from conr_ray.config import parse_overrides

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="fashion_mnist")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    fields = {"evaluation.snapshot_every": 10, **parse_overrides(args.settings)}
    with tempfile.TemporaryDirectory() as folder:
        train_with_wandb(Path(folder), args.preset, fields)
        draw_all(Path(folder))


if __name__ == "__main__":
    main()
