"""`python -m conr_ray.data inspect`: what a data set holds, before anything is trained."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from conr_ray.errors import UserError

if TYPE_CHECKING:
    from conr_ray.config import DataConfig


def add_parser(commands: Any) -> None:
    """Add the command to the others."""
    parser = commands.add_parser(
        "inspect",
        help="what a data set holds: counts, sizes, formats, broken ones, copies, labels",
        description="Reads all samples of a data set and tells what they are, what would be read "
        "as labels, which cannot be read, which are copies, and whether the decoded copy fits.",
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="PATH", nargs="?", help="as data.path")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="set a field of data, such as data.source=vectors; can be repeated",
    )
    parser.add_argument("--preset", help="look as runs of this preset do, such as photos")
    parser.add_argument("--json", action="store_true", help="as JSON, with all names")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Inspect and print."""
    from conr_ray.data.inspection import inspect

    found = inspect(data_config(args))
    if args.json:
        print(json.dumps(found.as_json(), indent=1))
        return
    for line in found.lines():
        print(line)


def data_config(args: argparse.Namespace) -> DataConfig:
    """The data that PATH, --set and --preset name.

    Raises:
        UserError: they are not of `data`, or not of one mind; or there is no such preset.
    """
    from pydantic import ValidationError

    from conr_ray.config import DataConfig, load_preset, parse_overrides
    from conr_ray.config.building import explained

    values = parse_overrides(args.settings)
    if strange := [name for name in values if not name.startswith("data.")]:
        raise UserError(f"--set {strange[0]}: inspect takes fields of data only, such as data.path")
    fields: dict[str, Any] = {name.removeprefix("data."): v for name, v in values.items()}
    if args.path is not None:
        if fields.setdefault("path", args.path) != args.path:
            raise UserError(f"data.path={fields['path']}: {args.path} is given too; leave out one")
        if args.preset is None:
            fields.setdefault("source", "auto")
    if args.preset is not None:
        fields = load_preset(args.preset).data.model_dump(exclude_unset=True) | fields
    try:
        config = DataConfig.model_validate(fields)
    except ValidationError as error:
        raise UserError(explained(error, "data")) from None
    if config.path is None and config.source != "digits":
        raise UserError("inspect: name the PATH of a data set")
    if config.source == "torchvision" and config.name is None:
        raise UserError(
            "data.name is not set: data.source=torchvision needs a name such as cifar10"
        )
    return config
