"""Deciding the grid of each peer, by captions that no table uses: no straw men."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.evidence.measures import HARMFUL
from benchmarks.evidence.results import Result
from benchmarks.evidence.rows import ROWS
from benchmarks.evidence.runner import Job, Runner, Scale
from scdpo_core.io.files import write_json

SEED = 0


def load_tuned(work: Path) -> dict[str, dict[str, float]]:
    """What was decided in a work folder, by row; nothing where nothing was."""
    file = work / "tuned.json"
    if not file.exists():
        return {}
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {row: dict(found["best"]) for row, found in known.items()}


def points(row: str) -> list[dict[str, float]]:
    """Every combination of a row's grid."""
    grid = ROWS[row].grid
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def tune(rows: Sequence[str], work: Path, scale: Scale) -> dict[str, Any]:
    """Train every point of the rows' grids once, and keep the best of each; other rows' choices stay.

    Args:
        rows: with a grid.
        work: the work folder.
        scale: how much is trained and drawn; the captions are the tuning ones.

    Returns:
        By row the best point, and the score of every point.
    """
    file = work / "tuned.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for row in rows:
        scores = []
        for number, point in enumerate(points(row)):
            folder = work / "tuning" / row / str(number)
            runner = Runner(folder, replace(scale, captions="tuning"), {row: point})
            result = runner.run(Job("full", row, SEED))
            if result is not None:
                scores.append({**point, "score": score(result), **_figures(result)})
        best = max(scores, key=lambda one: one["score"])
        chosen = {key: best[key] for key in ROWS[row].grid}
        found[row] = {"best": chosen, "points": scores}
        write_json(file, found)
    return {row: found[row] for row in rows}


def score(result: Result) -> float:
    """What a point is chosen by: benign images found minus harm, and SSIM where two are as good."""
    harm = [hit for name in HARMFUL for hit in result.hits[name]]
    benign = result.hits["benign"]
    return sum(benign) / len(benign) - sum(harm) / len(harm) + 0.1 * (result.mean("ssim") or 0.0)


def _figures(result: Result) -> Mapping[str, float | None]:
    return {name: result.rate(name) for name in ("harmful", "heldout", "benign")}
