"""What a search will cost, before anything runs: `python -m conr_ray.tune --plan`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from conr_ray.data.store import DataSet
from conr_ray.engine.training_state import TrainingState
from conr_ray.engine.trunk import TrunkStore, shapes_trunk, trunk_name
from conr_ray.scaling.cluster import WorkerResources
from conr_ray.search.space import SearchSpace


@dataclass(frozen=True)
class Plan:
    """Expected epochs of a search, by the mean over its space, without early stopping.

    Attributes:
        num_trials: trials of the search.
        num_trunks: trunks that the trials share, 0 if none.
        num_checkpoints: checkpoints per trunk.
        checkpoint_mib: size of a checkpoint.
        unshared_epochs: epochs if every trial trains from epoch 0.
        trunk_epochs: epochs of all trunks.
        fork_epochs: epochs of the trials after their trunks.
    """

    num_trials: int
    num_trunks: int
    num_checkpoints: int
    checkpoint_mib: float
    unshared_epochs: int
    trunk_epochs: int
    fork_epochs: int

    @classmethod
    def of(cls, space: SearchSpace, images: DataSet, num_trials: int, *, shared: bool) -> Plan:
        """The plan for `num_trials` trials of `space`, with or without shared trunks."""
        epochs = space.config().schedule.epochs
        starts = space.group_starts
        num_trunks = min(space.num_trunks or 0, num_trials) if shared and starts else 0
        dimension = space.search.get("schedule.group_start")
        drawn = dimension.values(space.search) if dimension else None
        # A run without a group stage forks at the end of the trunk.
        latest = max(starts, default=0)
        forks = [latest if value == "never" else int(value) for value in drawn or [latest]]
        mean_fork = sum(forks) / len(forks) if num_trunks else 0.0
        return cls(
            num_trials=num_trials,
            num_trunks=num_trunks,
            num_checkpoints=len(starts),
            checkpoint_mib=_checkpoint_mib(space, images),
            unshared_epochs=num_trials * epochs,
            trunk_epochs=num_trunks * latest,
            fork_epochs=round(num_trials * (epochs - mean_fork)),
        )

    @property
    def epochs(self) -> int:
        """Epochs to train."""
        return self.trunk_epochs + self.fork_epochs

    @property
    def saving(self) -> float:
        """Ratio of the epochs without trunks to those with."""
        return self.unshared_epochs / self.epochs


def print_plan(
    space: SearchSpace,
    images: DataSet,
    num_trials: int,
    store: TrunkStore | None,
    resources: WorkerResources,
    max_concurrent: int | None,
    console: Console,
) -> None:
    """Print the space, trunks, epochs and resources. Needs a connected Ray cluster."""
    plan = Plan.of(space, images, num_trials, shared=store is not None)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    has_first = space.first is not None or space.sampler != "grid"
    for name in ("field", "values", *(["first"] if has_first else []), "stage"):
        table.add_column(name)
    first = space.first_points()[0]
    for name, dimension in space.search.items():
        stage = "instance" if shapes_trunk(name) else "group"
        shown = [str(first[name])] if has_first else []
        table.add_row(name, str(dimension), *shown, stage)
    scheduler = space.scheduler
    if space.exchanges:
        assert scheduler is not None
        exchanges = ", ".join(map(str, space.exchanges))
        stopping = f"a population ({scheduler.kind}) with exchanges after epochs {exchanges}"
    elif scheduler:
        stopping = f"{scheduler.kind} from epoch {space.grace_epochs} on"
    else:
        stopping = "no early stopping"
    sizes = {"max": "maximise", "min": "minimise"}
    aims = (f"{sizes[d]} {m}" for m, d in zip(space.metrics, space.directions, strict=True))
    need = ", ".join(f"{amount:g} {kind}" for kind, amount in resources.bundle().items())
    fits = resources.fits()
    concurrent = min(fits, num_trials, max_concurrent or fits)
    drawn = "" if space.exchanges else f" by {space.sampler}"
    lines = [
        f"search     {num_trials} trials{drawn}, {stopping}; {', '.join(aims)}",
        f"{images.what:<10} {images.num_rows:,}, " + _labels(images),
        "trunks     " + _trunks(space, plan, store, images),
        f"epochs     about {plan.epochs:,} ({plan.trunk_epochs:,} of trunks, "
        f"{plan.fork_epochs:,} of trials) if none is stopped early; without trunks "
        f"{plan.unshared_epochs:,}, {plan.saving:.1f} times as many",
        f"resources  {resources.workers} x ({need}) per trial; {concurrent} trials at once, the "
        f"cluster has room for {fits}",
    ]
    console.print(Group(table, Text(), *(Text(line) for line in lines)), soft_wrap=True)


def _labels(images: DataSet) -> str:
    return f"{images.num_classes} classes" if images.num_classes else "without labels"


def _trunks(space: SearchSpace, plan: Plan, store: TrunkStore | None, images: DataSet) -> str:
    if store is None:
        return f"none: {space.why_no_trunks}" if space.why_no_trunks else "none"
    size_mib = plan.num_trunks * plan.num_checkpoints * plan.checkpoint_mib
    text = (
        f"{plan.num_trunks}, each with {plan.num_checkpoints} checkpoints of "
        f"{plan.checkpoint_mib:.1f} MiB, {size_mib:,.0f} MiB in {store.uri}"
    )
    name = trunk_name(space.config(), images.fingerprint)
    there = store.directory(name).checkpoint_epochs()
    return text + (f"; the first one exists up to epoch {there[-1]}" if there else "")


def _checkpoint_mib(space: SearchSpace, images: DataSet) -> float:
    """Size of a trunk's checkpoint: the networks, the optimiser's momentum and clusters."""
    config = space.config()
    framework = TrainingState.create(config, images.row_shape, torch.device("cpu")).framework
    trained = [p for group in framework.param_groups() for p in group.parameters]
    kept = [*framework.state_dict().values(), *trained]
    num_bytes: int = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    return (num_bytes + 8 * images.num_rows) / 2**20
