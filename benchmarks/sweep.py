"""Which settings make a safety LoRA that works? Judged by samples, on the embedded model.

    python benchmarks/sweep.py [--rows NAME ...] [--seeds 0 1 2] [--captions tuning] [--table docs/sweep.md]

Each row trains on `examples/preferences` and differs from the default in what its name says. It is
judged on captions that no training saw: settings are chosen by the `tuning` ones, and what is chosen is
judged once by the `evaluation` ones. A finished row is kept in the work folder and not run again, so
that several processes can share the rows among them and a last call draws the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.tables import cell, kept, percent, put  # noqa: E402
from scdpo_core.config.settings import TrainSettings, load_toml  # noqa: E402
from scdpo_core.evaluation import micro_requests  # noqa: E402
from scdpo_core.evaluation.judges import ImageRequest  # noqa: E402
from scdpo_core.evaluation.metrics import background_kept, preservation  # noqa: E402
from scdpo_core.families import family  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.lora.adapter import attach_file  # noqa: E402
from scdpo_core.micro.captions import evaluation_captions, tuning_captions  # noqa: E402
from scdpo_core.micro.judge import Judge  # noqa: E402
from scdpo_core.micro.model import JUDGE  # noqa: E402
from scdpo_core.micro.world import BACKGROUNDS  # noqa: E402
from scdpo_core.run_store.events import Progress, last_run  # noqa: E402
from scdpo_core.training.job import run_job  # noqa: E402

_SC_DPO = {"objective.objective": "sc_dpo"}
ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "SC-DPO": _SC_DPO,
    "winner term only": {"objective.objective": "winner_only"},
    "preference term only": {**_SC_DPO, "objective.winner": 0.0},
    "no keep": {"terms.keep_benign": 0.0},
    "no keep empty": {"terms.keep_empty": 0.0},
    "no keep text": {"terms.keep_text": 0.0},
    "redirect alone": {"terms.keep_benign": 0.0, "terms.keep_empty": 0.0, "terms.keep_text": 0.0},
    "keep 1": {"terms.keep_benign": 1.0},
    "keep 20": {"terms.keep_benign": 20.0},
    "from the rejected image alone": {"terms.redirect_pure": 1.0},
    "lr / 2": {"optim.lr": 0.5},
    "lr x 2": {"optim.lr": 2.0},
    "lr / 2, steps x 2": {"optim.lr": 0.5, "optim.max_train_steps": 2.0},
    "rank 4": {"lora.rank": 4},
    "rank 32": {"lora.rank": 32},
    "attention alone": {"lora.targets": "attention"},
    "no benign pairs": {"data.benign_share": 0.0},
    "benign share 0.7": {"data.benign_share": 0.7},
    "SC-DPO, beta / 4": {**_SC_DPO, "objective.beta": 0.25},
    "SC-DPO, beta x 4": {**_SC_DPO, "objective.beta": 4.0},
    "SC-DPO, winner / 10": {**_SC_DPO, "objective.winner": 0.1},
    "SC-DPO, winner x 4": {**_SC_DPO, "objective.winner": 4.0},
    "SC-DPO, exact weighting": {**_SC_DPO, "objective.weighting": "exact"},
    "SC-DPO, no DFM": {**_SC_DPO, "objective.dfm_gamma": 0.0},
    "SC-DPO, margin 1": {**_SC_DPO, "objective.margin": 1.0},
}
"""What each row changes of the default, *redirect and keep*; those of `_SCALED` multiply what is there."""

_SCALED = {"objective.beta", "objective.winner", "optim.lr", "optim.max_train_steps"}
_COLUMNS = {
    "harmful": "harmful",
    "heldout": "held-out concepts",
    "benign": "benign found",
    "background": "background kept",
    "ssim": "SSIM",
    "accuracy": "implicit accuracy",
}
"""Implicit accuracy is a figure of objectives over pairs alone; other rows have none."""


def settings_for(row: str, seed: int, folder: Path, cost_model: str) -> TrainSettings:
    """The default settings of the embedded model with a row's changes."""
    settings = load_toml(ROOT / "trainer" / "configs" / "micro.toml")
    changes: dict[str, Any] = {
        "data.pairs": ROOT / "examples" / "preferences",
        "data.cost_model": cost_model,
        "model.base": "micro",
        "optim.seed": seed,
        "output.output": folder,
        "sampling.samples": 0,
        **ROWS[row],
    }
    for key, value in changes.items():
        section, name = key.split(".")
        part = getattr(settings, section)
        if key in _SCALED:
            base = part.effective_beta if key == "objective.beta" else getattr(part, name)
            value = type(base)(base * value)
        settings = dataclasses.replace(settings, **{section: dataclasses.replace(part, **{name: value})})
    return settings


CAPTIONS = {"tuning": tuning_captions, "evaluation": evaluation_captions}


@cache
def drawn_before(captions: str, seed: int) -> tuple[list[ImageRequest], list[Image.Image]]:
    """What is asked and what the untrained model draws for it: the same for every row."""
    wanted = micro_requests.requests(CAPTIONS[captions](), seed)
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    return wanted, micro_requests.draw(model, wanted)


def run_row(row: str, seed: int, work: Path, cost_model: str, captions: str) -> dict[str, float]:
    """Train and judge one row with one seed, or read what an earlier call found."""
    name = f"{row.replace(' ', '_').replace('/', 'by').replace(',', '')}-{seed}"
    result = work / f"{name}-{captions}.json"
    return kept(result, lambda: _judged(row, seed, work / f"{name}.safetensors", cost_model, captions))


def _judged(row: str, seed: int, file: Path, cost_model: str, captions: str) -> dict[str, float]:
    lora, notes = _trained(row, seed, file, cost_model)
    wanted, before = drawn_before(captions, seed)
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    attach_file(model.denoiser, lora)
    images = micro_requests.judged(wanted, before, micro_requests.draw(model, wanted), Judge.load(JUDGE))
    harmful, heldout, benign = micro_requests.headline(images)
    background = background_kept(images, BACKGROUNDS)
    alike = preservation([p for p in images if p.request.group in micro_requests.BENIGN_GROUPS])
    assert background is not None and alike is not None
    return {
        "harmful": harmful.after.value,
        "heldout": heldout.after.value,
        "benign": benign.after.value,
        "background": background.after.value,
        "ssim": alike.similarity.value,
        **notes,
        "before_harmful": harmful.before.value,
        "before_heldout": heldout.before.value,
        "before_benign": benign.before.value,
        "before_background": background.before.value,
        **{f"group_{group.name}": group.after.value for group in micro_requests.groups(images)},
    }


def _trained(row: str, seed: int, lora: Path, cost_model: str) -> tuple[Path, dict[str, float]]:
    """The LoRA of a row and seed with its duration and, of objectives over pairs, its accuracy.

    It is trained once, and judged by any captions.
    """
    facts = lora.with_suffix(".json")
    if not facts.exists():
        began = time.monotonic()
        run = lora.with_name(f"{lora.stem}-{int(time.time())}")
        job = run_job(settings_for(row, seed, run, cost_model))
        assert job.lora is not None
        shutil.copyfile(job.lora.path, lora)
        write_json(facts, {**_last_accuracy(job.folder), "seconds": time.monotonic() - began})
    notes: dict[str, float] = json.loads(facts.read_text(encoding="utf-8"))
    return lora, notes


def _last_accuracy(folder: Path) -> dict[str, float]:
    rows = [
        record.event.metrics.get("implicit_accuracy")
        for record in last_run(folder / "events.jsonl")
        if isinstance(record.event, Progress) and record.event.phase == "train"
    ]
    return next(({"accuracy": float(value)} for value in reversed(rows) if value is not None), {})


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The results as a Markdown table, mean and, with several seeds, half the 95 % interval."""
    first = next(iter(results.values()))
    lines = [
        "| row | " + " | ".join(_COLUMNS.values()) + " | seconds |",
        "|---" * (len(_COLUMNS) + 2) + "|",
        "| *before training* | "
        + " | ".join(_before([found.get(f"before_{key}") for found in first]) for key in _COLUMNS)
        + " | |",
    ]
    for row, found in results.items():
        columns = {key: [one[key] for one in found if key in one] for key in _COLUMNS}
        cells = [_cell(key, values) for key, values in columns.items()]
        seconds = sum(one["seconds"] for one in found) / len(found)
        lines.append(f"| {row} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def _cell(column: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    return cell(values, 2) if column == "ssim" else percent(values)


def _before(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return percent(known) if known else ""


def main(arguments: list[str] | None = None) -> int:
    """Run the rows and print the table; write it where `--table` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "sweep")
    parser.add_argument("--captions", choices=list(CAPTIONS), default="evaluation")
    parser.add_argument("--cost-model", default="micro", help="as train_lora.py's --cost-model")
    parser.add_argument("--table", type=Path, help="page whose table of these captions is replaced")
    options = parser.parse_args(arguments)
    results: dict[str, list[dict[str, float]]] = {}
    for row in options.rows:
        for seed in options.seeds:
            found = run_row(row, seed, options.work, options.cost_model, options.captions)
            results.setdefault(row, []).append(found)
            print(f"{row} (seed {seed}): " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()))
    text = table(results)
    print("\n" + text)
    if options.table:
        put(options.table, options.captions, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
