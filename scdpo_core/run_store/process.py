"""Processes told apart: a number is used again, a number together with a moment of birth is not."""

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
    """A process, and no later one with the same number.

    Attributes:
        pid: its number.
        token: differs between any two processes of this machine that ever had that number.
    """

    pid: int
    token: str


def _look_with_psutil(pid: int) -> tuple[str, float] | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        born = process.create_time()
    except psutil.Error:
        return None
    return repr(born), born


def look(pid: int) -> tuple[ProcessId, float] | None:
    """Who has that number now, and when it was born in seconds since 1970; None if nobody lives there."""
    found = _look(pid) if 0 < pid < _MOST else None
    return None if found is None else (ProcessId(pid, found[0]), found[1])


def alive(process: ProcessId) -> bool:
    """Whether that very process still runs. One that has ended and was not yet waited for does not."""
    found = look(process.pid)
    return found is not None and found[0] == process


def end(process: ProcessId) -> None:
    """End it and what it has started, at once and without a word to it; nothing if it is gone."""
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
            # Only the leader of a group may take the group with it: a run that a shell started shares one.
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


if sys.platform == "linux":
    # psutil's moment of birth moves when the clock is set; ticks since the machine's start do not.
    def _look(pid: int) -> tuple[str, float] | None:
        try:
            # The name before the last bracket may hold anything.
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return None
        if fields[0] in (b"Z", b"X"):
            return None
        ticks = int(fields[19])
        # Not /proc/uptime: some containers see their own there, and the machine's ticks in stat.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return f"{boot}:{ticks}", time.time() - age

else:
    _look = _look_with_psutil
