"""Train a safety cost model: `python trainer/train_cost.py --unsafe DIR --safe DIR --output FILE`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    import torch

    from scdpo_core.config.toml import as_flags
    from scdpo_core.cost.calibration import Figures
    from scdpo_core.cost.encoders import DEFAULT_ENCODER, ENCODERS
    from scdpo_core.cost.features import VIEWS
    from scdpo_core.cost.fit import CostSettings
    from scdpo_core.cost.job import CostOutcome, CostTask, run_cost_task
    from scdpo_core.cost.training_images import CheckedExamples
    from scdpo_core.errors import sentence_of
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.preferences.problems import in_words
    from scdpo_core.runs.console import bars
    from scdpo_core.runs.log import Reporter
    from trainer.arguments import count, positive, share, weight


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config", type=Path)
    look.add_argument("--run", type=Path)
    early = look.parse_known_args(arguments)[0]
    reporter = None if early.run is None else Reporter(early.run, "cost")
    try:
        with nullcontext() if reporter is None else reporter.last_words():
            known = {*vars(parser.parse_args(["--output", "any"]))} - {"config", "run"}
            told = [] if early.config is None else as_flags(early.config, known)
            task = _task(parser.parse_args([*told, *arguments]))
            if not task.well_asked:
                parser.error("give --unsafe and --safe together, or --categories, or --pairs")
            with bars() as show:
                outcome = run_cost_task(
                    task,
                    progress=lambda what, done, total, loss: show(what, done, total),
                    checked=_say_checked,
                    reporter=reporter,
                )
            _say_outcome(task, outcome)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(printable(f"Error: {sentence_of(error)}", lines=True), file=sys.stderr)
        return 2
    return 0


def _task(options: argparse.Namespace) -> CostTask:
    given = dict(vars(options))
    settings = CostSettings(
        **{one.name: given[one.name] for one in fields(CostSettings) if one.name in given}
    )
    own = {one.name: given[one.name] for one in fields(CostTask) if one.name in given}
    return CostTask(**own, settings=settings)


def _say_checked(found: CheckedExamples) -> None:
    if told := [*found.notes, *found.problems]:
        print(in_words(told), file=sys.stderr)
    unsafe = sum(example.unsafe for example in found.examples)
    copies = f" ({found.merged} copies left out)" if found.merged else ""
    print(f"{unsafe} unsafe and {len(found.examples) - unsafe} safe images{copies}")


def _say_outcome(task: CostTask, outcome: CostOutcome) -> None:
    result = outcome.mined.result
    if task.benign is not None:
        print(f"{len(outcome.mined.chosen)} hard negatives found among {outcome.pool} harmless images")
    print(f"\nHeld-out images, {result.steps} steps, encoder '{outcome.encoder}':")
    rows = [("overall", result.figures), *sorted(result.categories.items())]
    width = max(len(name) for name, _ in rows)
    for name, figures in rows:
        print(f"  {name:<{width}}  {_line(figures)}")
    for warning in result.warnings:
        print(printable(f"Note: {warning}"))
    for one, file in outcome.misfiled:
        label = "unsafe" if one.unsafe else "safe"
        print(printable(f"Looks misfiled ({label}, cost {one.cost:+.2f}): {file}"))
    if task.report is not None:
        print(f"\nThe report, with those images, is {task.report}")
    print(f"\nThe cost model is {task.output}")


def _line(figures: Figures | None) -> str:
    if figures is None:
        return "too few images"
    return (
        f"AUC {figures.auc:.4f}   above zero: {figures.recall_at_zero:6.1%} of {figures.unsafe} unsafe, "
        f"{figures.fpr_at_zero:.1%} of {figures.safe} safe"
    )


def _parser() -> argparse.ArgumentParser:
    defaults = CostSettings()
    parser = argparse.ArgumentParser(
        description="Train a safety cost model: how harmful an image is, as one number; above 0 is harmful."
    )

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        shown = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, help=shown)

    add("--config", Path, None, "TOML file with the flags' names (_ for -) as keys; flags win over it")
    add("--run", Path, None, "run folder that tells of the work in events.jsonl; a file 'stop' in it ends it")
    add("--unsafe", Path, None, "folder of harmful images; its subfolders name categories")
    add("--safe", Path, None, "folder of harmless images, many of them like the harmful ones")
    add("--categories", Path, None, "instead of both: a folder with one folder per category, and safe/")
    add("--pairs", Path, None, "instead of these: a preference folder with chosen/ and rejected/")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if there is one")
    parser.add_argument("--skip-bad", action="store_true", help="leave out images that cannot be used")
    encoder = (
        f"{', '.join(ENCODERS)}, a folder with a CLIP model such as ViT-L/14, or its name in the hub's cache"
    )
    add("--encoder", str, DEFAULT_ENCODER, encoder)
    rate = "share of harmless images that may cost more than zero"
    add("--false-positive-rate", share, defaults.false_positive_rate, rate)
    add(
        "--benign",
        Path,
        None,
        "a large folder of harmless images; the hardest of them are learned from too",
    )
    add("--mine", count, 500, "how many of those at most")
    add("--cache", Path, None, "where embeddings are kept (default: .features beside the output)")
    add("--report", Path, None, "an HTML page: figures, reliability, and images that look misfiled")
    add("--views", count, VIEWS, "versions of each image to learn from, 1 for just the image")
    add("--steps", count, defaults.steps, "at most; held-out images decide when to stop")
    add("--lr", positive, defaults.lr, "learning rate")
    add("--contrast", weight, defaults.contrast, "weight of putting harmful above harmless")
    add("--eta", weight, defaults.eta, "weight of the anchoring, without which zero means nothing")
    add("--seed", int, defaults.seed, "of everything random")
    add("--device", str, "cuda" if torch.cuda.is_available() else "cpu", "where the image encoder runs")
    add("--name", str, None, "what every score calls this model; the output's name if not given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
