"""Train a safety LoRA: `python trainer/train_lora.py --pairs DIR --base micro --output runs/my_lora`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import dataclasses
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import tyro

from scdpo_core.config import TrainSettings, load_toml
from scdpo_core.types import ScdpoError

if TYPE_CHECKING:
    from scdpo_core.training.events import Event, Progress

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
        command = parse(arguments)
        return train(command)
    except ScdpoError as error:
        if debug:
            traceback.print_exc()
        print(f"Error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        # A run that has begun answers for itself; this is what comes before it.
        print("Stopped; nothing was begun.", file=sys.stderr)
        return 130
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
    told = TrainSettings() if source is None else load_toml(source)
    name = preset_for(early.family or told.model.family, early.base or told.model.base)
    preset = load_toml(PRESETS / name)
    return preset if source is None else load_toml(source, preset)


def preset_for(family: str, base: str) -> str:
    """The preset of a base model, which its own files choose if the family is 'auto'.

    Raises:
        ScdpoError: the model is on the hub, and the hub cannot tell what it is.
    """
    from scdpo_core.families import MICRO, family_of, is_hub_id

    if base == MICRO:
        return "micro.toml"
    try:
        return f"{family_of(family, base).name}.toml"
    except ScdpoError:
        # The checks say it, together with everything else that is wrong.
        if is_hub_id(base):
            raise
        return "sd1.toml"


def with_full_paths(settings: TrainSettings) -> TrainSettings:
    """Relative paths, which mean the current folder, made good for any other."""

    def full(path: Path | None) -> Path | None:
        return None if path is None else Path(os.path.abspath(path.expanduser()))

    def full_name(name: str, *words: str) -> str:
        return name if name in words else str(full(Path(name)))

    from scdpo_core.cost.scorers import SCORERS
    from scdpo_core.families import MICRO, is_hub_id

    data, model = settings.data, settings.model
    return dataclasses.replace(
        settings,
        model=dataclasses.replace(
            model,
            base=model.base if is_hub_id(model.base) else full_name(model.base, MICRO),
            vae=full(model.vae),
            text_encoders=full(model.text_encoders),
        ),
        data=dataclasses.replace(
            data,
            pairs=full(data.pairs),
            cache=full(data.cache),
            cost_model=full_name(data.cost_model, *SCORERS, "none"),
        ),
        output=dataclasses.replace(settings.output, output=full(settings.output.output)),
    )


def train(command: Command) -> int:
    """Run the job and show how it goes.

    Raises:
        ScdpoError: see `run_job`.
    """
    # Late, for torch takes seconds and a mistyped flag should not wait for it.
    from scdpo_core.training.job import run_job

    screen = Screen()
    try:
        with_signals = StopSignals(screen.say)
        result = run_job(
            command.settings, resume=command.resume, listen=screen.show, should_stop=with_signals.asked
        )
    finally:
        screen.close()
    if result.lora is not None:
        screen.say(f"The LoRA is {result.lora.path}")
    if result.outcome.reason == "stopped":
        screen.say(f"Stopped after step {result.outcome.step}; go on with --resume.")
    return 0


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal ask to stop; a second Ctrl-C leaves at once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._asked = False
        self._say = say
        # Windows knows no closing of the terminal.
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
            signal.signal(number, self._handle)

    def asked(self) -> bool:
        """Whether one has come."""
        return self._asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked = True
            self._say("Finishing this step, then saving. Ctrl-C again leaves at once.")


TITLES = {
    "check": "looking at the pictures",
    "score": "scoring",
    "load": "loading the model",
    "cache": "encoding",
    "reference": "measuring the base model",
    "sample": "drawing samples",
    "train": "training",
}
FIGURES = {
    "loss": "loss",
    "preference_loss": "preference",
    "u": "u",
    "implicit_accuracy": "accuracy",
    "winner_gap": "winner",
    "loser_gap": "loser",
    "dfm_spread": "dfm",
}
HELD_OUT = {"accuracy": "accuracy", "winner_gap": "winner", "loser_gap": "loser"}


class Screen:
    """Events as a progress bar on a terminal, and as plain lines everywhere else.

    Training outlives whoever watches it: once nobody can be told any more, nobody is.
    """

    def __init__(self) -> None:
        # Of the processes that accelerate starts, one speaks for all.
        self._watched = os.environ.get("RANK", "0") == "0"
        self._bars = sys.stderr.isatty()
        self._bar: Any = None
        self._phase = ""
        self._said = 0.0

    def show(self, event: Event) -> None:
        """Show an event."""
        from scdpo_core.training import events

        if isinstance(event, events.Progress):
            self._try(lambda: (self._draw if self._bars else self._print)(event))
        elif isinstance(event, events.Started):
            whence = f" from step {event.first_step}" if event.first_step else ""
            self.say(f"Run {event.run}: {event.pairs} pairs, {event.steps} steps{whence}, on {event.device}")
        elif isinstance(event, events.Validated):
            self.say(f"Step {event.step}, {event.pairs} pairs held out: {_figures(event.metrics, HELD_OUT)}")
        elif isinstance(event, events.Estimated):
            there = "" if event.available is None else f" of {event.available / 2**30:.1f} there are"
            took = "" if event.seconds is None else f", and {_duration(event.seconds)}"
            self.say(f"Training needs about {event.memory / 2**30:.1f} GiB{there}{took}.")
        elif isinstance(event, events.Warned):
            self.say(f"Note: {event.message}")

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""

        def say() -> None:
            if self._bar is not None:
                self._bar.clear()
            print(line, flush=True)

        self._try(say)

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._try(self._bar.close)
            self._bar = None

    def _try(self, show: Callable[[], None]) -> None:
        try:
            if self._watched:
                show()
        except OSError:
            self._watched = False
            # What is left in the buffer would fail once more when Python leaves.
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    def _draw(self, event: Progress) -> None:
        from tqdm import tqdm

        if self._bar is None or event.phase != self._phase:
            self.close()
            self._phase = event.phase
            self._bar = tqdm(
                total=event.total, desc=TITLES[event.phase], initial=event.step, dynamic_ncols=True
            )
        self._bar.update(event.step - self._bar.n)
        if event.metrics:
            self._bar.set_postfix_str(_figures(event.metrics, FIGURES))

    def _print(self, event: Progress) -> None:
        """A line every few seconds, and always the last of a phase."""
        now = time.monotonic()
        if event.step < event.total and event.phase == self._phase and now - self._said < 5:
            return
        self._phase, self._said = event.phase, now
        left = "" if not event.seconds_left else f"  {_duration(event.seconds_left)} left"
        figures = _figures(event.metrics, FIGURES)
        line = f"{TITLES[event.phase]} {event.step}/{event.total}{'  ' if figures else ''}{figures}{left}"
        print(line, flush=True)


def _figures(metrics: Mapping[str, float | None], names: Mapping[str, str]) -> str:
    known = ((short, metrics.get(name)) for name, short in names.items())
    return " ".join(f"{short} {value:.3g}" for short, value in known if value is not None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    sys.exit(main())
