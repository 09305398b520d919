"""The report of an import: what became pairs, what did not and why, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ..io.files import write_json, write_text
from ..io.printable import printable
from ..preferences.listing import BENIGN
from .folders import find_sides
from .job import FORMATS, ImportJob
from .record import ImportRecord, State, Tally

_MOST_CATEGORIES = 20


def write_report(job: ImportJob, record: ImportRecord, state: State) -> Path:
    """Write the report beside the record; returns the one for people.

    Raises:
        OSError: it cannot be written.
    """
    values = asdict(state)
    for name in ("pending", "log_bytes"):
        del values[name]
    write_json(record.home / "report.json", {"source": job.title, "output": str(job.output), **values})
    path = record.home / "report.txt"
    write_text(path, summary(job, state) + "\n\n" + next_step(job, state) + "\n")
    return path


def summary(job: ImportJob, state: State) -> str:
    """Format the table for a terminal and for the report file."""
    return "\n".join(printable(line) for line in _lines(job, state))


def _lines(job: ImportJob, state: State) -> Iterator[str]:
    yield f"Source: {job.title}"
    yield f"Format: {state.format} - {FORMATS.get(state.format, '')}"
    written = "would be imported" if job.dry_run else "imported"
    skipped = sum(tally.count for tally in state.skipped.values())
    yield f"{state.imported:>8,}  pairs {written}"
    if state.repeated:
        yield f"{state.repeated:>8,}  pairs that were in the folder already"
    yield f"{skipped:>8,}  rows without a pair"
    yield from _tallies("Without a pair, because of", state.skipped)
    yield from _tallies("Imported with a change", state.notes)
    if state.categories:
        yield "Categories:"
        most = sorted(state.categories.items(), key=lambda item: (-item[1], item[0]))
        for name, count in most[:_MOST_CATEGORIES]:
            yield f"{count:>8,}  {name or '(none)'}"
        if len(most) > _MOST_CATEGORIES:
            yield f"          and {len(most) - _MOST_CATEGORIES} more"
    if state.categories.get(""):
        yield (
            f"Pairs without a category: {state.categories['']:,}. Training takes their prompts as harmful; "
            "pairs about quality, whose prompts are harmless, need --category benign."
        )
    elif set(state.categories) == {BENIGN} and not job.category:
        yield (
            "All pairs are benign: they teach what to keep. For pairs that show harm, import with --category "
            "NAME."
        )
    if job.dry_run:
        yield "Nothing was written. Images are decoded only when they are imported: some may prove damaged."


def _tallies(title: str, tallies: dict[str, Tally] | object) -> Iterator[str]:
    if not isinstance(tallies, dict) or not tallies:
        return
    yield f"{title}:"
    for reason, tally in sorted(tallies.items(), key=lambda item: -item[1].count):
        yield f"{tally.count:>8,}  {reason}"
        yield from (f"            {example}" for example in tally.examples)
        if tally.count > len(tally.examples):
            yield f"            and {tally.count - len(tally.examples):,} more"


def next_step(job: ImportJob, state: State) -> str:
    """Return the next command, as a sentence."""
    output = shlex.quote(str(job.output))
    if job.dry_run:
        return "Run the same command without --dry-run to import them."
    train = f"Train on them: python trainer/train_lora.py --pairs {output} --base MODEL --output runs/my_lora"
    if state.format == "unpaired":
        lone = _for_lone_images(job)
        return printable(f"{train}\n{lone}" if state.imported else lone, lines=True)
    if not state.imported and not state.repeated:
        return "No pair came of it. The reasons above say what to change."
    return printable(train)


def _for_lone_images(job: ImportJob) -> str:
    """Say what images without a partner can be used for."""
    sides = find_sides(job.source) if job.source is not None else []
    folders = (sides[0].chosen, sides[0].rejected) if sides else (job.chosen, job.rejected)
    safe, unsafe = (shlex.quote(str(folder)) for folder in folders)
    return (
        "Images without a partner train a cost model, or give prompts for pairs that your model draws:\n"
        f"  python trainer/train_cost.py --unsafe {unsafe} --safe {safe} --output my_cost.safetensors\n"
        f"  python trainer/build_pairs.py --base MODEL --prompts {unsafe} --benign {safe} "
        "--output built_pairs"
    )
