#!/usr/bin/env python3
"""What scoring costs in A1111 and Forge: our hook beside the bare scorer, image by image, in turns.

    python benchmarks/webui.py [--rounds 40] [--size 512]

The hook hands the image to the extension's guard and reads a few attributes; the guard is what is timed.
The scorer is the embedded one. Every image is hidden, which is the dearest that can happen to it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from a1111_extension.image_filter import Guard
from a1111_extension.policy import Policy
from scdpo_core.cost.scorers import load_scorer

MOST = 1.3


def main() -> int:
    """Measure, print, and say whether the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="images scored either way")
    parser.add_argument("--size", type=int, default=512, help="side of the images, pixels")
    options = parser.parse_args()
    noise = np.random.default_rng(0).integers(0, 256, (options.size, options.size, 3), np.uint8)
    image, scorer = Image.fromarray(noise), load_scorer("embedded")
    guard = Guard(Policy(-30.0, "blur", "blur"), lambda seen: scorer.score([seen])[0], lambda *_: None)
    bare, hook = [], []
    scorer.score([image])
    for number in range(options.rounds):
        bare.append(timed(lambda: scorer.score([image])))
        fresh = image.copy()
        hook.append(timed(lambda place=(number, 0), fresh=fresh: guard.review(fresh, place)))
    assert all(verdict.action == "blur" for verdict in guard.verdicts.values())
    ratio = statistics.median(hook) / statistics.median(bare)
    print(f"bare scorer   {statistics.median(bare) * 1000:7.1f} ms an image (median of {options.rounds})")
    print(f"in the hook   {statistics.median(hook) * 1000:7.1f} ms an image")
    print(f"ratio         {ratio:7.2f}    (at most {MOST})")
    return 0 if ratio <= MOST else 1


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
