"""The parser of all commands: wrong arguments in one line with the remedy, and help.

Fields are looked up where an argument is wrong: help loads no library for them.
"""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import Any

from conr_ray.errors import UserError
from conr_ray.preset_files import preset_summaries

_WIDTH = 100


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument like any other error: in one line, with status 2.

    Options are not to be abbreviated: they are sent to a cluster by their names, and a part of one
    would not be recognised there.
    """

    def __init__(self, *, allow_abbrev: bool = False, **settings: Any) -> None:
        super().__init__(allow_abbrev=allow_abbrev, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; unknown ones raise UserError with what may have been meant."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from conr_ray.fields import short

            hint = self._meant(unknown) or "see --help"
            raise UserError(f"unrecognized arguments: {short(' '.join(unknown))}; {hint}")
        return parsed

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise UserError instead of ending the process."""
        raise UserError(f"{message}; see --help")

    def format_help(self) -> str:
        """The help, with the presets if an option takes one."""
        text = super().format_help()
        if not {"--preset", "--dataset"} & set(self._option_string_actions):
            return text
        summaries = preset_summaries()
        wide = 2 + max(map(len, summaries))
        lines = [
            textwrap.fill(f"  {name:<{wide}}{summary}", _WIDTH, subsequent_indent=" " * (wide + 2))
            for name, summary in summaries.items()
        ]
        return "\n".join([text, "presets:", *lines, ""])

    def _meant(self, unknown: Sequence[str]) -> str | None:
        """The field or option that the first unknown option may have been meant to be."""
        from conr_ray.fields import short

        word, equals, value = unknown[0].partition("=")
        name = word.lstrip("-").replace("-", "_")
        if not word.startswith("--") or not name:
            return None
        if not equals:
            value = unknown[1] if unknown[1:] and not unknown[1].startswith("--") else "VALUE"
        if "--set" in self._option_string_actions and (fields := _fields_called(name)):
            told = " or ".join(f"--set {field}={short(value)}" for field in fields)
            return f"a config field is set by {told}"
        near = difflib.get_close_matches(word, list(self._option_string_actions), n=1)
        return f"did you mean {near[0]}?" if near else None


def _fields_called(name: str) -> list[str]:
    """Config fields of all frameworks' trees with this name, dotted or without its section."""
    from conr_ray.config import field_names

    known = field_names(None)
    return [name] if name in known else [f for f in known if f.rpartition(".")[2] == name]
