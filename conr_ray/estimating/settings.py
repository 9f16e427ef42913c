"""The config of a clusterer: its preset, fitted to the samples, and what its user sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from conr_ray.config import RunConfig, check_field, get_field, load_preset
from conr_ray.data.subset import ALL_SAMPLES
from conr_ray.errors import UserError
from conr_ray.method.backbone_names import is_timm

# Side of views and of stored images where the preset's is for the 8 pixels of digits.
_SIDE = 32
_DIGITS = "digits"
# Needs no random views of vectors.
_HEADS = "heads"
# Below, a batch has no neighbours to speak of.
LEAST_ROWS = 10
_LEAST_BATCH = 16
# Of a run whose neighbours come from all data; with fewer, its clusters are not found yet.
_LEAST_STEPS = 400


def field_of(keyword: str) -> str:
    """The dotted field that a keyword such as `schedule__epochs` sets.

    Raises:
        UserError: there is no such field.
    """
    field = keyword.replace("__", ".")
    check_field(field)
    return field


def config_for(
    preset: str,
    num_clusters: int | str | None,
    fields: Mapping[str, Any],
    source: Mapping[str, Any],
    shape: tuple[int, ...] | None,
) -> RunConfig:
    """The config of a run on these samples; `for_few` completes it.

    Args:
        preset: name of the preset to begin with.
        num_clusters: number of clusters, `auto` or a range.
        fields: what the user sets, by dotted name.
        source: fields of `data` that lead to the samples.
        shape: (d,) of vectors, (c, h, w) of images, None of those that are in files.

    Raises:
        UserError: the number of clusters or a field is wrong.
    """
    if num_clusters is None:
        raise UserError("num_clusters=None: give the number of clusters, 2 or more")
    for name in ALL_SAMPLES:
        if name in fields:
            raise UserError(f"{name}: a clusterer is of all samples: give it fewer")
    own = {"clustering.num_clusters": num_clusters, "tracking.wandb": "off"}
    rules = for_samples(preset, source, shape, backbone_for(preset, fields))
    return load_preset(preset, {**rules, **own, **fields})


def for_samples(
    preset: str,
    source: Mapping[str, Any],
    shape: tuple[int, ...] | None,
    backbone: str | None = None,
) -> dict[str, Any]:
    """The fields, dotted, in which a run on these samples differs from its preset.

    The arguments are those of `config_for`; `backbone` is that of the run, if it is not the
    preset's. A model of timm has views of its own size, and files are stored in this size.

    Raises:
        UserError: there is no such model of timm.
    """
    rules: dict[str, Any] = {
        "data.name": None,
        "data.download": False,
        "data.splits": None,
        "data.classes": None,
    }
    rules |= source
    base = load_preset(preset)
    if backbone is None and preset != _DIGITS:
        backbone = base.model.backbone
    if source["data.source"] == "vectors" and base.model.framework == _HEADS:
        rules |= {"model.backbone": "identity"}
    elif source["data.source"] == "vectors":
        rules |= {"model.backbone": "mlp", "model.widths": (256, 256)}
        rules |= {"views.noise": 0.3, "views.dropout": 0.2}
    elif backbone is not None and is_timm(backbone):
        from conr_ray.pretrained import preparation_of

        if shape is None:
            stored = base.data.stored_size or preparation_of(backbone).size
            rules |= {"data.stored_size": stored}
    elif shape is None:
        side = _SIDE if preset == _DIGITS else base.views.size
        rules |= {"views.size": side, "data.stored_size": base.data.stored_size or side}
    elif preset == _DIGITS:
        rules |= {"views.size": min(*shape[1:], _SIDE)}
    return rules


def for_few(config: RunConfig, num_rows: int, fields: Collection[str]) -> dict[str, float]:
    """The fields of `config` that few samples need: a batch, and neighbourhoods, that they fill.

    A batch is at most half of them, or all if they are fewer than 16; `fields` stay as they are.
    Where neighbours come from all data, a sample's context is at most a quarter of them, and its
    neighbours in the loss a tenth; epochs are as many as make `_LEAST_STEPS` steps, each as long as
    one of the whole batch.

    Raises:
        UserError: there are fewer than `LEAST_ROWS` samples.
    """
    if num_rows < LEAST_ROWS:
        raise UserError(f"{num_rows} samples: give {LEAST_ROWS} or more")
    batch, near = config.optim.batch_size, config.neighborhood
    if "optim.batch_size" not in fields:
        batch = min(batch, max(num_rows // 2, min(num_rows, _LEAST_BATCH)))
    most_k1 = most_k = batch + config.bank.size
    more: dict[str, float] = {}
    if near.pool == "data" and config.group_start_epoch is not None:
        most_k1, most_k = max(2, num_rows // 4), max(2, num_rows // 10)
        more["optim.lr"] = config.optim.lr * config.optim.batch_size / batch
        if "schedule.epochs" not in fields:
            more |= _longer(config, max(1, num_rows // batch))
    k1 = near.k1 if "neighborhood.k1" in fields else min(near.k1, most_k1)
    fitting = {
        "optim.batch_size": batch,
        "neighborhood.k1": k1,
        "neighborhood.k2": min(near.k2, k1),
        "neighborhood.k": min(near.k, most_k),
        **more,
    }
    return {name: value for name, value in fitting.items() if name not in fields}


def _longer(config: RunConfig, steps_per_epoch: int) -> dict[str, int]:
    """As many epochs as make `_LEAST_STEPS` steps, if need be; what is counted in them along."""
    schedule = config.schedule
    epochs = max(schedule.epochs, -(-_LEAST_STEPS // steps_per_epoch))
    lengths = {
        "schedule.epochs": schedule.epochs,
        "schedule.warmup_epochs": schedule.warmup_epochs,
        "evaluation.every": config.evaluation.every,
        "checkpoint.every": config.checkpoint.every,
    }
    return {name: round(count * epochs / schedule.epochs) for name, count in lengths.items()}


def fitted_to_few(config: RunConfig, num_rows: int, fields: Collection[str]) -> dict[str, float]:
    """What `for_few` changes in a preset for `train` and `tune`, which print it; `fields` stay.

    Only where neighbours come from all data: elsewhere the batch is the pool of neighbours, and a
    smaller one is another method.

    Raises:
        UserError: there are fewer than `LEAST_ROWS` samples.
    """
    if config.neighborhood.pool != "data" or config.group_start_epoch is None:
        return {}
    fitting = for_few(config, num_rows, fields)
    return {name: value for name, value in fitting.items() if get_field(config, name) != value}


def told_of_few(changed: Mapping[str, float], num_rows: int) -> str:
    """A line that tells what has changed in a preset."""
    told = ", ".join(f"{name}={value:.4g}" for name, value in changed.items())
    return f"fitted to {num_rows:,} samples: {told}"


def backbone_for(preset: str, fields: Mapping[str, Any]) -> str | None:
    """`model.backbone` of a run of `preset` with these fields; None if that is not known yet.

    Raises:
        UserError: there is no such preset.
    """
    chosen = fields.get("model.backbone", load_preset(preset).model.backbone)
    return chosen if isinstance(chosen, str) else None


def side_for(backbone: str | None, size: int | None) -> int:
    """Side of the squares that pictures of several sizes become for a run.

    Args:
        backbone: its `model.backbone`.
        size: its `views.size`, which counts for a model of timm.

    Raises:
        UserError: there is no such model of timm.
    """
    if backbone is None or not is_timm(backbone):
        return _SIDE
    from conr_ray.pretrained import preparation_of

    return preparation_of(backbone, size).size
