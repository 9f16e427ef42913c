from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conr_ray.cores import cgroup_quota, usable_cores

PRINT_CORES = "from conr_ray.cores import usable_cores; print(usable_cores())"


def made(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A file system whose process is in `groups`, with these files of cgroups."""
    files = {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{f}": t for f, t in files.items()}}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        ("0::/", {}, math.inf),
        # A limit of the group, of one around it, of the smaller of both.
        ("0::/a/b", {"a/b/cpu.max": "200000 100000", "a/cpu.max": "max 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, 2),
        # A path of the host, seen from within a container.
        ("0::/host/only", {"cpu.max": "400000 100000"}, 4),
        # Version 1, under either name of its mount, and beside version 2.
        (
            "3:cpu,cpuacct:/docker/1\n0::/",
            {
                "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "250000",
                "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("1:cpu:/\n0::/", {"unified/cpu.max": "100000 100000"}, 1),
        ("1:memory:/", {"memory/cpu.max": "100000 100000"}, math.inf),
        ("0::/", {"cpu.max": "what is this"}, math.inf),
    ],
)
def test_the_smallest_quota_of_all_groups_holds(
    tmp_path: Path, groups: str, files: dict[str, str], cores: float
) -> None:
    assert cgroup_quota(made(tmp_path, groups, files)) == cores


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path) == math.inf


def test_affinity_limits_the_cores() -> None:
    code = f"import os; os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}}); {PRINT_CORES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_real_quota_limits_the_cores() -> None:
    group = Path(f"/sys/fs/cgroup/cpu/conr_ray_test_{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("50000")
    except OSError as error:
        pytest.skip(f"cgroups v1 cannot be made here: {error}")
    try:
        enter = f"open('{group}/cgroup.procs', 'w').write(str(__import__('os').getpid())); "
        done = subprocess.run(
            [sys.executable, "-c", enter + PRINT_CORES], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("1\n", "")
    finally:
        group.rmdir()
