"""`python -m conr_ray.tune`: search CoNR's hyper-parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conr_ray.command_line import (
    absolute_paths,
    add_cluster_options,
    check_run,
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
)
from conr_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from conr_ray.config import RunConfig
    from conr_ray.engine.data_checks import Counted
    from conr_ray.engine.trunk_store import TrunkStore
    from conr_ray.searching.search_directory import SearchDirectory
    from conr_ray.searching.space import SearchSpace
    from conr_ray.searching.trial_table import Trial
    from conr_ray.storage.locks import Locks


@folder_option("--storage")
def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, then plan, or search and print the result."""
    args = _parser().parse_args(arguments)
    if args.retry_failed and not args.resume:
        raise UserError("--retry-failed needs --resume and --name, the search to resume")
    if sent_to_head("conr_ray.tune", arguments, args):
        return
    space, num_trials = _space(args)
    directory = _directory(args, space)
    if args.plan:
        _plan(args, space, num_trials, directory)
    else:
        _search(args, space, num_trials, directory)


def _space(args: argparse.Namespace) -> tuple[SearchSpace, int]:
    """The space with the fields that the arguments fix, and the number of trials."""
    from conr_ray.config import parse_overrides
    from conr_ray.searching.space_file import load_space

    fixed = parse_overrides(args.settings)
    space = load_space(args.space, fixed, args.preset)
    paths = absolute_paths(space.config())
    fixed |= {field: path for field, path in paths.items() if field not in space.search}
    space = load_space(args.space, fixed, args.preset)
    num_trials = space.trials if args.trials is None else args.trials
    num_trials = min(num_trials, space.most_trials or num_trials)
    if space.exchanges:
        space = space.model_copy(update={"trials": num_trials})
    least_trials = 2 if space.exchanges else 1
    for option, count, least in (
        ("trials", num_trials, least_trials),
        ("max-concurrent", args.max_concurrent, 1),
        ("max-retries", args.max_retries, 0),
    ):
        if count is not None and count < least:
            raise UserError(f"--{option} {count}: give {least} or more")
    return space, num_trials


def _directory(args: argparse.Namespace, space: SearchSpace) -> SearchDirectory:
    from conr_ray.searching.search_directory import SearchDirectory
    from conr_ray.storage.files import Folder

    subject, of = Path(args.space).stem, subject_of(space.config(), space.preset)
    if args.preset or of != space.preset:
        subject += f"-{of}"
    return SearchDirectory(Folder(directory_uri(args, subject)), args.study)


def _checked(
    args: argparse.Namespace, space: SearchSpace, directory: SearchDirectory, images: Counted
) -> SearchSpace:
    """The space with a metric that runs on `images` report.

    Raises:
        UserError: some of its points cannot run on them, or the directory holds another search.
    """
    from conr_ray.searching.known_data import with_metric
    from conr_ray.searching.space_file import check_points

    started = set()

    def check(config: RunConfig) -> None:
        check_run(config, images, args.workers)
        model = config.model
        start = (model.init, model.backbone, model.stem, model.widths)
        if model.init is not None and start not in started:
            from conr_ray.engine.initial_weights import check_initial_weights

            started.add(start)
            if "://" not in model.init and not Path(model.init).is_absolute():
                raise UserError(
                    f"model.init={model.init}: trials have other working folders: give an "
                    "absolute path"
                )
            check_initial_weights(config, images.row_shape)

    check(space.config())
    check_points(space, check)
    space = with_metric(space, images)
    directory.check(space, resume=args.resume)
    return space


def _trunks(
    args: argparse.Namespace, space: SearchSpace, directory: SearchDirectory, elsewhere: Locks
) -> TrunkStore | None:
    from conr_ray.engine.trunk_store import open_trunks

    if args.no_trunks or space.why_no_trunks:
        return None
    place = args.trunks or f"{directory.uri}/trunks"
    with folder_option("--trunks" if args.trunks else "--storage"):
        return open_trunks(place, space.group_starts, elsewhere)


def _plan(
    args: argparse.Namespace, space: SearchSpace, num_trials: int, directory: SearchDirectory
) -> None:
    """Print what the search will cost. Connects to a cluster only if --address is given."""
    from conr_ray.scaling.actor_locks import ActorLocks
    from conr_ray.scaling.resources import local_nodes, local_resources
    from conr_ray.searching.known_data import known_data
    from conr_ray.searching.plan import print_plan

    images = known_data(space)
    space = _checked(args, space, directory, images)
    trunks = _trunks(args, space, directory, ActorLocks())
    if args.address is None:
        resources = local_resources(cluster_options(args), args.workers, 1)
        room = resources.fits_on(local_nodes(resources))
    else:
        from conr_ray.scaling.cluster import connect, room_for

        resources = connect(cluster_options(args), args.workers, 1)
        room = room_for(resources)
    console = make_console()
    print_plan(space, images, num_trials, trunks, resources, room, args.max_concurrent, console)


def _search(
    args: argparse.Namespace, space: SearchSpace, num_trials: int, directory: SearchDirectory
) -> None:
    from conr_ray.data.store import open_data
    from conr_ray.reporting.live_report import LiveReport
    from conr_ray.scaling.actor_locks import ActorLocks
    from conr_ray.scaling.cluster import connect
    from conr_ray.scaling.shared_storage import check_storage
    from conr_ray.searching.run_search import run_search
    from conr_ray.searching.wandb_search import log_search
    from conr_ray.storage.files import Folder
    from conr_ray.tracking.library_logs import library_logs
    from conr_ray.tracking.wandb_reach import reached_settings

    images = open_data(space.config().data)
    space = _checked(args, space, directory, images)
    trunks = _trunks(args, space, directory, ActorLocks())
    wandb, note = reached_settings(space.config().tracking, directory.uri, of_search=True)
    # A core for each worker, so that as many trials as possible run side by side.
    resources = connect(cluster_options(args), args.workers, 1, dashboard=args.workers > 1)
    console = make_console()
    check_storage(directory.files, more_to_come=resources.more_to_come)
    if args.trunks and trunks is not None:
        with folder_option("--trunks"):
            check_storage(Folder(trunks.uri), more_to_come=resources.more_to_come)
    with directory.held():
        directory.claim(space, resume=args.resume)
        report, logs = LiveReport(directory), library_logs(directory.files)
        console.print(f"search directory: {directory.uri}", soft_wrap=True)
        console.print(f"report: {report.uri}, updated while the search runs", soft_wrap=True)
        if note:
            console.print(note, soft_wrap=True)
        if args.trunks and trunks is None:
            console.print(f"--trunks is not used: {space.why_no_trunks}", soft_wrap=True)
        way_on = "which goes on with running trials from their last checkpoints"
        with resumable(directory.uri, lambda: way_on), logs, report:
            trials = run_search(
                space,
                directory,
                resources,
                wandb,
                console,
                num_trials=num_trials,
                fingerprint=images.fingerprint,
                trunks=trunks,
                max_concurrent=args.max_concurrent,
                max_retries=args.max_retries,
                failed_too=args.retry_failed,
                on_news=report.note,
                limits=watch_limits(args),
            )
    log_search(space, directory, trials, wandb, workers=args.workers)
    _print_result(space, directory, trials, console)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tune", "Search CoNR's hyper-parameters.")
    parser.add_argument(
        "--space", required=True, help="search space: a file of search_spaces/, or your own"
    )
    parser.add_argument("--preset", help="preset to vary (default: the space's)")
    parser.add_argument("--trials", type=int, help="number of trials (default: the space's)")
    parser.add_argument(
        "--workers-per-trial",
        "--workers",
        type=int,
        default=1,
        dest="workers",
        help="workers per trial (default: 1)",
    )
    add_cluster_options(parser)
    parser.add_argument(
        "--max-concurrent", type=int, help="maximum trials at once (default: as many as fit)"
    )
    parser.add_argument(
        "--max-retries",
        type=int,
        default=5,
        help="how often a trial whose processes or nodes die goes on from its checkpoint; one that "
        "fails for a reason of its own is not tried again (default: 5)",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="with --resume: run failed trials once more, each from its last checkpoint",
    )
    parser.add_argument(
        "--study",
        metavar="URL",
        help="database of the Optuna study (default: a file in the search's folder)",
    )
    trunks = parser.add_mutually_exclusive_group()
    trunks.add_argument(
        "--trunks",
        metavar="DIR",
        help="folder or s3://... for the instance stages that trials share (default: in the "
        "search's folder); searches with the same DIR train each stage once",
    )
    trunks.add_argument("--no-trunks", action="store_true", help="train every trial from epoch 0")
    parser.add_argument(
        "--plan", action="store_true", help="print what the search will cost; run nothing"
    )
    return parser


def _print_result(
    space: SearchSpace, directory: SearchDirectory, trials: list[Trial], console: Console
) -> None:
    from conr_ray.engine.run_directory import RunDirectory
    from conr_ray.metric_names import headline
    from conr_ray.searching.importances import parameter_importances
    from conr_ray.searching.trial_table import Cost, best_trial, lineage, to_rich

    for note in {trial.origin.note for trial in trials if trial.origin and trial.origin.note}:
        console.print(note, soft_wrap=True)
    console.print(to_rich(trials, space))
    best = best_trial(trials)
    assert best is not None
    figures = headline(best.figures, first=space.metrics)
    study = directory.open_study(space)
    for metric in space.metrics:
        if importances := parameter_importances(space, study, metric):
            shares = (f"{name} {share:.0%}" for name, share in importances.items())
            console.print(f"importance for {metric}: {', '.join(shares)}", soft_wrap=True)
    lines = [f"cost: {Cost.of(trials)}"]
    if len(space.metrics) > 1:
        numbers = [str(trial.number) for trial in trials if trial.in_pareto_set]
        lines.append(f"Pareto set: trials {', '.join(numbers)}; each is a run in trials/")
        lines.append(f"best in {space.metric}: trial {best.number}, {figures}")
    else:
        lines.append(f"best: trial {best.number}, {figures}")
    if space.exchanges:
        legs = " -> ".join(str(leg.number) for leg in lineage(best, trials))
        lines.append(f"lineage: trials {legs}")
    lines += where_result_is(RunDirectory(f"{directory.uri}/trials/{best.trial_id}"))
    if not space.exchanges:
        more = min(2 * len(trials), space.most_trials or 2 * len(trials))
        if more > len(trials):
            lines.append(
                f"more trials: same command with --name {directory.name} --resume --trials {more}"
            )
    console.print("\n".join(lines), soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
