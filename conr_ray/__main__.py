"""`conr_ray COMMAND`, also `python -m conr_ray COMMAND`: what `python -m conr_ray.COMMAND` does.

One program instead of one for each command: its help lists them all, and only one name is taken
from the user's shell.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module

import conr_ray

COMMANDS = {
    "train": "train CoNR on images or vectors",
    "tune": "search its hyper-parameters",
    "predict": "clusters of new images by a trained run",
    "report": "a page about a run, a search or predictions",
    "browse": "look at clusters, and merge, split and name them",
    "curate": "find duplicates, outliers and wrong members",
    "recluster": "other numbers of clusters for a finished run, without training",
    "data": "inspect and prepare data, and what is cached of them",
    "embed": "what a pre-trained backbone makes of images, as a table",
    "export": "a run as safetensors, ONNX, TorchScript or pt2",
    "config_reference": "every field of the config, as Markdown",
}
# Packages, whose `main` is in another module.
_IN = {"data": "data_commands"}


def main() -> None:
    """Run the command that the first argument names, with the others."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h"):
        print(_help())
        return
    if name == "--version":
        print(f"conr_ray {conr_ray.__version__}")
        return
    module = name.replace("-", "_")
    if module not in COMMANDS:
        near = difflib.get_close_matches(module, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(COMMANDS)}"
        print(f"error: {name!r}: no such command; {hint}", file=sys.stderr)
        sys.exit(2)
    from conr_ray.command_line import run_command

    # Logs are named after it.
    sys.argv = [module, *arguments]
    run_command(import_module(f"conr_ray.{_IN.get(module, module)}").main)


def _help() -> str:
    wide = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{wide}}{does}" for name, does in COMMANDS.items()]
    head = ["usage: conr_ray COMMAND [arguments], or python -m conr_ray.COMMAND [arguments]", ""]
    tail = ["", "conr_ray COMMAND --help tells about one of them; conr_ray --version"]
    return "\n".join([*head, *lines, *tail])


if __name__ == "__main__":
    main()
