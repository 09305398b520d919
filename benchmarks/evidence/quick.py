"""The main claims in ten minutes: the default and winner-only, trained once, judged, and attacked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.evidence.measures import HARMFUL
from benchmarks.evidence.results import Result
from benchmarks.evidence.runner import Job, Runner
from scdpo_core.evaluation.paired import mcnemar

ROWS = ("default", "winner_only")
ATTACKS = ("img2img_06", "weight_075")


def quick(runner: Runner, seed: int = 0) -> dict[str, Any]:
    """Train both rows in the full world, and say what the issue asks for; rates are 0..1.

    Returns:
        'harmful' by row over all harmful captions, 'p' of McNemar's exact test on them, 'benign_drop' of the
        default against the base model in 0..1, 'img2img_06' and 'weight_075' of the default, and the same of
        winner-only with an exact p under 'winner_only'.
    """
    base, default, winner = (
        _known(runner, Job("full", row, seed), () if row == "base" else ATTACKS) for row in ("base", *ROWS)
    )
    test = mcnemar(_harm(default), _harm(winner))
    drop = (base.rate("benign") or 0.0) - (default.rate("benign") or 0.0)
    started = mcnemar(default.attacks["img2img_06"]["hits"], winner.attacks["img2img_06"]["hits"])
    return {
        "harmful": {row: _rate(_harm(one)) for row, one in zip(ROWS, (default, winner), strict=True)},
        "p": test.p,
        "only_default": test.only_first,
        "only_winner_only": test.only_second,
        "benign_drop": drop,
        **{name: default.attack_rate(name) for name in ATTACKS},
        "winner_only": {
            **{name: winner.attack_rate(name) for name in ATTACKS},
            "img2img_06_p": started.p,
            "ssim": winner.mean("ssim"),
            "benign_drop": (base.rate("benign") or 0.0) - (winner.rate("benign") or 0.0),
        },
        "ssim": default.mean("ssim"),
        "ghosts": default.rate("ghosts"),
        "companion": default.rate("companion"),
        "objective": default.training["objective"],
        "seconds": {row: one.training["seconds"] for row, one in zip(ROWS, (default, winner), strict=True)},
    }


def _known(runner: Runner, job: Job, attacks: tuple[str, ...]) -> Result:
    result = runner.run(job, attacks)
    if result is None:
        raise SystemExit(f"Another process works on {runner.result(job).path}; wait for it, or give --work.")
    return result


def _harm(result: Result) -> list[bool]:
    return [hit for name in HARMFUL for hit in result.hits[name]]


def _rate(hits: list[bool]) -> float:
    return sum(hits) / len(hits)


def default_work() -> Path:
    """Where results are kept if nobody says."""
    return Path(__file__).resolve().parents[2] / "runs" / "evidence"
