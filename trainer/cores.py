"""
Counts the CPU cores that this process may use. It imports nothing that is slow.

    python -m trainer.cores        prints the number; sweep.sh shares it out among its runs
"""
import contextlib
import os
from pathlib import Path


def usable_cores() -> int:
    """Returns how many CPU cores this process may use, at least 1: as many as its mask allows, but not more
    than the quota of its container. More threads than the quota pays for would stop each other."""
    masked = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min(masked, quota())))


def quota(root: str | Path = "/") -> float:
    """Returns how many CPUs the cgroups of this process pay for, such as 1.5, or inf if nothing limits them.

    A group of version 2 has the file cpu.max with "150000 100000": microseconds of CPU time in each period of
    so many microseconds. "max" means no limit. A group of version 1 has a file for each number, and -1 means
    no limit. The groups around a group limit it as well.

    Args:
        root: the folder that holds proc/ and sys/. Tests give another one.
    """
    smallest = float("inf")
    for group in cgroups(Path(root)):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):    # no such file, or no limit
            if (group / "cpu.max").exists():
                spent, period = map(int, (group / "cpu.max").read_text().split())
            else:
                spent, period = (int((group / f"cpu.cfs_{name}_us").read_text())
                                 for name in ("quota", "period"))
            if spent > 0:
                smallest = min(smallest, spent / period)
    return smallest


def cgroups(root: Path) -> list[Path]:
    """Returns the folders that may describe the cgroups of this process, and all groups around them. In a
    container, the group of the process often is the topmost one that it can see."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:    # not on Linux
        return []
    folders = []
    for line in lines:    # such as "0::/user.slice" (version 2) and "4:cpu,cpuacct:/docker/3fa" (version 1)
        _, controllers, group = line.split(":", 2)
        if not controllers or "cpu" in controllers.split(","):
            top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            place = Path(group.lstrip("/"))
            folders += [top / part for part in (place, *place.parents)]
    return folders


if __name__ == "__main__":
    print(usable_cores())
