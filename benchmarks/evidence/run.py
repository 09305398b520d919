"""Is it safe, does it keep the rest, does it stand attacks? Every row in every world, on the embedded model.

    python benchmarks/evidence/run.py [--worlds full few_24] [--rows winner_only redirect_keep]
                                      [--seeds 0 1 2] [--attacks light] [--frontier] [--table PAGE]
    python benchmarks/evidence/run.py --tune duo mapo        decides the grid of peers, by the tuning captions
    python benchmarks/evidence/run.py --quick --json FILE    the main claims, ten minutes on two cores

What is known is kept under runs/evidence and not computed again. Any number of processes may be started with
the same arguments: each takes what nobody else works on (or its own part, with --shard 1/4), and a last call
draws the tables. Every world, row and seed has one result file with the verdict on every caption.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.evidence import tables  # noqa: E402
from benchmarks.evidence.attacks import LIGHT, Trials  # noqa: E402
from benchmarks.evidence.quick import default_work, quick  # noqa: E402
from benchmarks.evidence.rows import ROWS  # noqa: E402
from benchmarks.evidence.runner import CAPTIONS, Job, Runner, Scale, shard  # noqa: E402
from benchmarks.evidence.tuning import load_tuned, tune  # noqa: E402
from benchmarks.evidence.worlds import WORLDS  # noqa: E402
from benchmarks.tables import place_for, put  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.types import ScdpoError  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    scale = Scale(options.base, options.captions, options.steps, options.batch, options.limit)
    runner = Runner(options.work, scale, load_tuned(options.work))
    try:
        if options.tune:
            found = tune(options.tune, options.work, scale)
            print(json.dumps(found, indent=2))
            _keep(options.json, found)
            return 0
        if options.quick:
            claims = quick(runner, options.seeds[0])
            print(json.dumps(claims, indent=2))
            _keep(options.json, claims)
            return 0
        attacks = _attacks(options.attacks, runner)
        jobs = [Job(*job) for job in product(options.worlds, options.rows, options.seeds)]
        failed = 0 if options.only_table else _run(runner, jobs, attacks, options)
        _report(runner, jobs, options)
        return 1 if failed else 0
    except ScdpoError as error:
        print(f"Stopped: {error}", file=sys.stderr)
        return 2


def _run(runner: Runner, jobs: Sequence[Job], attacks: Sequence[str], options: argparse.Namespace) -> int:
    """Run all jobs that nobody else runs; returns how many failed, which stops none of the others."""
    number, of = options.shard
    failed = 0
    for job in shard(jobs, number, of, seed=os.getpid()):
        try:
            result = runner.run(job, attacks, frontier=options.frontier)
        except ScdpoError as error:
            failed += 1
            print(f"{job.world}, {job.row}, seed {job.seed}: {error}", file=sys.stderr)
            continue
        if result is None:
            print(f"{job.world}, {job.row}, seed {job.seed}: another process is at it", file=sys.stderr)
            continue
        told = {name: result.rate(name) for name in ("harmful", "heldout", "benign", "ghosts")}
        told |= {name: result.attack_rate(name) for name in result.attacks}
        rates = ", ".join(f"{name} {value:.3f}" for name, value in told.items() if value is not None)
        print(f"{job.world}, {job.row}, seed {job.seed}: {rates}", flush=True)
    return failed


def _report(runner: Runner, jobs: Sequence[Job], options: argparse.Namespace) -> None:
    """Print the tables of what is known, and put them where they are asked for."""
    # The same tables stand in a page more than once: of the embedded model, of its siblings, of chosen rows.
    part = options.part or ("" if runner.scale.base == "micro" else Path(runner.scale.base).stem)
    worlds = dict.fromkeys(job.world for job in jobs)
    found: dict[str, dict[str, list[tables.Result]]] = {}
    for world in worlds:
        by_row: dict[str, list[tables.Result]] = {}
        for job in jobs:
            result = runner.result(job)
            if job.world == world and result.hits:
                by_row.setdefault(job.row, []).append(result)
        if by_row:
            found[world] = by_row
    texts: dict[str, str] = {}
    if "full" in found:
        trials = Trials([], [], runner.scale.base, 0, runner.work)
        texts["rows"] = tables.main_table(found["full"])
        texts["cost"] = tables.cost_table(found["full"])
        texts["attacks"] = tables.attack_table(found["full"], trials.names())
    if found.keys() - {"full"}:
        texts["worlds"] = tables.worlds_table(found)
    if "rare" in found:
        texts["rare"] = tables.category_table(found["rare"], "insult")
    for name, text in texts.items():
        print(f"\n{text}")
        place = f"{name}, {part}" if part else name
        # A part shows the tables that it has a place for.
        if options.table is not None and (not part or place_for(options.table, place)):
            put(options.table, place, text)
    _keep(
        options.json,
        {
            world: {row: [vars(one) for one in own] for row, own in rows.items()}
            for world, rows in found.items()
        },
    )


def _keep(file: Path | None, value: object) -> None:
    if file is not None:
        write_json(file, json.loads(json.dumps(value, default=str)))


def _attacks(requests: Sequence[str], runner: Runner) -> list[str]:
    known = Trials([], [], runner.scale.base, 0, runner.work).names()
    if requests == ["full"]:
        return known
    if requests == ["light"]:
        return list(LIGHT)
    if requests == ["none"]:
        return []
    unknown = [name for name in requests if name not in known]
    if unknown:
        raise ScdpoError(f"There is no attack '{unknown[0]}'. There are: {', '.join(known)}.")
    return list(requests)


def _part(text: str) -> tuple[int, int]:
    """2/4 as (1, 4)."""
    number, slash, of = text.partition("/")
    if not slash or not number.isdecimal() or not of.isdecimal() or not 1 <= int(number) <= int(of):
        raise argparse.ArgumentTypeError(f"'{text}' should read like 2/4.")
    return int(number) - 1, int(of)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--worlds", nargs="+", choices=list(WORLDS), default=["full"])
    add("--rows", nargs="+", choices=list(ROWS), default=["base", "winner_only", "sc_dpo", "redirect_keep"])
    add("--seeds", nargs="+", type=int, default=[0])
    add("--attacks", nargs="+", default=["none"], help="none, light, full, or names of attacks")
    add("--frontier", action="store_true", help="measure each LoRA at other strengths too")
    add("--work", type=Path, default=default_work(), help="folder of what is kept")
    add("--base", default="micro", help="a base model that draws the embedded world")
    add("--captions", choices=list(CAPTIONS), default="evaluation")
    add("--steps", type=int, help="training steps instead of the preset's")
    add("--batch", type=int, help="pairs a step instead of the preset's")
    add("--limit", type=int, default=0, help="captions of each group, for a quick look")
    add("--shard", type=_part, default=(0, 1), help="I/N: only this part of the jobs")
    add("--only-table", action="store_true", help="compute nothing new")
    add("--quick", action="store_true", help="the main claims in ten minutes")
    add("--tune", nargs="+", choices=[name for name, row in ROWS.items() if row.grid], help="rows to tune")
    add("--json", type=Path, help="file for what was found")
    add("--table", type=Path, help="page whose tables are replaced")
    add("--part", default="", help="which tables of the page: those with this name behind theirs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
