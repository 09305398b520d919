"""Train a safety cost model: `python trainer/train_cost.py --unsafe DIR --safe DIR --output FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import torch
from tqdm import tqdm

from scdpo_core.cost.calibration import Figures
from scdpo_core.cost.encoders import ENCODERS, load_encoder
from scdpo_core.cost.examples import (
    CheckedExamples,
    CostExample,
    check,
    list_benign,
    list_categories,
    list_folders,
    list_pairs,
)
from scdpo_core.cost.feature_cache import FeatureCache
from scdpo_core.cost.features import VIEWS
from scdpo_core.cost.hub_cache import is_hub_name
from scdpo_core.cost.learner import CostSettings
from scdpo_core.cost.mining import train_with_mining
from scdpo_core.cost.model import CostFacts, save_cost
from scdpo_core.cost.suspects import suspects
from scdpo_core.cost.training import CostTrainingResult
from scdpo_core.runs.reporter import Reporter
from scdpo_core.scoring.training_page import write_training_page
from scdpo_core.training.events import Phase
from scdpo_core.training.failures import sentence_of
from scdpo_core.types import ScdpoError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    look.add_argument("--config", type=Path)
    look.add_argument("--run", type=Path)
    early = look.parse_known_args(arguments)[0]
    reporter = None if early.run is None else Reporter(early.run)
    try:
        with nullcontext() if reporter is None else reporter.last_words():
            told = [] if early.config is None else _flags_of(early.config, parser)
            options = parser.parse_args([*told, *arguments])
            two = [options.unsafe, options.safe]
            if [options.pairs is None, options.categories is None, two == [None, None]].count(False) != 1 or (
                None in two and two != [None, None]
            ):
                parser.error("give --unsafe and --safe together, or --categories, or --pairs")
            _train(options, reporter)
    except KeyboardInterrupt:
        print("Stopped; nothing was written.", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"Error: {sentence_of(error)}", file=sys.stderr)
        return 2
    return 0


def _flags_of(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """A TOML file as the flags that say the same; those of the command line come behind it and win."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ScdpoError(f"The settings file {path} cannot be read: {error}.") from error
    known = set(vars(parser.parse_args(["--output", "any"]))) - {"config", "run"}
    for key in values:
        if key not in known:
            raise ScdpoError(
                f"{path}: there is no setting '{key}'. Choose one of: {', '.join(sorted(known))}."
            )
    flags: list[str] = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        flags += [flag] * value if isinstance(value, bool) else [f"{flag}={value}"]
    return flags


def _listed(options: argparse.Namespace) -> list[CostExample]:
    if options.pairs is not None:
        return list_pairs(options.pairs)
    if options.categories is not None:
        return list_categories(options.categories)
    return list_folders(options.unsafe, options.safe)


def _train(options: argparse.Namespace, reporter: Reporter | None) -> None:
    output: Path = options.output
    if output.suffix != ".safetensors":
        raise ScdpoError(f"The output must be a file that ends in .safetensors, not {output}.")
    if output.exists() and not options.overwrite:
        raise ScdpoError(f"There is already {output}. Choose another name, or say --overwrite.")
    _require_writable(output.parent)
    if options.report is not None:
        _require_writable(options.report.parent)
    with _bar("reading pictures", reporter) as progress:
        found = check(_listed(options), progress)
    _report(found, options.skip_bad)
    pool: Sequence[CostExample] = ()
    if options.benign is not None:
        with _bar("reading the harmless folder", reporter) as progress:
            # Of a large folder nobody mends every file.
            pool = check(list_benign(options.benign), progress).examples
    if reporter is not None:
        reporter.started(options.steps, len(found.examples) + len(pool), options.device)
    encoder = load_encoder(options.encoder, options.device)
    settings = CostSettings(
        false_positive_rate=options.false_positive_rate,
        steps=options.steps,
        lr=options.lr,
        contrast=options.contrast,
        eta=options.eta,
        seed=options.seed,
    )
    with _bars(reporter) as progress:
        mined = train_with_mining(
            found.examples,
            pool,
            encoder,
            settings,
            count=options.mine,
            views=options.views,
            cache=FeatureCache(options.cache or output.parent / ".features"),
            progress=progress,
        )
    data, result = mined.data, mined.result
    if options.benign:
        print(f"{len(mined.chosen)} hard negatives found among {len(pool)} harmless pictures")
    facts = CostFacts(
        name=options.name or output.stem,
        encoder=encoder.id,
        encoder_hash=encoder.hash,
        encoder_source=_source(options.encoder),
        training_set=data.training_set,
        untrained=tuple(name for name, figures in result.categories.items() if figures is None),
        calibration=_nested(result.calibration),
        figures=_nested({"": result.figures, **result.categories}),
    )
    save_cost(output, result.model, facts)
    _summarise(result)
    files = {example.digest: example.path for example in (*found.examples, *mined.chosen)}
    misfiled = suspects(result.held_out, data.unsafe, list(data.digests))
    for one in misfiled:
        label = "unsafe" if one.unsafe else "safe"
        print(f"Looks misfiled ({label}, cost {one.cost:+.2f}): {files[one.digest]}")
    if options.report is not None:
        write_training_page(options.report, facts.name, result, misfiled, files)
        print(f"\nThe report, with those pictures, is {options.report}")
    if reporter is not None:
        for warning in result.warnings:
            reporter.warned(warning)
        reporter.finished(result.steps, output, options.report)
    print(f"\nThe cost model is {output}")


def _require_writable(folder: Path) -> None:
    """Find out now rather than after the training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ScdpoError(
            f"The folder {folder} cannot be written to ({error.strerror or error}). Choose another output."
        ) from error


def _report(found: CheckedExamples, skip_bad: bool) -> None:
    for problem in found.problems:
        print(f"{problem.path}: {problem.what}", file=sys.stderr)
    if found.problems and not skip_bad:
        raise ScdpoError(
            f"{len(found.problems)} pictures cannot be used (listed above). Mend or remove them, or leave "
            "them out with --skip-bad."
        )
    unsafe = sum(example.unsafe for example in found.examples)
    copies = f" ({found.merged} copies left out)" if found.merged else ""
    print(f"{unsafe} unsafe and {len(found.examples) - unsafe} safe pictures{copies}")


def _summarise(result: CostTrainingResult) -> None:
    print(f"\nHeld-out pictures, {result.steps} steps:")
    rows = [("overall", result.figures), *sorted(result.categories.items())]
    width = max(len(name) for name, _ in rows)
    for name, figures in rows:
        print(f"  {name:<{width}}  {_line(figures)}")
    for warning in result.warnings:
        print(f"Note: {warning}")


def _line(figures: Figures | None) -> str:
    if figures is None:
        return "too few pictures"
    return (
        f"AUC {figures.auc:.4f}   above zero: {figures.recall_at_zero:6.1%} of {figures.unsafe} unsafe, "
        f"{figures.fpr_at_zero:.1%} of {figures.safe} safe"
    )


def _nested(heads: Mapping[str, Any]) -> dict[str, object]:
    """What is known of the overall cost at the top, of each category with a head below 'categories'."""
    known = {name: asdict(value) for name, value in heads.items() if value is not None}
    return {**known.pop(""), "categories": known}


def _source(spec: str) -> str:
    """Where the encoder lies, for the file; a home folder is written '~', for it names a person."""
    if spec in ENCODERS or (is_hub_name(spec) and not Path(spec).exists()):
        return spec
    full = Path(spec).expanduser().resolve()
    home = Path.home().resolve()
    return str(Path("~") / full.relative_to(home)) if full.is_relative_to(home) else str(full)


PHASES: Mapping[str, Phase] = {
    "reading pictures": "check",
    "reading the harmless folder": "check",
    "training": "train",
    "training again": "train",
}
"""What a door calls the kinds of work; everything else makes embeddings, which are kept."""


@contextmanager
def _bar(label: str, reporter: Reporter | None) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, events for a door, nothing elsewhere."""
    with _bars(reporter) as update:
        yield lambda done, total: update(label, done, total, None)


@contextmanager
def _bars(reporter: Reporter | None) -> Iterator[Callable[[str, int, int, float | None], None]]:
    """The same for each kind of work, one after the other."""
    bars: dict[str, tqdm] = {}

    def update(what: str, done: int, total: int, loss: float | None) -> None:
        if what not in bars:
            bars[what] = tqdm(desc=what, disable=None, leave=False)
        bars[what].total = total
        bars[what].update(done - bars[what].n)
        if reporter is not None:
            reporter.progress(PHASES.get(what, "cache"), done, total, loss)

    try:
        yield update
    finally:
        for bar in bars.values():
            bar.close()


def _parser() -> argparse.ArgumentParser:
    defaults = CostSettings()
    parser = argparse.ArgumentParser(
        description="Train a safety cost model: how harmful a picture is, as one number; above 0 is harmful."
    )

    def add(flag: str, kind: Callable[[str], object], default: object, text: str) -> None:
        shown = text if default is None else f"{text} (default: {default})"
        parser.add_argument(flag, type=kind, default=default, help=shown)

    add("--config", Path, None, "TOML file with the flags' names (_ for -) as keys; flags win over it")
    add("--run", Path, None, "run folder that tells of the work in events.jsonl; a file 'stop' in it ends it")
    add("--unsafe", Path, None, "folder of harmful pictures; its subfolders name categories")
    add("--safe", Path, None, "folder of harmless pictures, many of them like the harmful ones")
    add("--categories", Path, None, "instead of both: a folder with one folder per category, and safe/")
    add("--pairs", Path, None, "instead of these: a preference folder with chosen/ and rejected/")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if there is one")
    parser.add_argument("--skip-bad", action="store_true", help="leave out pictures that cannot be used")
    encoder = (
        f"{', '.join(ENCODERS)}, a folder with a CLIP model such as ViT-L/14, or its name in the hub's cache"
    )
    add("--encoder", str, "micro", encoder)
    rate = "share of harmless pictures that may cost more than zero"
    add("--false-positive-rate", _share, defaults.false_positive_rate, rate)
    add(
        "--benign",
        Path,
        None,
        "a large folder of harmless pictures; the hardest of them are learned from too",
    )
    add("--mine", _count, 500, "how many of those at most")
    add("--cache", Path, None, "where embeddings are kept (default: .features beside the output)")
    add("--report", Path, None, "an HTML page: figures, reliability, and pictures that look misfiled")
    add("--views", _count, VIEWS, "versions of each picture to learn from, 1 for just the picture")
    add("--steps", _count, defaults.steps, "at most; held-out pictures decide when to stop")
    add("--lr", _positive, defaults.lr, "learning rate")
    add("--contrast", _weight, defaults.contrast, "weight of putting harmful above harmless")
    add("--eta", _weight, defaults.eta, "weight of the anchoring, without which zero means nothing")
    add("--seed", int, defaults.seed, "of everything random")
    add("--device", str, "cuda" if torch.cuda.is_available() else "cpu", "where the image encoder runs")
    add("--name", str, None, "what every score calls this model; the output's name if not given")
    return parser


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError("must be a number above 0")
    return value


def _weight(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("must be a number, 0 or above")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
