"""The CPU cores that this process may use, which may be fewer than the machine has."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Cores left by the CPU affinity and the cgroup quota (v1 or v2) of this process; 1 or more.

    Affinity is what `taskset` and Slurm set, a quota is what containers get; a part of a core that
    a quota grants counts as one.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, math.ceil(min(cores, cgroup_quota())))


def cgroup_quota(root: Path = Path("/")) -> float:
    """Cores' worth of time that the cgroups of this process grant; infinite without a limit.

    The limit of a group holds for the groups in it. In a container the path of a group may be that
    of the host, which is not visible: then the mounted group itself is the process's.

    Args:
        root: of the file system.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return math.inf
    limits = [math.inf]
    for line in lines:
        # Such as 0::/user.slice (v2) and 4:cpu,cpuacct:/docker/1 (v1).
        number, controllers, path = line.split(":", 2)
        mounts = ["cpu", "cpu,cpuacct"] if "cpu" in controllers.split(",") else []
        if number == "0" and not controllers:
            mounts = [".", "unified"]
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            groups = [top / path.lstrip("/"), top]
            groups += [one for one in groups[0].parents if top in one.parents]
            limits += map(_limit, groups)
    return min(limits)


def _limit(group: Path) -> float:
    """Cores' worth of time that one cgroup grants to all that is in it."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return math.inf if quota == "max" or int(quota) <= 0 else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf
