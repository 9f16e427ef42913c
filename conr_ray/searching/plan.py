"""What a search will cost, before anything runs: `python -m conr_ray.tune --plan`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from conr_ray.config import ModelConfig, RunConfig
from conr_ray.engine.trunk_fields import shapes_trunk
from conr_ray.engine.trunk_store import TrunkStore, trunk_name
from conr_ray.scaling.resources import WorkerResources
from conr_ray.searching.known_data import KnownData
from conr_ray.searching.space import SearchSpace

# Weights after the first convolution: constants, so that no network is built to count them.
_RESNET_WEIGHTS = {"resnet18": 11_167_104, "resnet34": 21_275_264}


@dataclass(frozen=True)
class Plan:
    """Expected epochs of a search, averaged over its space, without early stopping.

    Attributes:
        num_trials: trials of the search.
        num_trunks: trunks that the trials share; 0 if they share none.
        num_checkpoints: checkpoints that each trunk keeps.
        checkpoint_mib: approximate size of a checkpoint; None if the backbone's is unknown.
        unshared_epochs: epochs if no trial shares a trunk.
        trunk_epochs: epochs of all trunks.
        fork_epochs: epochs of the trials after their trunks.
    """

    num_trials: int
    num_trunks: int
    num_checkpoints: int
    checkpoint_mib: float | None
    unshared_epochs: int
    trunk_epochs: int
    fork_epochs: int

    @classmethod
    def of(cls, space: SearchSpace, images: KnownData, num_trials: int, *, shared: bool) -> Plan:
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
            checkpoint_mib=_checkpoint_mib(space.config(), images),
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
        """Ratio of the epochs without shared trunks to those with them."""
        return self.unshared_epochs / self.epochs


def print_plan(
    space: SearchSpace,
    images: KnownData,
    num_trials: int,
    store: TrunkStore | None,
    resources: WorkerResources,
    room: int,
    max_concurrent: int | None,
    console: Console,
) -> None:
    """Print the space, trunks, epochs and resources.

    `room` is the number of trials that the resources allow at once.
    """
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
    concurrent = min(room, num_trials, max_concurrent or room)
    drawn = "" if space.exchanges else f" by {space.sampler}"
    lines = [
        f"search     {num_trials} trials{drawn}, {stopping}; {', '.join(aims)}",
        f"{images.what:<10} {images.num_rows:,}, {_labels(images)}, {images.source}",
        "trunks     " + _trunks(space, plan, store, images),
        f"epochs     about {plan.epochs:,} ({plan.trunk_epochs:,} of trunks, "
        f"{plan.fork_epochs:,} of trials) if none is stopped early; without trunks "
        f"{plan.unshared_epochs:,}, {plan.saving:.1f} times as many",
        f"resources  {resources.workers} x ({need}) per trial; {concurrent} trials at once, "
        f"room for {room}",
    ]
    console.print(Group(table, Text(), *(Text(line) for line in lines)), soft_wrap=True)


def _labels(images: KnownData) -> str:
    return f"{images.num_classes} classes" if images.num_classes else "without labels"


def _trunks(space: SearchSpace, plan: Plan, store: TrunkStore | None, images: KnownData) -> str:
    if store is None:
        return f"none: {space.why_no_trunks}" if space.why_no_trunks else "none"
    text = f"{plan.num_trunks}, each with {plan.num_checkpoints} checkpoints"
    if plan.checkpoint_mib is not None:
        size_mib = plan.num_trunks * plan.num_checkpoints * plan.checkpoint_mib
        text += f" of about {plan.checkpoint_mib:.1f} MiB, {size_mib:,.0f} MiB"
    text += f" in {store.uri}"
    # The names of trunks need torch.
    if images.fingerprint is None or store.is_empty():
        return text
    from conr_ray.engine.initial_weights import weights_digest

    config = space.config()
    name = trunk_name(config, images.fingerprint, weights_digest(config.model, config.views.size))
    there = store.directory(name).checkpoint_epochs()
    return text + (f"; the first one exists up to epoch {there[-1]}" if there else "")


def _checkpoint_mib(config: RunConfig, images: KnownData) -> float | None:
    """Size of a trunk's checkpoint: two networks, the optimiser's momentum and clusters.

    Computed without building the networks: importing torch takes longer than printing a plan. The
    running statistics of batch normalisation, about a thousandth, are left out.
    """
    model = config.model
    backbone = _backbone_weights(model, images.row_shape[0])
    if backbone is None:
        return None
    features, weights = backbone
    hidden, width = model.head_hidden_dim, model.embedding_dim

    def head(inputs: int) -> int:
        return inputs * hidden + 3 * hidden + hidden * width + width

    encoder, predictor = weights + head(features), head(width)
    num_bytes = 4 * (3 * encoder + 2 * predictor) + 8 * images.num_rows
    return num_bytes / 2**20


def _backbone_weights(model: ModelConfig, channels: int) -> tuple[int, int] | None:
    """Width of the backbone's features, and its number of weights; None if unknown."""
    if model.backbone == "convnet":
        inputs = (channels, *model.widths)
        layers = zip(inputs, model.widths, strict=False)
        return model.widths[-1], sum(9 * i * o + 2 * o for i, o in layers)
    if model.backbone not in _RESNET_WEIGHTS:
        return None
    kernel = 3 if model.stem == "cifar" else 7
    return 512, channels * 64 * kernel**2 + _RESNET_WEIGHTS[model.backbone]
