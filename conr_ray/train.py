"""`python -m conr_ray.train`: train CoNR in this process or on Ray workers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from conr_ray.command_line import (
    absolute_paths,
    add_cluster_options,
    cluster_options,
    directory_uri,
    folder_option,
    make_console,
    make_parser,
    resumable,
    run_command,
    sent_to_head,
    subject_of,
    watch_limits,
    where_result_is,
    with_remedy,
)
from conr_ray.errors import RunFailed, UserError, last_line
from conr_ray.method.backbone_names import is_timm

if TYPE_CHECKING:
    from rich.console import Console

    from conr_ray.config import RunConfig
    from conr_ray.engine.run_directory import RunDirectory


@folder_option("--storage")
def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, then check, or train and print the result."""
    args = _parser().parse_args(arguments)
    if args.local and (args.address or args.check):
        raise UserError("--local trains without Ray: leave out --address and --check")
    if sent_to_head("conr_ray.train", arguments, args):
        return
    if args.check:
        _check(args)
        return
    if not args.preset and not args.config:
        raise UserError("one of --preset, --config and --check is required; see --help")
    config, told = _config(args)
    _train(args, config, told)


def _train(args: argparse.Namespace, config: RunConfig, told: list[str]) -> None:
    """Train, and print the lines `told` about the config first."""
    from conr_ray.scaling.resources import crowded, local_resources

    workers = 1 if args.local else args.workers
    if args.gpus_per_worker is not None and args.address is None and workers > 0:
        # Before torch is loaded and data are opened, which may take minutes.
        local_resources(cluster_options(args), workers)
    from conr_ray.config import override, parse_overrides
    from conr_ray.data.store import open_data
    from conr_ray.engine.data_checks import check_data
    from conr_ray.engine.earlier_clusters import check_earlier
    from conr_ray.engine.given_edits import check_given_edits
    from conr_ray.engine.outline import outline
    from conr_ray.engine.raw_pixels import against_raw_pixels
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.engine.trunk_store import open_trunks
    from conr_ray.estimating.settings import fitted_to_few, told_of_few
    from conr_ray.frozen import trained_shape
    from conr_ray.prediction.ahead import embedded_ahead
    from conr_ray.scaling.actor_locks import ActorLocks
    from conr_ray.storage.files import Folder
    from conr_ray.storage.locks import FileLocks
    from conr_ray.tracking.progress import RunProgress
    from conr_ray.tracking.wandb_reach import reached_settings

    directory = RunDirectory(directory_uri(args, _subject(args, config)))
    # The values of a preset are for many samples; those of a file are somebody's own.
    fitted = args.preset and config.neighborhood.pool == "data"
    if not fitted:
        _check_folder(config, directory, resume=args.resume)
    _check_backbone(config, directory)
    data = open_data(config.data)
    few: dict[str, float] = {}
    if fitted:
        few = fitted_to_few(config, data.num_rows, parse_overrides(args.settings))
        config = override(config, few)
        _check_folder(config, directory, resume=args.resume)
    least = check_data(config, data, workers)
    if not config.embeds_once:
        check_given_edits(config, data, directory, least)
    check_earlier(config, data, directory)
    shape = trained_shape(config, data.row_shape, directory)
    may_begin_trained = config.model.init is not None or is_timm(config.model.backbone)
    if may_begin_trained and directory.newest_checkpoint() == (0, 0):
        from conr_ray.engine.initial_weights import check_initial_weights

        check_initial_weights(config, shape)
    if args.local and args.trunks and not directory.is_local:
        raise UserError("--local cannot lock --trunks in a bucket: leave out --local")
    locks = FileLocks(f"{directory.uri}/trunks") if args.local else ActorLocks()
    with folder_option("--trunks"):
        trunks = open_trunks(args.trunks, frozenset({config.group_start_epoch or 0}), locks)
    console = make_console()
    wandb, note = reached_settings(config.tracking, directory.uri, of_search=False)
    if args.local:
        resources = local_resources(cluster_options(args), 1)
    else:
        from conr_ray.scaling.cluster import connect, leave
        from conr_ray.scaling.shared_storage import check_storage
        from conr_ray.scaling.train_job import load_ahead, load_here

        if args.address is None:
            crowd = crowded(local_resources(cluster_options(args), workers))
            if crowd is not None:
                console.print(crowd, soft_wrap=True)
        load_here()
        resources = connect(cluster_options(args), workers)
        load_ahead(resources)
        check_storage(directory, more_to_come=resources.more_to_come)
        if trunks is not None:
            with folder_option("--trunks"):
                check_storage(Folder(trunks.uri), more_to_come=resources.more_to_come)
    with directory.held():
        # What the config may change, such as its epochs, is nobody else's meanwhile.
        directory.claim(config, resume=args.resume)
        console.print(f"run directory: {directory.uri}", data.line, sep="\n", soft_wrap=True)
        data.write_inventory(directory)
        if few:
            told.append(told_of_few(few, data.num_rows))
        if note:
            told.append(note)
        for line in told:
            console.print(line, soft_wrap=True)
        embedded_ahead(config, data, console, None if args.local else resources, directory)
        name = directory.uri.rpartition("/")[2]
        wandb = wandb.for_run(name, group=None, run_uri=directory.uri)
        done, _ = directory.newest_checkpoint()
        if done < config.schedule.epochs:
            about = outline(config, data.num_rows, data.num_classes, data.what, done)
            console.print(about, soft_wrap=True)
        progress = RunProgress(config.schedule.epochs, done, console)
        with resumable(directory.uri, directory.way_on), progress:
            if args.local:
                from conr_ray.scaling.worker import run_here

                profiled = args.profile
                run_here(config, directory, resources, wandb, progress, trunks, profiled=profiled)
            else:
                from conr_ray.scaling.train_job import run_on_workers

                for row in run_on_workers(
                    config,
                    directory,
                    resources,
                    wandb,
                    trunks,
                    profiled=args.profile,
                    limits=watch_limits(args),
                    tell=partial(console.print, soft_wrap=True),
                ):
                    progress.epoch(row)
    _print_result(directory, console)
    if short := against_raw_pixels(config, data, directory):
        console.print(short, soft_wrap=True)
    if args.profile:
        _print_profile(directory, console)
    if not args.local:
        leave()


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("train", "Train CoNR.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preset", help="name of a complete config; they are listed below")
    what.add_argument(
        "--config",
        help="config file, such as the config.yaml of a run or the best.yaml of a search",
    )
    what.add_argument(
        "--check",
        action="store_true",
        help="check that a run would work here (versions, storage, GPUs, network); train nothing",
    )
    parser.add_argument(
        "--init",
        metavar="SOURCE",
        help="weights to start from: a run, or a file .safetensors, .pt or .pth; sets model.init",
    )
    parser.add_argument(
        "--edits",
        metavar="DIR",
        help="folder of a run on the same samples that was changed with conr_ray.browse, or its "
        "edits.parquet: what was merged, split, moved and marked as junk is learned from; sets "
        "clustering.edits",
    )
    parser.add_argument(
        "--ids-of",
        metavar="DIR",
        help="an earlier run, or one of its reclusterings: clusters take the numbers and names of "
        "those that they share most samples with; sets clustering.ids_of",
    )
    parser.add_argument(
        "--trunks",
        metavar="DIR",
        help="folder of trunks, such as a search's, or s3://...: start from the instance stage "
        "stored there; if there is none yet, train and store it",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="time the phases of each step and trace a few: a table here, and the files in the "
        "run's folder profile",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--workers", type=int, default=1, help="number of workers on Ray (default: 1)"
    )
    where.add_argument(
        "--local", action="store_true", help="train in this process, without Ray, for debugging"
    )
    add_cluster_options(parser)
    return parser


def _check(args: argparse.Namespace) -> None:
    """Print the findings; raise RunFailed if a run would fail."""
    from rich.table import Table

    from conr_ray.scaling.cluster import connect
    from conr_ray.scaling.preflight import preflight
    from conr_ray.storage.files import Folder

    resources = connect(cluster_options(args), args.workers, dashboard=True)
    directory = Folder(directory_uri(args, "check")).parent
    console = make_console()
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    findings = preflight(directory, resources)
    for finding in findings:
        if finding.error is None:
            table.add_row("ok", finding.subject, finding.detail)
        else:
            told = last_line(with_remedy(finding.error, "--storage"))
            table.add_row("FAILS", finding.subject, told)
    console.print(table)
    if failed := [finding.subject for finding in findings if not finding.ok]:
        raise RunFailed(f"a run would fail here: {', '.join(failed)}")


def _check_folder(config: RunConfig, directory: RunDirectory, *, resume: bool) -> None:
    """Raise UserError unless the run can begin, or go on, in its folder."""
    if not directory.check(config, resume=resume) and resume:
        raise UserError(f"--resume: no run in {directory.uri}: check --storage and --name")


def _check_backbone(config: RunConfig, directory: RunDirectory) -> None:
    """Raise UserError if timm has no such model, before the data are decoded."""
    if config.embeds_once:
        from conr_ray.frozen import check_frozen

        check_frozen(config, directory)
    elif is_timm(config.model.backbone):
        from conr_ray.pretrained import check_backbone

        check_backbone(config.model.backbone, config.views)


def _config(args: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """The config that the arguments ask for, and lines on what was changed in its preset."""
    from conr_ray.config import from_yaml, load_config, load_preset, override, parse_overrides
    from conr_ray.config.shortened import shortened, told_of_shortened
    from conr_ray.storage.files import Folder

    overrides = parse_overrides(args.settings)
    if args.init is not None:
        if "model.init" in overrides:
            raise UserError("--init sets model.init: leave out --set model.init")
        overrides["model.init"] = args.init
    if args.edits is not None:
        if "clustering.edits" in overrides:
            raise UserError("--edits sets clustering.edits: leave out --set clustering.edits")
        overrides["clustering.edits"] = args.edits
    if args.ids_of is not None:
        if "clustering.ids_of" in overrides:
            raise UserError("--ids-of sets it: leave out --set clustering.ids_of")
        overrides["clustering.ids_of"] = args.ids_of
    told = []
    if args.preset:
        shorter = shortened(args.preset, overrides)
        config = load_preset(args.preset, {**overrides, **shorter})
        if shorter:
            told.append(told_of_shortened(shorter, config.schedule.epochs))
    else:
        text = None
        if "://" in args.config:
            folder, _, name = args.config.rpartition("/")
            with folder_option("--config"):
                text = Folder(folder).read_text(name)
        if text is not None:
            config = from_yaml(text, f"--config {args.config}", overrides)
        else:
            config = load_config(args.config, overrides)
    return override(config, absolute_paths(config)), told


def _subject(args: argparse.Namespace, config: RunConfig) -> str:
    """What the run's folder is called by default."""
    if args.preset:
        return subject_of(config, args.preset)
    # The names of files that runs and searches write tell nothing.
    stem = Path(args.config).stem
    return config.data.title if stem in ("config", "best") else stem


def _print_result(directory: RunDirectory, console: Console) -> None:
    from conr_ray.engine.cluster_changes import read_changes
    from conr_ray.metric_names import headline

    headed = headline(directory.metric_rows()[-1])
    lines = [headed, *read_changes(directory), *where_result_is(directory)]
    console.print("\n".join(lines), soft_wrap=True)


def _print_profile(directory: RunDirectory, console: Console) -> None:
    """A row for each phase: milliseconds a step and share of the time, by stage."""
    from rich.table import Table

    from conr_ray.engine.profile import PHASES, read_profile

    profile = read_profile(directory)
    if not profile:
        console.print("profile: none, since no epoch was trained")
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("ms a step")
    for stage in profile:
        table.add_column(f"{stage} stage", justify="right")
        table.add_column("share", justify="right")
    phases = dict.fromkeys(name for times in profile.values() for name in times.seconds)
    for name in [*sorted(phases, key=PHASES.index), "all"]:
        cells = []
        for times in profile.values():
            whole = sum(times.seconds.values())
            seconds = whole if name == "all" else times.seconds.get(name, 0.0)
            cells += [f"{1e3 * seconds / times.steps:.2f}", f"{seconds / whole:.1%}"]
        table.add_row(name, *cells)
    console.print(table)
    console.print(f"profile: {directory.uri}/profile", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
