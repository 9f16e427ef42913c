"""What `make lint` says of secrets and of dependencies: planted faults are found."""

from __future__ import annotations

import secrets
import string
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tools import dependency_audit as audit
from tools import secret_scan

LETTERS = string.ascii_letters + string.digits


def random(length: int, alphabet: str = LETTERS) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def planted() -> dict[str, str]:
    upper, key = string.ascii_uppercase + string.digits, random(40, "0123456789abcdef")
    return {
        "private key": f"-----BEGIN OPENSSH {'PRIVATE'} KEY-----\n{random(64)}\n",
        "AWS access key": f"id = '{'AKIA'}{random(16, upper)}'",
        "AWS secret key": f"aws_secret_{'access'}_key = {random(40)}\n",
        "W&B key": f"export WANDB_API_{'KEY'}={key}",
        "GitHub token": f"# {'ghp'}_{random(36)}",
        "Hugging Face token": f"login('{'hf'}_{random(34)}')",
        "Google key": f"key={'AI'}za{random(35)}",
        "Slack token": f"{'xox'}b-{random(30)}",
        "registry token": f"{'npm'}_{random(36)}",
        "model service key": f"{'sk'}-{random(48)}",
        "web token": f"{'ey'}J{random(20)}.{'ey'}J{random(40)}.{random(40)}",
        "password": f"{'pass'}word: '{random(24)}'",
        "URL with a password": f"mysql{'://'}user:{random(24)}@host/db",
    }


@pytest.mark.parametrize("kind", planted())
def test_a_secret_of_each_kind_is_found_where_it_is(kind: str) -> None:
    text = f"first\n\n{planted()[kind]}\nlast"
    assert (3, kind) in list(secret_scan.secrets_in(text))


def test_examples_are_no_secrets() -> None:
    examples = [
        "export WANDB_API_KEY=$WANDB_API_KEY",
        f"WANDB_API_KEY={'0' * 40}",
        "AKIA" + "FAKE" * 4,
        f"commit {random(40, '0123456789abcdef')}",
        "token = get_token_from_environment(name)",
        "mysql://user:password@host/optuna",
        "https://host:8080/a@b",
    ]
    assert [list(secret_scan.secrets_in(text)) for text in examples] == [[]] * len(examples)


def test_tracked_files_are_scanned_and_no_others(tmp_path: Path) -> None:
    text = planted()["GitHub token"]
    for name in ("tracked.py", "unträcked name.md", "other.txt"):
        (tmp_path / name).write_text(text)
    (tmp_path / "data.bin").write_bytes(b"\0" + text.encode())
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    add = ["git", "-C", str(tmp_path), "add", "tracked.py", "unträcked name.md", "data.bin"]
    subprocess.run(add, check=True)
    (tmp_path / "deleted").symlink_to("nowhere")
    assert secret_scan.scan(tmp_path) == [
        "tracked.py:1: GitHub token",
        "unträcked name.md:1: GitHub token",
    ]


def test_an_import_of_what_is_not_declared_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import os.path\nimport yaml, numpy as np\nfrom . import b\nfrom google.protobuf import c\n"
    )
    imports = audit.imported([tmp_path / "a.py"])
    assert set(imports) == {"yaml", "numpy", "google.protobuf"}
    providers = {"yaml": ["PyYAML"], "numpy": ["numpy"], "google.protobuf": ["protobuf"]}
    found = audit.import_faults(imports, ["numpy", "pyyaml"], providers)
    file = tmp_path / "a.py"
    assert list(found) == [f"{file}: imports google.protobuf: declare protobuf in pyproject.toml"]
    unused = list(audit.unused_faults(imports, ["PyYAML", "ruff", "scipy"], providers))
    assert unused == ["pyproject.toml: scipy is declared but not used: leave it out"]


def test_what_is_not_pinned_or_out_of_bounds_is_found() -> None:
    needs = audit.needed([Requirement("pytest>=8"), Requirement("moto[server]")])
    # Those of others and of extras are needed, too.
    assert {"pytest", "pluggy", "moto", "flask", "jinja2"} < set(needs)
    pins = "".join(f"{name}==99\n" for name in needs if name not in ("pytest", "pluggy", "moto"))
    found = list(audit.pin_faults(needs, f"# comment\n{pins}pytest==7.4\nmoto==5\n"))
    assert "constraints.txt: pytest==7.4 is not pytest>=8" in found
    missing = [line for line in found if "is not pinned" in line]
    assert [line.partition(": ")[2].partition(" ")[0] for line in missing] == ["pluggy"]


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("BSD-3-Clause AND (MIT OR GPL-3.0-only)", True),
        ("MIT AND GPL-3.0-only", False),
        ("GNU Affero General Public License v3", False),
        ("Other/Proprietary License", False),
        ("", False),
    ],
)
def test_a_licence_is_allowed_if_a_choice_of_each_part_is(licence: str, allowed: bool) -> None:
    assert audit.is_allowed(licence) == allowed
