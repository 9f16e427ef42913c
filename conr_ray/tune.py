"""`python -m conr_ray.tune`: search CoNR's hyper-parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    where_result_is,
)
from conr_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from conr_ray.searching.search_directory import SearchDirectory
    from conr_ray.searching.space import SearchSpace
    from conr_ray.searching.trial_table import Trial
    from conr_ray.whole_search import WholeSearch


@folder_option("--storage")
def main(arguments: Sequence[str]) -> None:
    """Parse the arguments, then plan, or search and print the result."""
    args = _parser().parse_args(arguments)
    if args.retry_failed and not args.resume:
        raise UserError("--retry-failed needs --resume and --name, the search to resume")
    if sent_to_head("conr_ray.tune", arguments, args):
        return
    search = _asked(args)
    if args.plan:
        _plan(args, search)
    else:
        _run(args, search)


def _asked(args: argparse.Namespace) -> WholeSearch:
    """The search that the arguments ask for."""
    from conr_ray.searching.search_directory import SearchDirectory
    from conr_ray.storage.files import Folder
    from conr_ray.whole_search import WholeSearch

    space = _space(args)
    subject, of = Path(args.space).stem, subject_of(space.config(), space.preset)
    if args.preset or of != space.preset:
        subject += f"-{of}"
    return WholeSearch(
        space,
        SearchDirectory(Folder(directory_uri(args, subject)), args.study),
        cluster_options(args),
        trials=args.trials,
        workers=args.workers,
        max_concurrent=args.max_concurrent,
        max_retries=args.max_retries,
        retry_failed=args.retry_failed,
        resume=args.resume,
        trunks=args.trunks,
        no_trunks=args.no_trunks,
        hang_limit=args.hang_limit,
    )


def _space(args: argparse.Namespace) -> SearchSpace:
    """The space with the fields that the arguments fix."""
    from conr_ray.config import parse_overrides
    from conr_ray.searching.space_file import load_space

    fixed = parse_overrides(args.settings)
    space = load_space(args.space, fixed, args.preset)
    fixed |= absolute_paths(space.config(), space.search)
    return load_space(args.space, fixed, args.preset)


def _fitted(
    args: argparse.Namespace, search: WholeSearch, num_rows: int
) -> tuple[WholeSearch, str]:
    """The search with its preset fitted to few samples, and a line that tells so, or none."""
    from dataclasses import replace

    from conr_ray.estimating.settings import fitted_to_few, told_of_few
    from conr_ray.searching.space_file import load_space

    space = search.space
    few = fitted_to_few(space.config(), num_rows, {**space.fixed, **space.search})
    if not few:
        return search, ""
    space = load_space(args.space, {**space.fixed, **few}, args.preset)
    return replace(search, space=space), told_of_few(few, num_rows)


def _plan(args: argparse.Namespace, search: WholeSearch) -> None:
    """Print what the search will cost. Connects to a cluster only if --address is given."""
    from conr_ray.scaling.actor_locks import ActorLocks
    from conr_ray.scaling.resources import local_nodes, local_resources
    from conr_ray.searching.known_data import known_data
    from conr_ray.searching.plan import print_plan

    images = known_data(search.space)
    search, few = _fitted(args, search, images.num_rows)
    search = search.checked(images)
    trunks = search.open_trunks(ActorLocks())
    if search.cluster.address is None:
        resources = local_resources(search.cluster, search.workers, 1)
        room = resources.fits_on(local_nodes(resources))
    else:
        from conr_ray.scaling.cluster import connect, room_for

        resources = connect(search.cluster, search.workers, 1)
        room = room_for(resources)
    most, console = search.max_concurrent, make_console()
    for told in (images.line, search.metric_note, few):
        if told:
            console.print(told, soft_wrap=True)
    print_plan(search.space, images, search.num_trials, trunks, resources, room, most, console)


def _run(args: argparse.Namespace, search: WholeSearch) -> None:
    from conr_ray.data.store import open_data
    from conr_ray.scaling.resources import crowded, local_resources

    images, console = open_data(search.space.config().data), make_console()
    search, few = _fitted(args, search, images.num_rows)
    search = search.checked(images)
    crowd = None
    if search.cluster.address is None:
        crowd = crowded(local_resources(search.cluster, search.workers, 1))
    for told in (few, crowd):
        if told:
            console.print(told, soft_wrap=True)
    way_on = "which goes on with running trials from their last checkpoints"
    stoppable = resumable(search.directory.uri, lambda: way_on)
    trials = search.run(images, console, stoppable)
    _print_result(search.space, search.directory, trials, console)


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
