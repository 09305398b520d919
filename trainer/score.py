"""Score images for safety: `python trainer/score.py PATH... [--scorer NAME|FILE] [--html FILE]`.

Several processes or machines share a folder with `accelerate launch trainer/score.py ... --jsonl FILE`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import warnings
from collections.abc import Callable, Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    import torch
    from PIL import Image

    from scdpo_core.cost.attribution import METHODS
    from scdpo_core.cost.scorers import SCORERS, hub_names, load_scorer, offered_scorers
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.runs.console import bars
    from scdpo_core.scoring.distributed import join, run_job
    from scdpo_core.scoring.job import JobResult, ScoreJob, check
    from scdpo_core.scoring.run import BATCH
    from scdpo_core.scoring.table import Row
    from scdpo_core.scoring.write_back import STAMPS
    from scdpo_core.types import ScdpoError
    from trainer.arguments import count


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list_scorers:
        _list_scorers()
        return 0
    if not options.paths:
        parser.error("name at least one folder or image")
    # Large images have bounds of their own here.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        return _score(options)
    except ScdpoError as error:
        print(printable(f"Error: {error}", lines=True), file=sys.stderr)
        return 2
    except OSError as error:
        what = f"{error.filename or 'a file'} cannot be written ({error.strerror or error})."
        print(printable(f"Error: {what}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        hint = "Run the same command to continue." if options.jsonl else "With --jsonl it could be continued."
        print(f"Stopped. {hint}", file=sys.stderr)
        return INTERRUPTED


def _score(options: argparse.Namespace) -> int:
    member = join(_job(options), options.device)
    check(member.job)
    scorer = load_scorer(options.scorer, member.device)
    for name in hub_names(options.scorer) if member.leads else ():
        choice = SCORERS[name]
        print(f"{name}: {choice.download}, {choice.licence}, {choice.megabytes} MB", file=sys.stderr)
    with bars(quiet=not member.leads, stay=True, unit=" files") as progress:
        result = run_job(member, scorer, progress)
    if result is None:
        return 0
    _report(member.job, result)
    # Scripts go by this; what there was to complain of stands above.
    return 1 if result.problems else 0


def _report(job: ScoreJob, result: JobResult) -> None:
    written = [file for file in (job.jsonl, job.csv, job.parquet, job.html) if file is not None]
    if not written:
        for row in sorted(result.rows, key=_costliest_first):
            print(_line(row))
    for problem in (*result.notes, *result.problems):
        note = "" if problem.fatal else "Note: "
        print(printable(f"{note}{problem.path}: {problem.what}"), file=sys.stderr)
    scored = [row for row in result.rows if row.cost is not None]
    above = sum(row.cost is not None and row.cost > job.over for row in scored)
    failed = len(result.rows) - len(scored)
    parts = [f"{len(scored)} scored", f"{above} above {job.over:g}"]
    parts += [f"{result.reused} known already or the same as another"] if result.reused else []
    parts += [f"{failed} not scored"] if failed else []
    if job.write_back:
        parts.append(f"{len(scored) - len(result.unwritten)} written back")
    if job.move_to or job.copy_to:
        parts.append(f"{len(result.filed)} {'moved' if job.move_to else 'copied'}")
    print(f"{', '.join(parts)}.", file=sys.stderr)
    for file in written:
        print(printable(f"Written: {file}"), file=sys.stderr)


def _costliest_first(row: Row) -> tuple[float, str]:
    return (float("inf") if row.cost is None else -row.cost), row.path


def _line(row: Row) -> str:
    if row.cost is None:
        return printable(f"{'-':>8}  {'':6}  {row.path}: {row.error}")
    return printable(f"{row.cost:+8.2f}  {row.band:6}  {row.path}")


def _list_scorers() -> None:
    for name in offered_scorers():
        choice = SCORERS[name]
        where = f"hub: {choice.download}" if choice.download else "installed"
        print(f"{name:13}  {choice.about}\n{'':15}{choice.licence}, {choice.megabytes} MB, {where}")


def _job(options: argparse.Namespace) -> ScoreJob:
    return ScoreJob(
        places=options.paths,
        jsonl=options.jsonl,
        csv=options.csv,
        parquet=options.parquet,
        html=options.html,
        every=options.every,
        batch=options.batch,
        over=options.over,
        move_to=options.move_over,
        copy_to=options.copy_over,
        write_back=options.write_back,
        heatmaps=options.heatmaps,
        method=options.explain,
        rescore=options.anew,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="How harmful is each image? One number; above 0 is harmful. Nothing leaves the machine."
    )

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        help_text = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, help=help_text)

    parser.add_argument(
        "paths", nargs="*", type=Path, help="folders, searched with all subfolders, and images"
    )
    scorer = "a name (--list-scorers), a cost model file, or several joined by + (maximum) or ~ (mean)"
    add("--scorer", str, "embedded", scorer)
    parser.add_argument("--list-scorers", action="store_true", help="list the scorers and exit")
    add("--jsonl", Path, None, "a row of JSON for each file; the next run scores only what is new or changed")
    add("--csv", Path, None, "a table")
    add("--parquet", Path, None, "the same table as Parquet; needs pyarrow")
    add("--html", Path, None, "a gallery, highest costs first, blurred until clicked")
    add("--every", _whole, 0, "for animations, score every Nth frame; 0 for the first one alone")
    add("--over", float, 0.0, "the cost above which images are moved, copied or explained")
    add("--move-over", Path, None, "move images above --over into this folder, never onto an existing file")
    add("--copy-over", Path, None, "copy them instead")
    add("--heatmaps", Path, None, "for images above --over: show in this folder what raises the cost")
    parser.add_argument(
        "--explain",
        choices=METHODS,
        default="occlusion",
        help="method of --heatmaps: cover regions (any scorer), pixel gradients, or a transformer's tokens "
        "(default: occlusion)",
    )
    parser.add_argument(
        "--write-back",
        choices=sorted(STAMPS),
        help="write each score into its PNG, JPEG or WebP (losslessly), or into a file beside it",
    )
    parser.add_argument("--anew", action="store_true", help="score everything again")
    add("--batch", count, BATCH, "images in one call of the network")
    add("--device", str, "cuda" if torch.cuda.is_available() else "cpu", "where the network runs")
    return parser


def _whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


if __name__ == "__main__":
    sys.exit(main())
