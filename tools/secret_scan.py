"""Find secrets in the files that git tracks: `python tools/secret_scan.py [FOLDER]`.

Prints a line for each and exits with status 1. A value of little randomness, such as that of an
example or a test, is none.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Bits per character: below that of any real key of 16 characters or more.
_LEAST_BITS = 3.0
# A quoted or bare value after a name that says what it is.
_NAMED = r"(?i:{name})['\"]?[ \t]*[:=][ \t]*['\"]?({value})(?![\w/+])"
_KINDS = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "private key": r"(-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----\s+[\w+/=]+)",
        "AWS access key": r"\b((?:AKIA|ASIA)[A-Z0-9]{16})\b",
        "AWS secret key": _NAMED.format(name=r"aws\w*(?:secret|key)\w*", value=r"[\w/+]{40}"),
        "W&B key": r"\b(wandb_v\d_\w{30,})|"
        + _NAMED.format(name=r"(?:wandb|api)\w*key\w*", value=r"[0-9a-f]{40,}")
        + r"|api\.wandb\.ai\s+login\s+\w+\s+password\s+(\w{40,})",
        "GitHub token": r"\b(gh[pousr]_\w{36,}|github_pat_\w{22,})",
        "Hugging Face token": r"\b(hf_[A-Za-z0-9]{30,})",
        "Google key": r"\b(AIza[\w-]{35})",
        "Slack token": r"\b(xox[abeoprs]-[\w-]{20,})",
        "registry token": r"\b(pypi-AgE[\w-]{40,}|npm_\w{36})",
        "model service key": r"\b(sk-[\w-]{32,})",
        "web token": r"\b(eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})",
        "password": _NAMED.format(
            name=r"(?:password|passwd|secret|token)", value=r"(?=[A-Za-z_]*\d)\w{20,}"
        ),
        "URL with a password": r"\w+://[\w.-]+:([^\s/:@{}$<>\"']{8,})@",
    }.items()
}


def secrets_in(text: str) -> Iterator[tuple[int, str]]:
    """The line and the kind of each secret in a text."""
    for kind, pattern in _KINDS.items():
        for match in pattern.finditer(text):
            value = next(group for group in match.groups() if group)
            if _bits(value) >= _LEAST_BITS:
                yield text.count("\n", 0, match.start()) + 1, kind


def scan(folder: Path) -> list[str]:
    """A line for each secret in the tracked files of a repository."""
    listed = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "-z"], capture_output=True, check=True
    )
    found = []
    for name in listed.stdout.decode(errors="surrogateescape").split("\0")[:-1]:
        path = folder / name
        if path.is_file():
            data = path.read_bytes()
            text = "" if b"\0" in data else data.decode(errors="replace")
            found += [f"{name}:{line}: {kind}" for line, kind in sorted(secrets_in(text))]
    return found


def _bits(value: str) -> float:
    """Shannon entropy per character."""
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts)


def main() -> None:
    """Print what is found."""
    found = scan(Path(*sys.argv[1:2]) if sys.argv[1:] else Path())
    print("\n".join(found) if found else "no secrets")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
