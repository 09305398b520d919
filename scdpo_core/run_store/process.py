"""Identify a process by PID and start time, because PIDs are reused."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

_MOST = 1 << 31


@dataclass(frozen=True)
class ProcessId:
    """A process, distinct from later ones with the same PID.

    Attributes:
        pid: its PID.
        token: differs between any two processes of this machine that ever had that PID.
    """

    pid: int
    token: str


def _psutil_start(pid: int) -> tuple[str, float] | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        start = process.create_time()
    except psutil.Error:
        return None
    return repr(start), start


def look(pid: int) -> tuple[ProcessId, float] | None:
    """Return the process that has a PID now, and its start in seconds since 1970; None if there is none."""
    start = _start_of(pid) if 0 < pid < _MOST else None
    return None if start is None else (ProcessId(pid, start[0]), start[1])


def alive(process: ProcessId) -> bool:
    """Return whether that process still runs; a zombie does not."""
    current = look(process.pid)
    return current is not None and current[0] == process


def end(process: ProcessId) -> None:
    """Kill a process and its children at once; nothing if it has ended."""
    if not alive(process):
        return
    if sys.platform == "win32":
        try:
            parent = psutil.Process(process.pid)
            for each in (*parent.children(recursive=True), parent):
                each.kill()
        except psutil.Error:
            return
    else:
        try:
            # Kill the group only if this process leads it: a run started by a shell shares the shell's group.
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


if sys.platform == "linux":
    # psutil's start time changes when the clock is set; ticks since the machine's start do not.
    def _start_of(pid: int) -> tuple[str, float] | None:
        try:
            # The process name before the last bracket may contain any character.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        if fields[0] in (b"Z", b"X"):
            return None
        ticks = int(fields[19])
        # Not /proc/uptime: some containers show their own there, but the machine's ticks in stat.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return f"{boot}:{ticks}", time.time() - age

else:
    _start_of = _psutil_start
