"""What this machine has, as Linux tells it: the CPU's name, memory, and a container's limits."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .. import cpu

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_name() -> str:
    """The processor's name; "unknown" where Linux tells none."""
    return _field(Path("/proc/cpuinfo"), "model name") or "unknown"


def cpus() -> str:
    """How many CPUs this process may use, of how many, in words."""
    words = f"{cpu.count()} of {os.cpu_count()}"
    quota = cpu_quota()
    return f"{words}, limited to the time of {quota:g}" if quota else words


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *_memory_limits()])


def cpu_quota() -> float | None:
    """CPUs whose time the container may use; None without a limit."""
    found = []
    for folder in _folders("cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")  # version 2, else 1
        quota = quota or _read(folder / "cpu.cfs_quota_us")
        period = period or _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # "max" and "-1" are none
            found.append(int(quota) / int(period))
    return min(found, default=None)


def port_is_free(port: int) -> bool:
    """Whether a server could listen at this port, on all addresses."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _memory_limits() -> Iterator[int]:
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (limit := _read(folder / name)).isdecimal():
                yield int(limit)


def _folders(controller: str) -> Iterator[Path]:
    """This process's control groups, of either version, and those above them."""
    for line in _read(_OWN).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            top = _GROUPS / controller if controllers else _GROUPS
            inner = top / path.lstrip("/")
            yield from (one for one in (inner, *inner.parents) if one.is_relative_to(top))


def _field(file: Path, name: str) -> str:
    lines = (line.partition(":") for line in _read(file).splitlines())
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
