"""The memory that decoded images share."""

from __future__ import annotations

import threading
import time

from scdpo_core.io.decode_budget import DecodeBudget


def test_who_finds_too_little_waits() -> None:
    budget, lock = DecodeBudget(100), threading.Lock()
    held, most = 0, 0

    def work(size: int) -> None:
        nonlocal held, most
        with budget.take(size):
            with lock:
                held += min(size, 100)
                most = max(most, held)
            time.sleep(0.002)
            with lock:
                held -= min(size, 100)

    threads = [threading.Thread(target=work, args=(size,)) for size in (40, 40, 40, 1000, 60, 100, 1) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == 100 and held == 0


def test_nobody_waits_for_himself_and_errors_give_back() -> None:
    budget = DecodeBudget(100)
    for _ in range(3):
        try:
            with budget.take(100), budget.take(100):
                raise ValueError
        except ValueError:
            pass
    with budget.take(100):
        pass
