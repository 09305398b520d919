"""Progress bars on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..reports.wording import duration

if TYPE_CHECKING:
    from tqdm import tqdm


@contextmanager
def bars(
    *, quiet: bool = False, stay: bool = False, unit: str = "it"
) -> Iterator[Callable[[str, int, int], None]]:
    """One progress bar for each kind of work on a terminal, nothing elsewhere.

    Args:
        quiet: show nothing on a terminal either.
        stay: leave the bars of finished work on the screen.
        unit: of what is counted.

    Yields:
        Is told what is being done, how much of it is done, and how much there is.
    """
    # Here, since hosts lack it.
    from tqdm import tqdm

    shown: dict[str, tqdm] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in shown:
            shown[what] = tqdm(desc=what, disable=True if quiet else None, leave=stay, unit=unit)
        bar = shown[what]
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            # What is said next must not stand behind it.
            shown.pop(what).close()

    try:
        yield update
    finally:
        for bar in shown.values():
            bar.close()


def lines(say: Callable[[str], None], unit: str, every: float = 15.0) -> Callable[[str, int, int], None]:
    """A line now and then with the time that is left, for where no terminal shows bars.

    Args:
        say: writes a line.
        unit: of what is counted.
        every: seconds between two lines of the same work.

    Returns:
        Is told what is being done, how much of it is done, and how much there is.
    """
    began: dict[str, tuple[float, int]] = {}
    told: dict[str, float] = {}

    def update(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        start, first = began.setdefault(what, (now, done))
        if done < total and now - told.setdefault(what, now) < every:
            return
        told[what] = now
        # What an earlier process did says nothing of this one's speed.
        new = done - first
        left = f", {duration((total - done) * (now - start) / new)} left" if new > 0 and done < total else ""
        say(f"{what} {done:,} of {total:,}{unit}{left}")

    return update
