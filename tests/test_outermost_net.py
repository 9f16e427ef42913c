"""Whatever a command raises is one line and a log file."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conr_ray.remedies import described
from tests.waiting import HANG_S

COMMAND = "from conr_ray.command_line import run_command\nrun_command(main)\n"
LINE = re.compile(r"error: (.*): traceback in (/.*\.log)\n")


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command whose main is in `code`, with `folder` for temporary files."""
    return subprocess.run(
        [sys.executable, "-c", code + COMMAND],
        env={**os.environ, "TMPDIR": str(folder), **environment},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )


FULL = """
def main(arguments):
    with open("/dev/full", "w", buffering=1) as file:
        file.write("x" * 10 + chr(10))
"""
LIBRARY = """
def main(arguments):
    import yaml
    yaml.safe_load("a: [1\\nb: }")
"""
OWN = """
def main(arguments):
    from conr_ray.scaling.resources import ClusterOptions
    ClusterOptions().resources("two", cpus_per_worker=1, num_cpus=1, has_gpus=False)
"""


@pytest.mark.parametrize(
    ("code", "told", "logged"),
    [
        (FULL, "No space left on device: free some space there, or choose", "OSError: [Errno 28]"),
        (
            LIBRARY,
            r"ParserError: while parsing a flow .* line 1, column 4: a: \[1 \^ expected",
            "yaml.parser.ParserError: while parsing",
        ),
        (
            OWN,
            r"conr_ray/scaling/resources.py, line \d+: TypeError: '<' not supported",
            "resources",
        ),
    ],
    ids=["disk", "library", "own"],
)
def test_an_error_is_one_line_and_its_traceback_is_in_a_file_of_the_users_own(
    tmp_path: Path, code: str, told: str, logged: str
) -> None:
    done = run(code, tmp_path)
    line = LINE.fullmatch(done.stderr)
    assert (done.returncode, done.stdout) == (1, "")
    assert line is not None, done.stderr
    assert re.match(told, line[1])
    log = Path(line[2])
    assert log.parent.parent == tmp_path
    assert logged in log.read_text() and "Traceback" in log.read_text()
    assert [stat.S_IMODE(one.stat().st_mode) for one in (log, log.parent)] == [0o600, 0o700]


def test_a_variable_gives_the_traceback_itself(tmp_path: Path) -> None:
    done = run(FULL, tmp_path, CONR_RAY_TRACEBACK="1")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback") and "[Errno 28]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_real_command_tells_what_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "conr_ray.report", str(tmp_path / "file" / "run")],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.EACCES, "Permission denied", "/a"), "/a: Permission denied: give this user"),
        (OSError(errno.ENOTCONN, "Gone", "/a", None, "/b"), "/a: /b: Gone: check the mount, then"),
        (OSError("only text"), "OSError: only text"),
        (RuntimeError("first\n\n  last  word\n"), "RuntimeError: first last word"),
        (RuntimeError("Traceback ...\n  a\nKeyError: b\n"), "RuntimeError: KeyError: b"),
        (RuntimeError(), "RuntimeError"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x': i"),
    ],
)
def test_an_error_is_described_in_one_line(error: Exception, line: str) -> None:
    assert described(error).startswith(line)
    assert "\n" not in described(error)


def test_a_description_is_short() -> None:
    assert len(described(ValueError("x" * 10_000))) == 300
