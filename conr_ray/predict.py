"""`python -m conr_ray.predict`: clusters of new images by a trained run."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from conr_ray.command_line import (
    add_cluster_options,
    add_clusters_option,
    add_edits_option,
    add_images_options,
    cluster_options,
    folder_option,
    make_console,
    run_command,
    sent_to_head,
)
from conr_ray.command_parser import Parser
from conr_ray.engine.stopping import signals_handled
from conr_ray.errors import RunFailed, UserError, one_line

if TYPE_CHECKING:
    from conr_ray.config import DataConfig
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.prediction.placing import Placing
    from conr_ray.prediction.predict import Outcome, Placed
    from conr_ray.prediction.samples import NewSamples
    from conr_ray.scaling.resources import WorkerResources


def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, predict, print what was done."""
    args = _parser().parse_args(arguments)
    check_options(args)
    if sent_to_head("conr_ray.predict", arguments, args):
        return
    from conr_ray.edits.folder import digest_of_edits
    from conr_ray.engine.trained_run import TrainedRun
    from conr_ray.prediction.placing import Placing, digest_of
    from conr_ray.prediction.predict import counted, predict
    from conr_ray.prediction.progress import PredictionProgress
    from conr_ray.storage.patience import patient

    with folder_option("--run" if args.run else "--best-of"):
        directory = _run(args)
        load = patient(TrainedRun.load, directory.is_local)
        run = load(directory, _device(args), args.clusters, edits=args.edits)
        placing = Placing(run, args.embeddings)
        state = patient(digest_of, directory.is_local)(directory, run)
    with told_as_options(args):
        samples = _samples(args, placing)
        total = counted(samples, is_local="://" not in (args.images or ""))
    about = {
        "format": 1,
        "run": directory.uri,
        "epochs": run.state.epoch,
        "state": state,
        "num_clusters": run.num_clusters,
        "reclustered": args.clusters is not None,
        "confident_ratio": run.confident_ratio,
        "what": samples.what,
        "images": samples.place,
        "embeddings": args.embeddings,
    }
    if run.edits is not None and (digest := digest_of_edits(run.edits.log)):
        names = {str(cluster): name for cluster, name in run.edits.names.items()}
        about |= {"edits": digest, "names": names}
    out, console = absolute(args.out), make_console()
    console.print(samples.line(total), soft_wrap=True)
    resources = None if args.local else connected(args)
    progress = PredictionProgress(total, console)
    try:
        with folder_option("--out"), signals_handled(), progress, told_as_options(args):
            placed = _placed(samples, placing, directory.uri, args, resources)
            outcome = predict(samples, about, out, placed, progress, again=args.all)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f": what is written stays in {out}, the same command goes on"
        ) from None
    if resources is not None:
        from conr_ray.scaling.cluster import leave

        leave()
    console.print(f"{_told(outcome, placing.form.kind)}: {out}", soft_wrap=True)
    if outcome.num_errors:
        raise RunFailed(
            f"{outcome.num_errors:,} of {total:,} {placing.form.kind} could not be read (the "
            f"first: {outcome.first_reason}): see {out}/errors.parquet; the same command tries "
            "them again"
        )


def check_options(args: argparse.Namespace, does: str = "predicts") -> None:
    """Raise UserError if options of a command that `does` something exclude each other."""
    of_ray = ("address", "autoscaling", "workers", "cpus_per_worker", "gpus_per_worker")
    if args.local and (given := [name for name in of_ray if getattr(args, name)]):
        option = given[0].replace("_", "-")
        raise UserError(f"--local {does} without Ray: leave out --{option}")
    if args.settings and not args.dataset:
        raise UserError("--set changes the data of --dataset: leave it out")
    if args.column and args.dataset:
        raise UserError("--column names a column of --images: leave it out")


def _run(args: argparse.Namespace) -> RunDirectory:
    """The run's folder: that of --run, or of the best trial of --best-of."""
    from conr_ray.engine.run_directory import RunDirectory

    if args.run:
        return RunDirectory(absolute(args.run))
    from conr_ray.searching.best_run import best_run

    return RunDirectory(best_run(absolute(args.best_of), args.study)[0])


def _device(args: argparse.Namespace) -> str:
    """Where this process computes; workers of Ray have devices of their own."""
    from conr_ray.scaling.resources import local_gpus

    return "cuda" if args.local and local_gpus() else "cpu"


def _samples(args: argparse.Namespace, placing: Placing) -> NewSamples:
    from conr_ray.prediction.sources import DataSetRows, new_samples

    if args.dataset:
        return DataSetRows(placing.form, args.dataset, data_of_preset(args))
    data = placing.run.config.data
    usual = data.vector_column if placing.form.kind == "vectors" else data.image_column
    return new_samples(placing.form, args.images, args.column or usual)


def data_of_preset(args: argparse.Namespace) -> DataConfig:
    """The data that --dataset and --set name."""
    from conr_ray.command_line import absolute_paths
    from conr_ray.config import load_preset, override, parse_overrides

    config = load_preset(args.dataset, parse_overrides(args.settings))
    return override(config, absolute_paths(config)).data


def connected(args: argparse.Namespace) -> WorkerResources:
    """What each actor gets on the cluster, which is joined or started."""
    from conr_ray.scaling.cluster import connect

    return connect(cluster_options(args), args.workers or 1)


def _placed(
    samples: NewSamples,
    placing: Placing,
    run_uri: str,
    args: argparse.Namespace,
    resources: WorkerResources | None,
) -> Placed:
    if resources is None:
        import torch

        from conr_ray.cores import usable_cores
        from conr_ray.prediction.here import placed_here

        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
        return partial(placed_here, samples, placing=placing)
    from conr_ray.prediction.on_ray import placed_on_ray

    return partial(
        placed_on_ray,
        samples,
        run_uri=run_uri,
        num_clusters=args.clusters,
        edits=args.edits,
        resources=resources,
        embeddings=placing.embeddings,
    )


@contextmanager
def told_as_options(args: argparse.Namespace) -> Iterator[None]:
    """Name the options of this command in errors that name the fields of a config."""
    fields = {
        f"data.path={args.images}:": f"--images {args.images}:",
        "data.image_column=": "--column ",
        "data.vector_column=": "--column ",
    }
    try:
        yield
    except UserError as error:
        for field, option in fields.items():
            if str(error).startswith(field):
                raise UserError(option + str(error).removeprefix(field)) from None
        raise
    except OSError as error:
        raise UserError(f"--images {args.images}: cannot be read ({one_line(error)})") from None


def _told(outcome: Outcome, kind: str) -> str:
    """What is in the folder, in a line."""
    parts = [f"{outcome.num_samples:,} {kind} in {outcome.num_clusters} clusters"]
    if outcome.confident is not None:
        parts.append(f"{outcome.confident:.1%} confident")
    if outcome.num_new != outcome.num_samples:
        parts.append(f"{outcome.num_new:,} predicted now")
    return ", ".join([*parts, f"{outcome.num_errors:,} unreadable"])


def absolute(text: str) -> str:
    """A path that holds in other folders too; a URI as it is."""
    return text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m conr_ray.predict",
        description="Clusters of new images, or vectors, by a trained run.",
    )
    run = parser.add_mutually_exclusive_group(required=True)
    run.add_argument("--run", metavar="DIR", help="folder of a run, or s3://bucket/folder")
    run.add_argument("--best-of", metavar="DIR", help="folder of a search: its best trial")
    add_clusters_option(parser)
    add_edits_option(parser, "predict")
    parser.add_argument("--study", metavar="URL", help="database of the study of --best-of")
    add_images_options(parser)
    parser.add_argument(
        "--column", help="column of Parquet with images or vectors (default: as in the run)"
    )
    parser.add_argument(
        "--out", metavar="OUT", required=True, help="folder for the result, or s3://bucket/folder"
    )
    parser.add_argument(
        "--embeddings", action="store_true", help="write the embedding of each sample too"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="predict all samples again, those too that are in OUT (default: new and changed ones)",
    )
    parser.add_argument("--workers", type=int, help="actors on Ray (default: 1)")
    parser.add_argument("--local", action="store_true", help="predict in this process, without Ray")
    add_cluster_options(parser, watched=False)
    return parser


if __name__ == "__main__":
    run_command(main)
