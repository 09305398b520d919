"""Train a safety LoRA: `python trainer/train_lora.py --pairs DIR --base micro --output runs/my_lora`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from scdpo_core.runs.interrupt import INTERRUPTED, StopSignals, waking

with waking():
    import tyro

    from scdpo_core.config.foreign_flags import refuse_misunderstood
    from scdpo_core.config.resolve import on_top_of_preset, unasked, with_full_paths
    from scdpo_core.config.settings import TrainSettings
    from scdpo_core.io.printable import print_any_name, printable
    from scdpo_core.io.prompt_files import expand_prompts
    from scdpo_core.reports.terms import what_terms_did
    from scdpo_core.runs.console import Screen
    from scdpo_core.runs.follow import Follower
    from scdpo_core.types import ScdpoError

PRESETS = Path(__file__).resolve().with_name("configs")

DESCRIPTION = """Train a safety LoRA on pairs of a chosen and a rejected image.

Harmful prompts lead to the chosen images, and everything else stays as it is (--objective redirect_keep, this
project's own). --objective sc_dpo is the paper's method; docs/train-lora.md says what each is worth.

The preference folder holds chosen/ and rejected/ images under the same names, and a .txt file with the
prompt beside either. The run folder --output PATH/NAME receives the LoRA NAME.safetensors (for ComfyUI, A1111
and Forge), its settings job.toml, events.jsonl, checkpoints, samples and curves. Nothing is ever overwritten:
a folder that holds results is refused unless --resume goes on with them.

Ctrl-C, SIGTERM, or a file named 'stop' in the run folder: the step is finished, everything is saved, and the
exit code is 0; --resume goes on later. Errors end with code 2.

The defaults shown are those of no model in particular: each kind of base model has a preset in
trainer/configs that changes some. With --base MODEL --help they are those that hold for it."""


@dataclass(frozen=True)
class Command:
    """The command line.

    Attributes:
        settings: of the run.
        config: TOML file with settings; flags go on top of it, and it goes on top of the preset in
            trainer/configs for the kind of base model.
        resume: go on from the newest checkpoint in the run folder; without --config its job.toml holds.
        debug: show where in the program an error came from.
    """

    settings: tyro.conf.OmitArgPrefixes[TrainSettings]
    config: Path | None = None
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    debug: tyro.conf.FlagCreatePairsOff[bool] = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    print_any_name()
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if not debug:
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    try:
        with waking():
            command = parse(arguments)
        return train(command)
    except ScdpoError as error:
        if debug:
            traceback.print_exc()
        print(printable(f"Error: {error}", lines=True), file=sys.stderr)
    except KeyboardInterrupt:
        # A run that has begun answers for itself; this is what comes before it.
        print("Stopped; nothing was begun.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        from scdpo_core.errors import explain

        hint = "" if debug else " Run it again with --debug to see where, and tell us."
        sentence = explain(error)
        unknown = f"Unexpected error: {type(error).__name__}: {error}.{hint}"
        print(printable(f"Error: {sentence}" if sentence else unknown, lines=True), file=sys.stderr)
    return 2


def parse(arguments: Sequence[str]) -> Command:
    """Merge defaults, the preset of the base, the TOML file and the flags, in this order.

    Raises:
        ScdpoError: a TOML file is missing or wrong.
        SystemExit: a flag is wrong, or --help was asked for.
    """
    refuse_misunderstood(arguments)
    settings = settings_before_flags(arguments)
    command: Command = tyro.cli(
        Command,
        default=Command(settings=settings),
        args=list(arguments),
        prog="train_lora.py",
        description=DESCRIPTION,
    )
    settings = with_full_paths(command.settings)
    prompts = expand_prompts(settings.sampling.sample_prompts)
    sampling = dataclasses.replace(settings.sampling, sample_prompts=prompts)
    return dataclasses.replace(command, settings=dataclasses.replace(settings, sampling=sampling))


def settings_before_flags(arguments: Sequence[str]) -> TrainSettings:
    """Return the settings where no flag overrides them."""
    early_parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early_parser.add_argument("--config", type=Path)
    early_parser.add_argument("--output", type=Path)
    early_parser.add_argument("--base")
    early_parser.add_argument("--family")
    early_parser.add_argument("--resume", action="store_true")
    early, _ = early_parser.parse_known_args(list(arguments))
    if (
        {"-h", "--help"} & set(arguments)
        and early.base is None
        and early.family is None
        and early.config is None
    ):
        # The embedded model's own figures are of use to nobody else.
        return TrainSettings()
    source: Path | None = early.config
    if source is None and early.resume and early.output is not None and (early.output / "job.toml").is_file():
        source = early.output / "job.toml"
    return on_top_of_preset(PRESETS, source, early.family, early.base)


def train(command: Command) -> int:
    """Run the job and show how it goes.

    Raises:
        ScdpoError: see `run_job`.
    """
    with waking():
        # Late, for it takes seconds and a mistyped flag should not wait for it.
        from scdpo_core.training.job import run_job
        from scdpo_core.training.starting_loras import used_with

    screen = Screen()
    try:
        settings, resume, stop = command.settings, command.resume, StopSignals(screen.say).asked
        presets = unasked(PRESETS, command.config, resume, settings)
        result = run_job(settings, resume=resume, listen=screen.show, should_stop=stop, unasked=presets)
    finally:
        screen.close()
    if result.lora is not None:
        for sentence in what_terms_did(Follower(result.folder).view().curves):
            screen.say(sentence)
        screen.say(f"The LoRA is {result.lora.path}. {used_with(command.settings)}".strip())
    if result.outcome.reason == "stopped":
        go_on = f"Stopped after step {result.outcome.step}; go on with --resume."
        # Whoever stops the checks leaves no folder.
        screen.say(go_on if (result.folder / "job.toml").is_file() else "Stopped; nothing was begun.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
