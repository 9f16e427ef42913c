"""What somebody new meets: the commands of README.md and docs/start.md, as they are written.

    sudo python tools/newcomer.py --photos FOLDER --cifar10 FILE

A user who is not root, with an empty home, on a /tmp of their own and without the processes of
others, clones this repository, and types each command of both pages' blocks one after another into
one shell per page. `photos` is a link to FOLDER; what would download CIFAR-10 gets FILE. The page
that stays open is ended by Ctrl-C. Printed are the seconds of each command, and the size of the
home after it.

It needs Linux, root, util-linux, git, and the network for `pip install`; 10 GB and 15 minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A user that nothing belongs to.
_UID = 61234
# Of the surroundings, what says where packages come from.
_KEPT = re.compile(r"PIP_.*|SSL_.*|.*_CA_BUNDLE|(HTTPS?|NO|ALL)_PROXY", re.IGNORECASE)
_LONGEST_S = 3600
# Read by the shell of the newcomer: one line of standard input is one command.
_SHELL = r"""
mount --bind "$1" /tmp && cd "$2" && shift 2 &&
exec setpriv --reuid="$1" --regid="$1" --clear-groups --inh-caps=-all env -i "${@:2}" bash --norc
"""


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, joined where they go on in the next line."""
    blocks = "".join(_BLOCK.findall(page.read_text())).replace("\\\n", "")
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in blocks.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


class Shell:
    """A shell of the newcomer, in a place of their own."""

    def __init__(self, home: Path, folder: Path, tmp: Path) -> None:
        """Start it.

        Args:
            home: of the user.
            folder: in which commands are typed.
            tmp: what is /tmp for it.
        """
        kept = [f"{name}={value}" for name, value in os.environ.items() if _KEPT.fullmatch(name)]
        own = [f"HOME={home}", f"PATH={os.defpath}:/usr/sbin", "LANG=C.UTF-8", *kept]
        apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]
        place = ["bash", "-c", _SHELL, "bash", str(tmp), str(folder), str(_UID), *own]
        self._log = folder.with_suffix(".log")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*apart, *place], stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
            )

    def type(self, command: str) -> tuple[int, float]:
        """Type a command and wait for its end; its exit status, and the seconds."""
        assert self._process.stdin is not None
        begun, before = time.monotonic(), self._log.stat().st_size
        self._process.stdin.write(f"{command} </dev/null; echo; echo =ended=$?\n".encode())
        self._process.stdin.flush()
        while self._process.poll() is None and time.monotonic() - begun < _LONGEST_S:
            with self._log.open("rb") as log:
                log.seek(before)
                ended = re.search(rb"^=ended=(\d+)$", log.read(), re.MULTILINE)
            if ended:
                return int(ended[1]), time.monotonic() - begun
            time.sleep(0.1)
        return -1, time.monotonic() - begun

    def said(self, num_lines: int) -> str:
        """The last lines that commands have printed."""
        lines = self._log.read_text(errors="replace").splitlines()[-num_lines:]
        return "\n".join(f"    {line}" for line in lines if not line.startswith("=ended="))

    def end(self) -> None:
        """End it, and what it started."""
        self._process.kill()
        self._process.wait()


def size_mb(folder: Path) -> int:
    """Megabytes on disk below a folder, files with several names once."""
    done = subprocess.run(["du", "-sm", str(folder)], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


def try_page(page: Path, place: Path, args: argparse.Namespace) -> list[str]:
    """Type the commands of a page into a fresh clone; lines of what failed."""
    home = place / f"home-{page.stem.lower()}"
    clone, tmp = home / "conr_ray", place / f"tmp-{page.stem.lower()}"
    home.mkdir()
    tmp.mkdir(mode=0o1777)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / "photos").symlink_to(args.photos.absolute())
    subprocess.run(["chown", "-R", f"{_UID}:{_UID}", str(home), str(tmp)], check=True)
    print(f"\n| {page.relative_to(ROOT)} | s | home then, MB |\n| --- | --- | --- |", flush=True)
    shell, failed = Shell(home, clone, tmp), []
    typed = commands(page)
    if not any("activate" in command for command in typed):
        # A page that leaves it to people where they install.
        typed = ["python3 -m venv .venv", ". .venv/bin/activate", *typed]
    for command in typed:
        what = command
        if command.startswith("make demo-photos"):
            what = f"make demo-photos DATA={args.cifar10.absolute()}"
        elif ".browse " in command:
            what = f"timeout --signal=INT 20 {command}"
        status, seconds = shell.type(what)
        print(f"| `{what}` | {seconds:.0f} | {size_mb(home):,} |", flush=True)
        # `timeout` ends with 124 where its time is over, which is how the page is ended.
        if status and not (status == 124 and ".browse " in command):
            failed.append(f"{page.name}: `{what}` ended with {status}\n{shell.said(12)}")
    shell.end()
    if not args.keep:
        shutil.rmtree(home)
    return failed


def main() -> None:
    """Try both pages; end with 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--cifar10", type=Path, required=True, help="Parquet file of CIFAR-10")
    parser.add_argument("--pages", nargs="+", default=["README.md", "docs/start.md"])
    parser.add_argument("--keep", action="store_true", help="leave homes and what was printed")
    args = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="newcomer-", dir="/var/tmp"))
    place.chmod(0o755)
    failed = [line for page in args.pages for line in try_page(ROOT / page, place, args)]
    if args.keep:
        print(f"\nin {place}")
    else:
        shutil.rmtree(place)
    print("\n" + ("\n".join(failed) or "each command ended well"))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
