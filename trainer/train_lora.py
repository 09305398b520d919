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

    from scdpo_core.config import TrainSettings
    from scdpo_core.runs.screen import Screen
    from scdpo_core.training.asked import on_top_of_preset, with_full_paths
    from scdpo_core.types import ScdpoError

PRESETS = Path(__file__).resolve().with_name("configs")

DESCRIPTION = """Train a safety LoRA on pairs of a chosen and a rejected picture (SC-DPO).

The preference folder holds chosen/ and rejected/ pictures under the same names, and a .txt file with the
prompt beside either. The run folder --output PATH/NAME receives the LoRA NAME.safetensors (for ComfyUI, A1111
and Forge), its settings job.toml, events.jsonl, checkpoints, samples and curves. Nothing is ever overwritten:
a folder that holds results is refused unless --resume goes on with them.

Ctrl-C, SIGTERM, or a file named 'stop' in the run folder: the step is finished, everything is saved, and the
exit code is 0; --resume goes on later. Errors end with code 2."""


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
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        # A run that has begun answers for itself; this is what comes before it.
        print("Stopped; nothing was begun.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        from scdpo_core.training.failures import explain

        hint = "" if debug else " Run it again with --debug to see where, and tell us."
        sentence = explain(error)
        unknown = f"Unexpected error: {type(error).__name__}: {error}.{hint}"
        print(f"Error: {sentence}" if sentence else unknown, file=sys.stderr)
    return 2


def parse(arguments: Sequence[str]) -> Command:
    """Defaults, then the preset of the base, then the TOML file, then the flags.

    Raises:
        ScdpoError: a TOML file is missing or wrong.
        SystemExit: a flag is wrong, or --help was asked for.
    """
    settings = settings_before_flags(arguments)
    command: Command = tyro.cli(
        Command,
        default=Command(settings=settings),
        args=list(arguments),
        prog="train_lora.py",
        description=DESCRIPTION,
    )
    return dataclasses.replace(command, settings=with_full_paths(command.settings))


def settings_before_flags(arguments: Sequence[str]) -> TrainSettings:
    """What holds where no flag says otherwise."""
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config", type=Path)
    look.add_argument("--output", type=Path)
    look.add_argument("--base")
    look.add_argument("--family")
    look.add_argument("--resume", action="store_true")
    early = look.parse_known_args(list(arguments))[0]
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

    screen = Screen()
    try:
        asked = StopSignals(screen.say).asked
        result = run_job(command.settings, resume=command.resume, listen=screen.show, should_stop=asked)
    finally:
        screen.close()
    if result.lora is not None:
        screen.say(f"The LoRA is {result.lora.path}")
    if result.outcome.reason == "stopped":
        go_on = f"Stopped after step {result.outcome.step}; go on with --resume."
        # Whoever stops the checks leaves no folder.
        screen.say(go_on if (result.folder / "job.toml").is_file() else "Stopped; nothing was begun.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
