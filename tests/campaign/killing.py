"""Commands that are killed again and again, and what must be true of their folders all the while."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINER = ROOT / "trainer"
SEED = 19
TIMES = int(os.environ.get("SCDPO_KILLS", "1"))


@dataclass
class Warm:
    """Runs commands, and kills them.

    Attributes:
        screen: what the commands wrote.
        kills: how many processes were killed while they worked.
    """

    screen: Path
    kills: int = 0
    _process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        assert self._line() == "ready"

    def run(self, script: str, words: Sequence[object], *, last: int | None = None, after: float = -1) -> int:
        """Run a command; kill it after some seconds, or right before a change of the disk.

        Returns:
            Its exit code, -9 if it was killed.
        """
        job = {"script": script, "words": [*map(str, words)], "screen": str(self.screen), "last": last}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        if after >= 0:
            # No longer than it takes: on a machine that was asleep, commands seem to take long.
            ended, _, _ = select.select([self._process.stdout], [], [], after)
            if not ended:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        code, self.seconds = json.loads(self._line())
        self.kills += code == -signal.SIGKILL
        return int(code)

    @property
    def changes(self) -> int:
        """How often the last command, which ended by itself, changed the disk."""
        return int(self.screen.with_suffix(".count").read_text())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the warm process ended"
        return line


@dataclass
class Case:
    """A command, and what must be true of its folder.

    Attributes:
        script: of trainer/, or 'label'.
        make: fills a new folder and returns the words of the command.
        always: checked after every kill.
        done: checked after the command has gone on to its end.
        again: the words with which a killed command goes on.
    """

    script: str
    make: Callable[[Path], list[object]]
    always: Callable[[Path], None]
    done: Callable[[Path], None]
    again: Callable[[Path, list[object]], list[object]] = lambda folder, words: words


def campaign(warm: Warm, case: Case, root: Path, kills: int) -> None:
    """Kill a command that often, in turns of one to three before it may end."""
    chance = random.Random(f"{SEED} {case.script} {root.name}")
    script = case.script if case.script == "label" else str(TRAINER / case.script)
    reference = root / "reference"
    reference.mkdir()
    assert warm.run(script, case.make(reference)) == 0, warm.screen.read_text()
    seconds, changes = warm.seconds, warm.changes
    case.done(reference)
    begun, turn = warm.kills, 0
    while warm.kills - begun < kills * TIMES:
        folder = root / f"turn{turn}"
        folder.mkdir()
        words, turn = case.make(folder), turn + 1
        for number in range(chance.randint(1, 3)):
            again = case.again(folder, words) if number else words
            if chance.random() < 0.5:
                code = warm.run(script, again, after=chance.uniform(0, seconds))
            else:
                code = warm.run(script, again, last=chance.randrange(changes))
            assert code in (0, -signal.SIGKILL), warm.screen.read_text()[-3000:]
            case.always(folder)
        assert warm.run(script, case.again(folder, words)) == 0, warm.screen.read_text()[-3000:]
        case.always(folder)
        case.done(folder)
        left = [path for path in folder.rglob(".*") if path.is_file() and path.name.startswith(".scdpo-")]
        assert left == [], "temporary files of killed processes stay"
        shutil.rmtree(folder)
    print(
        f"\n{case.script}: {warm.kills - begun} kills, {turn} completed, {changes} changes, {seconds:.1f} s"
    )
