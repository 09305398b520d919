"""Draw prompts with a LoRA at several weights: `python trainer/compare.py --lora runs/NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    from scdpo_core.cost.scorers import offered_scorers
    from scdpo_core.errors import sentence_of
    from scdpo_core.evaluation.compare import compare
    from scdpo_core.io.files import write_text
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.io.prompt_files import expand_prompts
    from scdpo_core.panels.compare import page, summary
    from scdpo_core.runs.comparison import (
        PAGE,
        CompareJob,
        compare_with,
        parse_weights,
        read_comparison,
        write_comparison,
        write_result,
    )
    from scdpo_core.runs.console import bars
    from scdpo_core.runs.log import Reporter
    from scdpo_core.training.checks import resolve_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.lora is None) == (options.config is None):
        parser.error("give --lora FILE (or the run folder that made it), or --config with a comparison's job")
    try:
        if options.config is None:
            folder = write_comparison(_job(options))
        else:
            folder = options.config.absolute().parent
        _draw(folder, options.config or folder / "job.toml", options.device)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(printable(f"Error: {sentence_of(error)}", lines=True), file=sys.stderr)
        return 2
    return 0


def _draw(folder: Path, config: Path, device_name: str) -> None:
    reporter = Reporter(folder, "compare")
    with reporter.last_words(), bars(unit="image") as show:
        job = read_comparison(config)
        device = resolve_device(device_name)
        count = len(job.prompts) * len(job.weights)
        reporter.started(count, len(job.prompts), str(device))

        def progress(done: int, total: int) -> None:
            show("drawing", done, total)
            reporter.progress("sample", done, total)

        result = compare(job, folder, device, progress)
        write_result(folder, result)
        write_text(folder / PAGE, page(result, folder))
        reporter.reported(count, folder / PAGE)
        print(summary(result))
        print(f"\nThe page is {folder / PAGE}")


def _job(options: argparse.Namespace) -> CompareJob:
    return compare_with(
        options.lora,
        base=options.base,
        prompts=expand_prompts(options.prompts),
        output=options.output,
        weights=parse_weights(options.weights),
        cost_model=options.cost_model,
        seed=options.seed,
        steps=options.steps,
        guidance=options.guidance,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw the same prompts and noise with a LoRA at several weights, and score the images. "
        "What is not given comes from the run that made the LoRA, if it lies in its run folder."
    )
    add = parser.add_argument
    add("--lora", type=Path, help="the LoRA's file, or the run folder that it was trained in")
    add("--base", help="model to draw with, as train_lora.py's --base (default: the run's)")
    add("--prompts", nargs="+", default=[], help="texts, or .txt, .csv or .tsv files of them (default: 6 of "
        "the run's preference folder)")  # fmt: skip
    add("--weights", default="0, 0.5, 1", help="of the LoRA; 0 is the base alone (default: 0, 0.5, 1)")
    add("--output", type=Path, help="new folder for images and report (default: LORA-compare beside the run)")
    scorers = f"{', '.join(offered_scorers())} or a cost model file"
    add("--cost-model", default="embedded", help=f"scores the images: {scorers} (default: embedded)")
    add("--seed", type=int, default=0, help="of the first prompt's noise (default: 0)")
    add("--steps", type=int, help="denoising steps (default: the run's samples')")
    add("--guidance", type=float, help="classifier-free guidance (default: the run's samples')")
    add("--device", default="auto", help="where to draw (default: auto)")
    add("--config", type=Path, help="instead of all these: job.toml of a comparison, not of a training")
    return parser


if __name__ == "__main__":
    sys.exit(main())
