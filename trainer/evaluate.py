"""Judge a safety LoRA on prompt files: `python trainer/evaluate.py --lora runs/NAME --prompts i2p.csv`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    from arguments import count, weight

    from scdpo_core.cost.scorers import offered_scorers
    from scdpo_core.errors import sentence_of
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.runs.console import bars
    from scdpo_core.runs.log import Reporter
    from scdpo_core.suite.attack_names import ATTACKS
    from scdpo_core.suite.defaults import complete
    from scdpo_core.suite.finish import finish
    from scdpo_core.suite.job import WORLD_JUDGE, EvalJob, job_in
    from scdpo_core.suite.plan import Shard, parse_shard
    from scdpo_core.suite.run import Evaluation, begin, prepare, share_folder, work
    from scdpo_core.training.checks import resolve_device


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    parser = _parser()
    options = parser.parse_args(arguments)
    if (options.output is None) == (options.config is None):
        parser.error("give --output FOLDER, or --config with an evaluation's job.toml")
    try:
        shard = parse_shard(options.shard)
        job = _job(options) if options.config is None else job_in(options.config.absolute().parent)
        evaluation = prepare(job)
        for note in evaluation.notes:
            print(printable(f"Note: {note.what}"), file=sys.stderr)
        _evaluate(evaluation, shard, options.device)
    except KeyboardInterrupt:
        print("Stopped. Run the same command to continue.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(printable(f"Error: {sentence_of(error)}", lines=True), file=sys.stderr)
        return 2
    return 0


def _evaluate(evaluation: Evaluation, shard: Shard, device_name: str) -> None:
    reporter = Reporter(share_folder(evaluation, shard), "evaluate", evaluation.folder.path)
    with reporter.last_words(), bars(unit=" images") as show:
        begin(evaluation, shard)
        device = resolve_device(device_name)
        reporter.started(evaluation.images, len(evaluation.plan.items), str(device))

        def progress(what: str, done: int, total: int) -> None:
            show(what, done, total)
            reporter.progress("sample" if what == "drawing" else "score", done, total)

        judged = work(evaluation, shard, device, progress)
        summary = finish(evaluation, judged, str(device), progress)
        if summary is None:
            print(
                "This share is done, others are not. When all are done, the same command without --shard "
                "writes the report."
            )
            reporter.reported(evaluation.images, share_folder(evaluation, shard))
            return
        reporter.reported(evaluation.images, evaluation.folder.report)
        print(summary)
        print(f"\nThe report is {printable(str(evaluation.folder.report))}")
        return
    print("Stopped. Run the same command to continue.", file=sys.stderr)


def _job(options: argparse.Namespace) -> EvalJob:
    options_given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("config", "shard", "device"):
        options_given.pop(name, None)
    return complete(options_given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Draw prompt files without and with a safety LoRA from the same seeds, let judges look, "
        "and write a report. The same command goes on where it was stopped."
    )

    def several(flag: str, kind: type, text: str) -> None:
        parser.add_argument(flag, nargs="+", type=kind, metavar=flag[2:].upper().rstrip("S"), help=text)

    add = parser.add_argument
    add("--base", help="model to draw with, as train_lora.py's --base (default: that of the LoRA's run)")
    several("--lora", Path, "the LoRA's file or run folder; two are compared; none: the base alone")
    several("--prompts", Path, "files of prompts that ask for harm: .csv or .tsv as published, or .txt")
    several("--attack-prompts", Path, "files of prompts that attacks found on other models (known by their "
        "header too)")  # fmt: skip
    several("--benign", Path, "files of prompts that ask for nothing harmful")
    add("--column", help="the column of the prompts, for files whose header is not known")
    add("--output", type=Path, help="run folder for images, tables and report")
    several("--weights", float, "of the LoRA; the first one counts in the headline (default: 1)")
    add("--seeds", type=count, help="images of each prompt (default: 1)")
    add("--seed", type=int, help="of the first prompt that has none of its own (default: 0)")
    add("--limit", type=count, help="prompts of each file, spread evenly over it (default: all)")
    judges = ", ".join((*offered_scorers(), WORLD_JUDGE))
    several("--scorer", str, f"who judges: {judges} or cost model files (default: embedded; for the "
        f"embedded model {WORLD_JUDGE})")  # fmt: skip
    several("--attack", str, f"what is tried on the LoRA: {', '.join(ATTACKS)}, with =STRENGTH behind it")
    several("--attack-words", str, "words of the prompts that inversion and search replace")
    add("--attack-count", type=count, help="prompts that each attack is tried on (default: 40)")
    add("--reference", type=Path, help="folder of images to measure the benign images' Fréchet distance to")
    add("--encoder", help="image encoder of that distance: a name or a folder (default: embedded)")
    add("--clip", type=Path, help="folder of a CLIP model, for CLIP scores")
    add("--steps", type=count, help="denoising steps (default: those of the LoRA's run, or 20)")
    add("--guidance", type=weight, help="classifier-free guidance (default: that of the LoRA's run, or 5)")
    add("--width", type=count, help="pixels (default: the model's own)")
    add("--height", type=count, help="pixels (default: the model's own)")
    add("--batch", type=count, help="images drawn together (default: 4; 32 for the embedded model)")
    add("--shard", default="1/1", help="this process's share of the work, such as 1/3 (default: all of it)")
    add("--device", default="auto", help="where to draw and judge (default: auto)")
    add("--config", type=Path, help="instead of all these: job.toml of an evaluation")
    return parser


if __name__ == "__main__":
    sys.exit(main())
