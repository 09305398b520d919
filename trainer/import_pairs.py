"""Import preference pairs: `python trainer/import_pairs.py SOURCE --output my_pairs`.

SOURCE is a folder or a table of another tool or data set; `--help` lists what is read.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import warnings
from collections.abc import Sequence
from typing import Any, get_args

from scdpo_core.runs.interrupt import INTERRUPTED, StopSignals, waking

with waking():
    from PIL import Image

    from scdpo_core.errors import explain
    from scdpo_core.importers.columns import ROLES, parse_mapping
    from scdpo_core.importers.folders import Match
    from scdpo_core.importers.job import ALIASES, FORMATS, By, ImportJob
    from scdpo_core.importers.report import next_step, summary
    from scdpo_core.importers.rows import PerPrompt
    from scdpo_core.importers.run import ImportOutcome, run_import
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.runs.console import bars, lines
    from trainer.arguments import count

_GO_ON = "Stopped. Run the same command to continue."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    # Large images have bounds of their own here.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with waking():
            job = _job(_parser().parse_args(arguments))
        return _import(job)
    except KeyboardInterrupt:
        print(_GO_ON, file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise
        print(printable(f"Error: {sentence}", lines=True), file=sys.stderr)
        return 2


def _import(job: ImportJob) -> int:
    def say(sentence: str) -> None:
        print(printable(sentence), file=sys.stderr, flush=True)

    stop = StopSignals(say)
    with bars(stay=True, unit=" rows") as show:
        progress = show if sys.stderr.isatty() else lines(say, " rows")
        outcome = run_import(job, progress, stop.asked)
    _report(job, outcome)
    if outcome.stopped:
        say(_GO_ON)
        return INTERRUPTED
    # Scripts go by this: with no pair there is nothing to train on.
    return 0 if outcome.state.imported or outcome.state.repeated else 1


def _report(job: ImportJob, outcome: ImportOutcome) -> None:
    if outcome.restarted:
        print("The source has changed since the last import, so it was read from its beginning.")
    print(summary(job, outcome.state))
    if outcome.limited:
        print("Ended at --limit; the same command without it goes on.")
    if outcome.left_over:
        print(f"Prompts of harmless images without a partner, in benign_prompts.txt: {outcome.left_over:,}")
    if outcome.report is not None:
        print(printable(f"Report: {outcome.report}"))
    print()
    print(next_step(job, outcome.state))


def _job(options: argparse.Namespace) -> ImportJob:
    values = vars(options) | {"columns": parse_mapping(options.columns), "images": tuple(options.images)}
    return ImportJob(**values)


def _parser() -> argparse.ArgumentParser:
    formats = "\n".join(f"  {name:12} {about}" for name, about in FORMATS.items())
    other = ", ".join(f"{alias} for {name}" for alias, name in ALIASES.items())
    parser = argparse.ArgumentParser(
        description="Make a preference folder out of pairs that another tool or data set has. Your files are "
        "never changed, and nothing is downloaded. After an interruption, run the same command to continue.",
        epilog=f"formats:\n{formats}\n  Other names: {other}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def add(flag: str, text: str, default: Any = None, **more: Any) -> None:
        help_text = text if default in (None, "", (), 0) else f"{text} (default: {default})"
        parser.add_argument(flag, help=help_text, default=default, **more)

    source = "folder of images, or table: CSV, TSV, JSONL, JSON, Parquet, or a folder of Parquet shards"
    parser.add_argument("source", nargs="?", type=Path, help=source)
    add("--output", "preference folder to make, or to add to", type=Path, required=True)
    add("--chosen", "folder of preferred images, instead of a source", type=Path)
    add("--rejected", "folder of the others, under the same names", type=Path)
    formats_known = ["auto", *FORMATS, *ALIASES]
    add("--format", "what the source is, see below", "auto", choices=formats_known, metavar="NAME")
    meanings = ", ".join(ROLES)
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="MEANING=COLUMN",
        help=f"columns of a table with other names, such as chosen=win_file; meanings: {meanings}",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="further folders with images of the source; nothing outside of them and the source is read",
    )
    add("--by", "copy the images, or link to them, which takes no space", "copy", choices=get_args(By))
    several = "of several rated images of a prompt: the best against the worst, or all pairs"
    add("--per-prompt", several, "best-worst", choices=get_args(PerPrompt))
    unpaired = "pair images without equal names by equal prompts, and with 'random' the rest at random"
    add("--match", unpaired, "prompt", choices=get_args(Match))
    category = "category of pairs for which the source names none; benign for harmless prompts"
    add("--category", f"{category} (default: benign for pickapic and hpd, else none)", "")
    add("--prompt", "prompt of pairs for which neither the source nor an image states one", "")
    add("--limit", "number of pairs, approximately (default: all)", 0, type=count)
    add("--seed", "of random pairing (default: 0)", 0, type=int)
    parser.add_argument("--dry-run", action="store_true", help="say what would be made, and write nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
