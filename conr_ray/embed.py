"""`python -m conr_ray.embed`: vectors of images by a pre-trained backbone, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from conr_ray.command_line import (
    add_cluster_options,
    add_images_options,
    folder_option,
    make_console,
    run_command,
    sent_to_head,
)
from conr_ray.command_parser import Parser
from conr_ray.engine.stopping import signals_handled
from conr_ray.errors import RunFailed, UserError

if TYPE_CHECKING:
    from conr_ray.prediction.samples import NewSamples
    from conr_ray.prediction.table import BatchEmbedding, Labels, Worked
    from conr_ray.scaling.resources import WorkerResources


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, embed, print what was written."""
    from conr_ray.predict import absolute, check_options, connected, told_as_options

    args = _parser().parse_args(arguments)
    check_options(args, "embeds")
    if sent_to_head("conr_ray.embed", arguments, args):
        return
    from conr_ray.prediction.predict import counted
    from conr_ray.prediction.progress import PredictionProgress
    from conr_ray.prediction.sources import FolderImages
    from conr_ray.prediction.table import Table

    out, console = absolute(args.out), make_console()
    work = _work(args)
    if note := work.backbone.pretrained.note:
        console.print(f"--weights {args.weights}: {note}", soft_wrap=True)
    facts = work.backbone.facts
    with told_as_options(args):
        samples, labels = _samples(args, work)
        table = Table(out, samples, {"format": 1, **facts}, labels)
        table.check_free()
        total = counted(samples, is_local="://" not in (args.images or ""))
        if isinstance(samples, FolderImages):
            table.labels = replace(labels, layout=samples.layout)
    console.print(samples.line(total, table.labels.told), soft_wrap=True)
    resources = None if args.local else connected(args)
    progress = PredictionProgress(total, console)
    try:
        with folder_option("--out"), signals_handled(), progress, told_as_options(args):
            table.write(_worked(samples, work, resources), progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f": what is done stays in {out}.parts, the same command goes on"
        ) from None
    if resources is not None:
        from conr_ray.scaling.cluster import leave

        leave()
    licence = facts["licence"] or "unknown"
    console.print(
        f"{table.num_rows:,} images by {facts['name']} ({facts['source']}, licence {licence}), "
        f"{facts['out_features']} numbers each: {out}",
        f"to cluster them: data.source=vectors, data.path={out}, model.backbone=identity",
        sep="\n",
        soft_wrap=True,
    )
    if table.num_errors:
        raise RunFailed(
            f"{table.num_errors:,} of {total:,} images could not be read (the first: "
            f"{table.first_reason}): they are not in the table"
        )


def _work(args: argparse.Namespace) -> BatchEmbedding:
    from conr_ray.frozen import FrozenBackbone
    from conr_ray.prediction.table import BatchEmbedding, form_of, on_device
    from conr_ray.pretrained import load_pretrained
    from conr_ray.scaling.resources import local_gpus

    if args.size is not None and args.size < 1:
        raise UserError(f"--size {args.size}: give 1 or more pixels")
    backbone = FrozenBackbone(load_pretrained(args.backbone, args.weights, args.size))
    if args.local and local_gpus():
        backbone = on_device(backbone, "cuda")
    return BatchEmbedding(backbone, form_of(backbone))


def _samples(args: argparse.Namespace, work: BatchEmbedding) -> tuple[NewSamples, Labels]:
    from conr_ray.predict import data_of_preset
    from conr_ray.prediction.by_row import ByRow
    from conr_ray.prediction.sources import DataSetRows, new_samples
    from conr_ray.prediction.table import Labels

    column = args.column or "image"
    label_column = None if args.label_column == "null" else args.label_column
    if args.dataset:
        data = data_of_preset(args)
        return DataSetRows(work.form, args.dataset, data), Labels(None, column, "label", data)
    samples = new_samples(work.form, args.images, column)
    labels = Labels(args.images, column, label_column)
    if isinstance(samples, ByRow):
        config = samples.config.model_copy(update={"label_column": label_column})
        labels = replace(labels, by_row=config)
    return samples, labels


def _worked(samples: NewSamples, work: BatchEmbedding, resources: WorkerResources | None) -> Worked:
    if resources is None:
        import torch

        from conr_ray.cores import usable_cores
        from conr_ray.prediction.here import worked_here

        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        return lambda pieces: worked_here(samples.read, pieces, work)
    from conr_ray.prediction.ahead import BatchesOf, shared_backbone
    from conr_ray.prediction.on_ray import worked_on_ray

    make = BatchesOf(shared_backbone(work.backbone), work.form)
    return lambda pieces: worked_on_ray(pieces, samples.read, make, resources)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.embed",
        description="A Parquet table of the vectors that a pre-trained backbone makes of images; "
        "those of a trained run are written by python -m conr_ray.predict --embeddings.",
    )
    add_images_options(parser)
    parser.add_argument("--backbone", metavar="timm:NAME", required=True, help="a model of timm")
    parser.add_argument(
        "--weights",
        default="hub",
        help="hub (timm's own), package:NAME, or a path or URI of a file (default: hub)",
    )
    parser.add_argument(
        "--size", type=int, metavar="PIXELS", help="side of its images (default: the model's own)"
    )
    parser.add_argument("--column", help="column of Parquet with images (default: image)")
    parser.add_argument(
        "--label-column",
        default="label",
        help="column of Parquet with labels; null for none, also of folders (default: label)",
    )
    parser.add_argument(
        "--out", metavar="OUT", required=True, help="Parquet file to write, or s3://..."
    )
    parser.add_argument("--workers", type=int, help="actors on Ray (default: 1)")
    parser.add_argument("--local", action="store_true", help="embed in this process, without Ray")
    add_cluster_options(parser, watched=False)
    return parser


if __name__ == "__main__":
    run_command(main)
