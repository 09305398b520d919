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
    early_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early_parser.add_argument("--config", type=Path)
    early_parser.add_argument("--run", type=Path)
    early = early_parser.parse_known_args(arguments)[0]
    reporter = None if early.run is None else Reporter(early.run, "cost")
    try:
        with nullcontext() if reporter is None else reporter.last_words():
            flag_names = {*vars(parser.parse_args(["--output", "any"]))} - {"config", "run"}
            config_flags = [] if early.config is None else as_flags(early.config, flag_names)
            task = _task(parser.parse_args([*config_flags, *arguments]))
            if not task.has_one_source:
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
    values = vars(options)
    settings = {field.name: values[field.name] for field in fields(CostSettings) if field.name in values}
    task = {field.name: values[field.name] for field in fields(CostTask) if field.name in values}
    return CostTask(**task, settings=CostSettings(**settings))


def _say_checked(images: CheckedExamples) -> None:
    if problems := [*images.notes, *images.problems]:
        print(in_words(problems), file=sys.stderr)
    unsafe = sum(example.unsafe for example in images.examples)
    copies = f" ({images.merged} copies left out)" if images.merged else ""
    print(f"{unsafe} unsafe and {len(images.examples) - unsafe} safe images{copies}")


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
        help_text = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, help=help_text)

    add("--config", Path, None, "TOML file with the flags' names (_ for -) as keys; flags win over it")
    add("--run", Path, None, "run folder for progress in events.jsonl; a file 'stop' in it stops training")
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
        "a large folder of harmless images to find hard negatives in",
    )
    add("--mine", count, 500, "most hard negatives")
    add("--cache", Path, None, "folder of cached embeddings (default: .features beside the output)")
    add("--report", Path, None, "an HTML page: figures, reliability, and images that look misfiled")
    add("--views", count, VIEWS, "augmented versions of each image, 1 for just the image")
    add("--steps", count, defaults.steps, "most optimizer steps; held-out images decide when to stop")
    add("--lr", positive, defaults.lr, "learning rate")
    add("--contrast", weight, defaults.contrast, "weight of ordering harmful above harmless")
    add("--eta", weight, defaults.eta, "weight of the anchoring, which gives zero its meaning")
    add("--seed", int, defaults.seed, "of everything random")
    add("--device", str, "cuda" if torch.cuda.is_available() else "cpu", "where the image encoder runs")
    add("--name", str, None, "name of this model in every score (default: the output's name)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
