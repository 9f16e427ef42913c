"""`python -m conr_ray.tune`: search CoNR's hyper-parameters."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from conr_ray.command_line import (
    absolute_data_path,
    add_cluster_options,
    cluster_options,
    directory_uri,
    folder_option,
    make_console,
    make_parser,
    resumable,
    run_command,
    sent_to_head,
)
from conr_ray.config import parse_overrides
from conr_ray.data.store import open_data
from conr_ray.engine.loop import check_data
from conr_ray.engine.trunk import open_trunks
from conr_ray.errors import UserError
from conr_ray.reporting.live_report import LiveReport
from conr_ray.scaling.actor_locks import ActorLocks
from conr_ray.scaling.cluster import connect
from conr_ray.scaling.shared_storage import check_storage
from conr_ray.search.plan import print_plan
from conr_ray.search.run_search import (
    SearchDirectory,
    parameter_importances,
    run_search,
    with_metric,
)
from conr_ray.search.space import SearchSpace
from conr_ray.search.space_file import check_points, load_space
from conr_ray.search.trial_table import Cost, Trial, best_trial, lineage, to_rich
from conr_ray.search.wandb_search import log_search
from conr_ray.storage.files import Folder
from conr_ray.tracking.library_logs import library_logs
from conr_ray.tracking.wandb_settings import WandbSettings, wandb_mode


@folder_option("--storage")
def main(arguments: Sequence[str]) -> None:
    """Parse, search, print the table."""
    args = _parser().parse_args(arguments)
    if sent_to_head("conr_ray.tune", arguments, args):
        return
    fixed = parse_overrides(args.settings)
    space = load_space(args.space, fixed, args.preset)
    if "data.path" not in space.search:
        fixed |= absolute_data_path(space.config())
        space = load_space(args.space, fixed, args.preset)
    num_trials = space.trials if args.trials is None else args.trials
    num_trials = min(num_trials, space.most_trials or num_trials)
    if space.exchanges:
        space = space.model_copy(update={"trials": num_trials})
    least_trials = 2 if space.exchanges else 1
    for option, count, least in (
        ("trials", num_trials, least_trials),
        ("max-concurrent", args.max_concurrent, 1),
    ):
        if count is not None and count < least:
            raise UserError(f"--{option} {count}: give {least} or more")
    subject = "-".join([Path(args.space).stem, *([args.preset] if args.preset else [])])
    directory = SearchDirectory(Folder(directory_uri(args, subject)), args.study)
    images = open_data(space.config().data)
    check_data(space.config(), images, args.workers)
    check_points(space, lambda config: check_data(config, images, args.workers))
    space = with_metric(space, images)
    directory.check(space, resume=args.resume)
    trunks = None
    if not args.no_trunks and not space.why_no_trunks:
        place = args.trunks or f"{directory.uri}/trunks"
        with folder_option("--trunks" if args.trunks else "--storage"):
            trunks = open_trunks(place, space.group_starts, ActorLocks())
    mode, note = wandb_mode(space.config().tracking)
    # A core for each worker, so that as many trials as possible run side by side.
    resources = connect(cluster_options(args), args.workers, 1, dashboard=args.workers > 1)
    console = make_console()
    if args.plan:
        print_plan(space, images, num_trials, trunks, resources, args.max_concurrent, console)
        return
    check_storage(directory.files, more_to_come=resources.more_to_come)
    if args.trunks and trunks is not None:
        with folder_option("--trunks"):
            check_storage(Folder(trunks.uri), more_to_come=resources.more_to_come)
    directory.claim(space, resume=args.resume)
    report = LiveReport(directory)
    console.print(f"search directory: {directory.uri}", soft_wrap=True)
    console.print(f"report: {report.uri}, also while the search runs", soft_wrap=True)
    if note:
        console.print(note, soft_wrap=True)
    if args.trunks and trunks is None:
        console.print(f"--trunks is not used: {space.why_no_trunks}", soft_wrap=True)
    held, logs = directory.held(), library_logs(directory.files)
    with held, resumable(directory.uri), logs, report:
        trials = run_search(
            space,
            directory,
            resources,
            WandbSettings(mode),
            console,
            num_trials=num_trials,
            fingerprint=images.fingerprint,
            trunks=trunks,
            max_concurrent=args.max_concurrent,
            on_news=report.note,
        )
    log_search(space, directory, trials, WandbSettings(mode), workers=args.workers)
    _print_result(space, directory, trials, console)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("tune", "Search CoNR's hyper-parameters.")
    parser.add_argument("--space", required=True, help="a file of search_spaces/, or your own")
    parser.add_argument("--preset", help="the run that is varied (the space's)")
    parser.add_argument("--trials", type=int, help="number of trials (the space's)")
    parser.add_argument(
        "--workers-per-trial",
        "--workers",
        type=int,
        default=1,
        dest="workers",
        help="workers of each trial (1)",
    )
    add_cluster_options(parser)
    parser.add_argument("--max-concurrent", type=int, help="trials at once (as many as fit)")
    parser.add_argument(
        "--study",
        metavar="URL",
        help="database of the Optuna study (a file in the search's folder)",
    )
    trunks = parser.add_mutually_exclusive_group()
    trunks.add_argument(
        "--trunks",
        metavar="DIR",
        help="where instance stages that trials share are kept, a folder or s3://... (the "
        "search's); give one for all searches, and train each stage once",
    )
    trunks.add_argument("--no-trunks", action="store_true", help="train every trial from epoch 0")
    parser.add_argument(
        "--plan", action="store_true", help="say what the search will cost, and run nothing"
    )
    return parser


def _print_result(
    space: SearchSpace, directory: SearchDirectory, trials: list[Trial], console: Console
) -> None:
    for note in {trial.origin.note for trial in trials if trial.origin and trial.origin.note}:
        console.print(note, soft_wrap=True)
    console.print(to_rich(trials, space))
    best = best_trial(trials)
    assert best is not None
    names = dict.fromkeys([*space.metrics, "acc", "nmi", "ari", "label_free"])
    known = ((name, best.figures[name]) for name in names)
    figures = "  ".join(f"{name.upper()} {v:.4f}" for name, v in known if v is not None)
    study = directory.open_study(space)
    for metric in space.metrics:
        if importances := parameter_importances(space, study, metric):
            shares = (f"{name} {share:.0%}" for name, share in importances.items())
            console.print(f"what {metric} depends on: {', '.join(shares)}", soft_wrap=True)
    lines = [f"cost: {Cost.of(trials)}"]
    if len(space.metrics) > 1:
        numbers = [str(trial.number) for trial in trials if trial.in_pareto_set]
        lines.append(f"Pareto set: trials {', '.join(numbers)}; each is a run in trials/")
        lines.append(f"best in {space.metric}: trial {best.number}, {figures}")
    else:
        lines.append(f"best: trial {best.number}, {figures}")
    if space.exchanges:
        legs = " -> ".join(str(leg.number) for leg in lineage(best, trials))
        lines.append(f"its state went through trials {legs}, and is in {directory.uri}/trials/")
    else:
        lines.append(f"train it: python -m conr_ray.train --config {directory.uri}/best.yaml")
        more = min(2 * len(trials), space.most_trials or 2 * len(trials))
        if more > len(trials):
            lines.append(
                f"go on: the same command with --name {directory.name} --resume --trials {more}"
            )
    console.print("\n".join(lines), soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
