"""Make a release: `python tools/release.py 0.2.0`.

In this order: the version, its section of the changelog and the citation are written, the checks
are run, wheel and source distribution are built and looked into, and all is committed and tagged.
Where a step fails, the files are put back and nothing is committed. Nothing is pushed or uploaded:
the last lines say how.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import subprocess
import sys
from pathlib import Path

from build_package import build
from packaging.version import InvalidVersion, Version

_INIT, _CHANGES, _CITATION = "conr_ray/__init__.py", "CHANGELOG.md", "CITATION.cff"
_UNRELEASED = "## Unreleased\n"


def released(root: Path, version: str, day: str) -> dict[str, str]:
    """The new texts of the files that name a version.

    Raises:
        SystemExit: the version is not above the present one, or nothing has changed since.
    """
    texts = {name: (root / name).read_text() for name in (_INIT, _CHANGES, _CITATION)}
    found = re.search(r'^__version__ = "(.+)"$', texts[_INIT], re.MULTILINE)
    assert found is not None
    try:
        is_later = Version(version) > Version(found[1])
    except InvalidVersion:
        sys.exit(f"{version} is no version: give one such as 0.2.0")
    first = re.search(r"^## \d", texts[_CHANGES], re.MULTILINE) is None and version == found[1]
    if not is_later and not first:
        sys.exit(f"{version} is not above {found[1]}, the present version: give a later one")
    _, heading, rest = texts[_CHANGES].partition(_UNRELEASED)
    if not heading or not re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip():
        sys.exit(f"{_CHANGES}: nothing is below {_UNRELEASED.strip()}: say what has changed")
    texts[_INIT] = texts[_INIT].replace(found[0], f'__version__ = "{version}"')
    texts[_CHANGES] = texts[_CHANGES].replace(
        _UNRELEASED, f"{_UNRELEASED}\n## {version} · {day}\n", 1
    )
    dated = re.sub(r"^date-released: .*\n", "", texts[_CITATION], flags=re.MULTILINE)
    texts[_CITATION] = re.sub(
        r"^version: .*$", f"version: {version}\ndate-released: {day}", dated, flags=re.MULTILINE
    )
    return texts


def release(root: Path, version: str, checks: str) -> None:
    """Make a release of the repository in `root`, with a shell command for `checks`."""
    if _git(root, "status", "--porcelain"):
        sys.exit("there are changes that are not committed: commit or stash them")
    if _git(root, "tag", "--list", f"v{version}"):
        sys.exit(f"the tag v{version} exists: give a later version")
    texts = released(root, version, datetime.date.today().isoformat())
    for name, text in texts.items():
        (root / name).write_text(text)
    try:
        if subprocess.run(checks, shell=True, cwd=root).returncode:
            sys.exit(f"{checks} fails: mend it, then release again")
        files = build(root, root / "dist")
        if unlike := [file.name for file in files if f"-{version}" not in file.name]:
            sys.exit(f"{unlike[0]} is of another version")
    except BaseException:
        _git(root, "checkout", "--", *texts)
        raise
    _git(root, "commit", "--quiet", "--message", f"Release {version}", "--", *texts)
    _git(root, "tag", "--annotate", f"v{version}", "--message", f"conr_ray {version}")
    print(*(f"dist/{file.name}" for file in files), sep="\n")
    branch = _git(root, "branch", "--show-current").strip()
    print(f"now: git push --atomic origin {shlex.quote(branch)} v{version}; twine upload dist/*")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("version", help="such as 0.2.0")
    parser.add_argument("--checks", default=".ci/run", help="what has to pass (default: .ci/run)")
    args = parser.parse_args()
    release(Path(__file__).parents[1], args.version, args.checks)
