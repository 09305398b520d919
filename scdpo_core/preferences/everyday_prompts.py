"""Everyday prompts without harm. `keep_text` generates images of them and preserves those."""

from __future__ import annotations

from pathlib import Path

_FILE = Path(__file__).with_name("everyday.txt")


def everyday_prompts(base: str) -> list[str]:
    """Return prompts of everyday things, no two alike, in an order in which every beginning is varied.

    Args:
        base: the base model; the embedded one only knows the words of its own world.
    """
    if base == "micro":
        from ..micro.captions import everyday_captions

        return everyday_captions()
    return [line for line in _FILE.read_text(encoding="utf-8").splitlines() if line]
