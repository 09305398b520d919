"""Processes told apart: a number is used again, a number together with a moment of birth is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_MOST = 1 << 31
_UNIX_EPOCH = 11_644_473_600  # in seconds since 1601, from where Windows counts


@dataclass(frozen=True)
class ProcessId:
    """A process, and no later one with the same number.

    Attributes:
        pid: its number.
        token: differs between any two processes of this machine that ever had that number.
    """

    pid: int
    token: str


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
        command = ["taskkill", "/T", "/F", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, creationflags=subprocess.CREATE_NO_WINDOW)
    else:
        try:
            # Only the leader of a group may take the group with it: a run that a shell started shares one.
            if os.getpgid(process.pid) == process.pid:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


if sys.platform == "win32":

    def _look(pid: int) -> tuple[str, float] | None:
        import ctypes
        from ctypes import wintypes

        kernel = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel.OpenProcess.restype = wintypes.HANDLE
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return None
        handle = wintypes.HANDLE(handle)
        try:
            code, times = wintypes.DWORD(), [wintypes.FILETIME() for _ in range(4)]
            known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
            known = known and kernel.GetProcessTimes(handle, *map(ctypes.byref, times))
        finally:
            kernel.CloseHandle(handle)
        if not known or code.value != 259:  # STILL_ACTIVE
            return None
        born = (times[0].dwHighDateTime << 32) + times[0].dwLowDateTime
        return str(born), born / 1e7 - _UNIX_EPOCH

elif sys.platform == "linux":

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

    def _look(pid: int) -> tuple[str, float] | None:
        command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
        told = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
        ).stdout
        status, _, born = told.strip().partition(" ")
        if not born or status.startswith("Z"):
            return None
        return born.strip(), time.mktime(time.strptime(born.strip(), "%a %b %d %H:%M:%S %Y"))
