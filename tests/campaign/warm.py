"""A process that has imported everything and forks one command after another, so that a kill costs no start.

Reads jobs from its input, a line of JSON each, and answers with the pid and then with how it ended.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHANGES = ("replace", "rename", "link", "unlink", "fsync", "mkdir")
"""What changes the disk; a process may be killed right before any of them."""


def label(source: str, target: str) -> None:
    """Answer every question of a labelling, and take one answer in three back before it is given again."""
    from scdpo_core.preferences.labelling_session import Session

    session = Session(Path(source), Path(target))
    while (current := session.view().current) is not None:
        number = session.view().answered
        choice = ("left", "right", "skip")[number % 3] if number % 4 else "left"
        session.answer(current.id, choice, category="benign" if number % 2 else "weapon")  # type: ignore[arg-type]
        if number % 3 == 1 and session.view().can_undo and not os.environ.get("UNDONE"):
            session.undo()
            session.answer(current.id, "right")


def count_changes(last: int | None, counted: Path) -> None:
    """Count what changes the disk into a file, and die right before the change of that number."""
    done = [0]

    def hook(real: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **more: Any) -> Any:
            if done[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done[0] += 1
            return real(*arguments, **more)

        return change

    for name in CHANGES:
        setattr(os, name, hook(getattr(os, name)))

    import atexit

    atexit.register(lambda: counted.write_text(str(done[0])))


def work(job: dict[str, Any]) -> int:
    """Run a job in this process; returns the exit code."""
    screen = os.open(job["screen"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(screen, 1)
    os.dup2(screen, 2)
    counted = Path(job["screen"]).with_suffix(".count")
    counted.unlink(missing_ok=True)
    count_changes(job["last"], counted)
    try:
        if job["script"] == "label":
            label(*job["words"])
        else:
            sys.argv = [job["script"], *job["words"]]
            runpy.run_path(job["script"], run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        return 99


def main() -> None:
    """Import what the commands import, then fork."""
    sys.path.insert(0, str(ROOT))
    for name in ("score", "train_lora", "train_cost", "lora"):
        runpy.run_path(str(ROOT / "trainer" / f"{name}.py"), run_name="warm")
    import scdpo_core.cost.open_nsfw
    import scdpo_core.preferences.labelling_session
    import scdpo_core.training.job  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        began, child = time.monotonic(), os.fork()
        if child == 0:
            import atexit
            import logging

            code = work(json.loads(line))
            logging.shutdown()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(code)
        print(child, flush=True)
        status = os.waitpid(child, 0)[1]
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main()
