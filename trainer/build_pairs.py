"""Build preference pairs: `python trainer/build_pairs.py --base MODEL --prompts FILE --output my_pairs`.

Several processes or machines share the work with `accelerate launch trainer/build_pairs.py ...`, or each with
its own --shard 1/4.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import subprocess
import warnings
from collections.abc import Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, StopSignals, waking

with waking():
    from PIL import Image

    from scdpo_core.config.resolve import on_top_of_preset
    from scdpo_core.config.settings import TrainSettings
    from scdpo_core.config.toml import as_flags
    from scdpo_core.errors import explain
    from scdpo_core.family_info import MICRO
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.pairs.build import Outcome, build, join, read
    from scdpo_core.pairs.job import BuildJob, Drawing, check
    from scdpo_core.pairs.table import tally, words
    from scdpo_core.preferences.problems import in_words
    from scdpo_core.runs.console import bars, lines
    from scdpo_core.types import Problem, ScdpoError
    from trainer.pair_flags import pair_flags

PRESETS = Path(__file__).resolve().with_name("configs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    print_any_name()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        with waking():
            options = _options(sys.argv[1:] if arguments is None else arguments)
            job = join(_job(options))
            check(job)
        outcome = _build(job)
        if outcome.sheet is not None and options.review:
            _review(job.output)
    except KeyboardInterrupt:
        print("Stopped. Run the same command to continue.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if (sentence := explain(error)) is None:
            raise
        print(printable(f"Error: {sentence}", lines=True), file=sys.stderr)
        return 2
    return 0


def _build(job: BuildJob) -> Outcome:
    notes: list[Problem] = []
    requests = read(job, notes.append)
    leads = job.rank == 0
    if notes and leads:
        print(in_words(notes), file=sys.stderr)

    def say(sentence: str) -> None:
        print(printable(sentence), file=sys.stderr, flush=True)

    stop = StopSignals(say)
    watched = sys.stderr.isatty()
    with bars(quiet=not leads, stay=True, unit=" prompts") as show:
        progress = show if watched or not leads else lines(say, " prompts")
        outcome = build(job, requests, progress=progress, should_stop=stop.asked, say=say)
    if outcome.stopped:
        say("Stopped. Run the same command to continue.")
    elif outcome.rows is not None:
        print(words(tally(outcome.rows)))
        print()
        print(printable(f"The contact sheet is {outcome.sheet}"))
        if not any(row.pair for row in outcome.rows):
            raise ScdpoError(
                "These prompts gave no pair. Try more --attempts or --per-prompt, another --way, a lower "
                "--gap, or a scorer for this kind of harm."
            )
        train = f"python trainer/train_lora.py --base {job.model.base} --pairs {job.output}"
        print(printable(f"Train on them: {train}"))
    return outcome


def _review(folder: Path) -> None:
    """Open the labelling page on the pairs, until Ctrl-C."""
    reviewed = folder.with_name(f"{folder.name}-reviewed")
    command = [sys.executable, "-m", "a1111_extension", "--compare", str(folder), "--pairs", str(reviewed)]
    print(printable(f"Say which image of each pair is the better one; your answers go to {reviewed}."))
    subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=False)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    early_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early_parser.add_argument("--config", type=Path)
    early = early_parser.parse_known_args(arguments)[0]
    parser = pair_flags()
    config_flags: list[str] = []
    if early.config is not None:
        config_flags = as_flags(
            early.config, vars(parser.parse_args(["--output", "any"])).keys() - {"config"}
        )
    return parser.parse_args([*config_flags, *arguments])


def _job(options: argparse.Namespace) -> BuildJob:
    if bool(options.width) != bool(options.height):
        raise ScdpoError("Give --width and --height together, or neither for the model's own size.")
    preset: TrainSettings = on_top_of_preset(PRESETS, None, options.family, options.base)
    model_options = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(preset.model)
        if hasattr(options, field.name)
    }
    sampling = preset.sampling
    drawing = Drawing(
        sampling.sample_steps if options.steps is None else options.steps,
        sampling.guidance if options.guidance is None else options.guidance,
        (options.width, options.height) if options.width else None,
    )
    fields = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(BuildJob)
        if hasattr(options, field.name)
    }
    rank, processes = options.shard
    fields |= {
        "output": Path(options.output).expanduser().absolute(),
        "model": dataclasses.replace(preset.model, **model_options),
        "drawing": drawing,
        "scorer": options.scorer or ("micro" if options.base == MICRO else "embedded"),
        "rules": Path(options.rules) if options.rules not in (None, "none") else None,
        "use_rules": options.rules != "none",
        "benign_images": options.benign_images == "pairs",
        "rank": rank,
        "processes": processes,
    }
    return BuildJob(**fields)


if __name__ == "__main__":
    sys.exit(main())
