"""Show a training in a terminal: progress bars, or plain lines where output is redirected."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..io.printable import printable
from ..reports.metrics import METRICS, PHASES, TERM_METRICS
from ..reports.wording import duration
from ..run_store.events import Estimated, Event, Progress, Started, Validated, Warned

if TYPE_CHECKING:
    from tqdm import tqdm


@contextmanager
def bars(
    *, quiet: bool = False, stay: bool = False, unit: str = "it"
) -> Iterator[Callable[[str, int, int], None]]:
    """Show one progress bar for each phase on a terminal, nothing elsewhere.

    Args:
        quiet: show nothing on a terminal either.
        stay: keep the bars of finished phases on the screen.
        unit: of what is counted.

    Yields:
        A function of phase, amount done, and total.
    """
    # Imported here, because hosts lack it.
    from tqdm import tqdm

    by_phase: dict[str, tqdm] = {}

    def update(phase: str, done: int, total: int) -> None:
        if phase not in by_phase:
            by_phase[phase] = tqdm(desc=phase, disable=True if quiet else None, leave=stay, unit=unit)
        bar = by_phase[phase]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            # The next line must not follow the bar on its line.
            by_phase.pop(phase).close()

    try:
        yield update
    finally:
        for bar in by_phase.values():
            bar.close()


def lines(say: Callable[[str], None], unit: str, every: float = 15.0) -> Callable[[str, int, int], None]:
    """Write a line now and then with the time left, where no terminal shows bars.

    Args:
        say: writes a line.
        unit: of what is counted.
        every: seconds between two lines of the same work.

    Returns:
        A function of phase, amount done, and total.
    """
    began: dict[str, tuple[float, int]] = {}
    last_written: dict[str, float] = {}

    def update(phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = began.setdefault(phase, (now, done))
        if done < total and now - last_written.setdefault(phase, now) < every:
            return
        last_written[phase] = now
        # Work of an earlier process does not count for this one's speed.
        newly_done = done - first
        left = (
            f", {duration((total - done) * (now - start) / newly_done)} left"
            if newly_done > 0 and done < total
            else ""
        )
        say(f"{phase} {done:,} of {total:,}{unit}{left}")

    return update


FIGURES = {
    name: METRICS[name].short
    for name in (
        "loss",
        *TERM_METRICS,
        "preference_loss",
        "u",
        "implicit_accuracy",
        "winner_gap",
        "loser_gap",
    )
}
HELD_OUT = {"accuracy": "accuracy", "winner_gap": "winner", "loser_gap": "loser"}
_EVERY = 5.0  # seconds between two lines


class Screen:
    """Shows events: bars on a terminal, plain lines everywhere else.

    Training continues when the terminal is closed; output then ends silently.
    """

    def __init__(self) -> None:
        """Show on standard output, and bars on standard error."""
        # Of the processes that accelerate starts, rank 0 writes.
        self._watched = os.environ.get("RANK", "0") == "0"
        self._bars = sys.stderr.isatty()
        self._bar: Any = None
        self._phase = ""
        self._written_at = 0.0

    def show(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Progress):
            self._try(lambda: (self._draw if self._bars else self._write)(event))
        elif isinstance(event, Started):
            resumed = f" from step {event.first_step}" if event.first_step else ""
            epochs = f" ({event.epochs:g} epochs)" if event.epochs else ""
            amount = f"{event.pairs} pairs, {event.steps} steps{epochs}{resumed}"
            self.say(f"Run {event.run}: {amount}, on {event.device}")
        elif isinstance(event, Validated):
            self.say(f"Step {event.step}, {event.pairs} pairs held out: {_figures(event.metrics, HELD_OUT)}")
        elif isinstance(event, Estimated):
            available = "" if event.available is None else f" of {event.available / 2**30:.1f} available"
            time_needed = "" if event.seconds is None else f", and {duration(event.seconds)}"
            self.say(f"Training needs about {event.memory / 2**30:.1f} GiB{available}{time_needed}.")
        elif isinstance(event, Warned):
            self.say(f"Note: {event.message}")

    def say(self, line: str) -> None:
        """Write a line without tearing the bar."""

        def say() -> None:
            if self._bar is not None:
                self._bar.clear()
            _line(line)

        self._try(say)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._try(self._bar.close)
            self._bar = None

    def _try(self, show: Callable[[], None]) -> None:
        try:
            if self._watched:
                show()
        except OSError:
            self._watched = False
            # The rest of the buffer would fail once more when Python exits.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def _draw(self, event: Progress) -> None:
        # Imported here, because hosts lack it.
        from tqdm import tqdm

        if self._bar is None or event.phase != self._phase:
            self.close()
            self._phase = event.phase
            self._bar = tqdm(
                total=event.total, desc=PHASES[event.phase], initial=event.step, dynamic_ncols=True
            )
        self._bar.update(event.step - self._bar.n)
        if event.metrics:
            self._bar.set_postfix_str(_figures(event.metrics, FIGURES))

    def _write(self, event: Progress) -> None:
        """Write a line every few seconds, and always the last of a phase."""
        now = time.monotonic()
        if event.step < event.total and event.phase == self._phase and now - self._written_at < _EVERY:
            return
        self._phase, self._written_at = event.phase, now
        left = "" if not event.seconds_left else f"  {duration(event.seconds_left)} left"
        figures = _figures(event.metrics, FIGURES)
        _line(f"{PHASES[event.phase]} {event.step}/{event.total}{'  ' if figures else ''}{figures}{left}")


def _line(text: str) -> None:
    sys.stdout.write(f"{printable(text, lines=True)}\n")
    sys.stdout.flush()


def _figures(metrics: Mapping[str, float | None], names: Mapping[str, str]) -> str:
    figures = ((short, metrics.get(name)) for name, short in names.items())
    return " ".join(f"{short} {value:.3g}" for short, value in figures if value is not None)
