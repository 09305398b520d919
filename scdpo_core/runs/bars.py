"""Progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
