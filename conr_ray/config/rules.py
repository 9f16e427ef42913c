"""Cross-field rules of a run's config."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from conr_ray.config.networks import ModelConfig
from conr_ray.config.samples import OWN_SIDE, OWN_SOURCES, ViewsConfig
from conr_ray.config.sections import RunSections
from conr_ray.fields import Section, short, shown
from conr_ray.method.backbone_names import NONE, OF_VECTORS, is_timm
from conr_ray.method.frameworks import OF_ALL_DATA, OF_BATCHES, framework_names


def broken_rules(config: RunSections) -> Iterator[str]:
    """Rules that `config` breaks, each as field, value and remedy."""
    yield from _unknown_framework(config)
    yield from _unused_fields(config)
    yield from _data(config)
    yield from _start(config)
    yield from _embedded(config)
    yield from _neighborhood(config)
    yield from _schedule(config)
    norm_batch, batch_size = config.model.norm_batch, config.optim.batch_size
    if norm_batch is not None and batch_size % norm_batch:
        yield (
            f"optim.batch_size={batch_size} is not a multiple of model.norm_batch={norm_batch}: "
            "change one of them"
        )
    starts = [first for first, _ in config.views.sizes]
    if starts != sorted(set(starts)):
        yield f"views.sizes: epochs {shown(starts)} do not rise: put them in order, each once"
    for name in ("crop_scale", "crop_scale_group_stage", "crop_ratio", "blur_sigma"):
        low, high = getattr(config.views, name)
        if low > high:
            yield f"views.{name}=[{low}, {high}] is not an interval: put the smaller value first"


def _unknown_framework(config: RunSections) -> Iterator[str]:
    name, known = config.model.framework, framework_names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
        yield f"model.framework={short(name)}: no such framework; {hint}"


def _unused_fields(config: RunSections) -> Iterator[str]:
    """Fields that are set although the chosen source or backbone does not read them."""
    for name, section in config:
        if not isinstance(section, Section):
            continue
        for leaf, value in section:
            mark = section.mark_of(leaf)
            # An unset size of views has become this one.
            unset = OWN_SIDE if (name, leaf) == ("views", "size") else section.default_of(leaf)
            if mark.used_by is None or value in (unset, section.default_of(leaf)):
                continue
            chooser, users = mark.used_by
            of, _, choice = chooser.partition(".")
            chosen = getattr(getattr(config, of), choice)
            # Embedded images are trained on as vectors, whatever their source.
            if name == "views" and config.embeds_once:
                continue
            if not mark.is_used(chosen):
                told = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                yield (
                    f"{name}.{leaf}={short(told)}: {chooser}={chosen} does not use it, only "
                    f"{', '.join(users)}: leave it out"
                )


def _embedded(config: RunSections) -> Iterator[str]:
    """Fields of views that have no effect on images which are embedded before training."""
    num_views = config.data.embedded_views
    if not config.embeds_once:
        if num_views:
            yield (
                f"data.embedded_views={num_views}: images are embedded before training only with "
                "model.backbone=timm:NAME, model.train=head and without model.init: leave it out"
            )
        return
    unused = ViewsConfig.unused_when_embedded(num_views)
    for leaf, value in config.views:
        if leaf in unused and value != ViewsConfig.default_of(leaf):
            what = "before training, all views alike" if num_views else "once, as they are"
            more = "" if num_views else ", or set data.embedded_views"
            yield f"views.{leaf}: model.train=head embeds images {what}: leave it out{more}"


def _data(config: RunSections) -> Iterator[str]:
    data, backbone = config.data, config.model.backbone
    if data.source == "torchvision" and data.name is None:
        yield "data.name is not set: data.source=torchvision needs a name such as cifar10"
    if data.source in OWN_SOURCES[1:] and data.path is None:
        of_files = ("archive", "parquet", "list", "numpy", "vectors")
        what = "file" if data.source in of_files else "folder"
        yield f"data.path is not set: data.source={data.source} needs the path of its {what}"
    if (data.source == "vectors") != (backbone in OF_VECTORS):
        takes, other = ("vectors", "images") if backbone in OF_VECTORS else ("images", "vectors")
        remedy = "resnet18, convnet or timm:NAME" if takes == "vectors" else "identity or mlp"
        yield (
            f"model.backbone={backbone} takes {takes}, but data.source={data.source} has {other}: "
            f"set model.backbone to {remedy}"
        )


def _start(config: RunSections) -> Iterator[str]:
    model, of_timm = config.model, is_timm(config.model.backbone)
    if model.init is not None and model.weights != ModelConfig.default_of("weights"):
        yield (
            f"model.weights={short(model.weights)}: model.init={short(model.init)} replaces the "
            "backbone's weights: leave one of them out"
        )
    begins_trained = model.init is not None or (of_timm and model.weights != NONE)
    if model.train != "all" and not begins_trained:
        remedy = "model.weights or model.init" if of_timm else "model.init"
        yield (
            f"model.train={model.train}: the rest of the backbone would stay as it was drawn: set "
            f"{remedy}, or model.train=all"
        )


def _neighborhood(config: RunSections) -> Iterator[str]:
    near = config.neighborhood
    if near.k2 > near.k1:
        yield f"neighborhood.k2={near.k2} exceeds neighborhood.k1={near.k1}: lower k2 or raise k1"
    if config.group_start_epoch is None:
        return
    for pool, other, refused in (("batch", "data", OF_ALL_DATA), ("data", "batch", OF_BATCHES)):
        if near.pool == pool and config.model.framework in refused:
            yield (
                f"neighborhood.pool={pool}: model.framework={config.model.framework} does not work "
                f"with it: set neighborhood.pool={other}, or schedule.group_start=never"
            )
    if near.pool == "data":
        if config.bank.size:
            yield (
                f"bank.size={config.bank.size}: neighborhood.pool=data finds neighbours in all "
                "data, without a bank: leave it out"
            )
        return
    for field, count in (("k1", near.k1), ("k", near.k)):
        if count > config.pool_size:
            yield (
                f"neighborhood.{field}={count} exceeds the neighbour pool of {config.pool_size} "
                f"rows: lower it, or raise optim.batch_size or bank.size"
            )


def _schedule(config: RunSections) -> Iterator[str]:
    schedule, start = config.schedule, config.group_start_epoch
    if start is not None and start >= schedule.epochs:
        yield (
            f"schedule.group_start={start} is not before the end at schedule.epochs="
            f"{schedule.epochs}: lower it, or set it to never for plain {config.model.framework}"
        )
    if schedule.warmup_epochs > schedule.epochs:
        yield (
            f"schedule.warmup_epochs={schedule.warmup_epochs} exceeds schedule.epochs="
            f"{schedule.epochs}: set schedule.warmup_epochs to {schedule.epochs} or less, or raise "
            "schedule.epochs"
        )
    remaining = schedule.epochs - schedule.warmup_epochs
    if schedule.cosine_epochs is not None and schedule.cosine_epochs < remaining:
        yield (
            f"schedule.cosine_epochs={schedule.cosine_epochs} is less than the {remaining} epochs "
            "after the warm-up: raise it or leave it unset"
        )
