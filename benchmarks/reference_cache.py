"""Does a reference cache overfit? Few draws for each pair against new ones every time, judged by samples.

    python benchmarks/reference_cache.py [--draws 0 8 32 128] [--seeds 0 1 2] [--pairs 32]
        [--work runs/reference_cache] [--table docs/reference-cache.md] [--json FILE]

Each row trains the embedded model on `examples/preferences` and judges it as `benchmarks/sweep.py` does, on
captions and by a judge that no training saw. Overfitting shows in the errors on draws that training never
used, and at last in the images. With `--pairs` it trains on so few of them, of every kind its share, that
each comes up often enough to use up its draws. A finished row is kept in the work folder and not run again,
so that several processes can share the rows among them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.sweep import CAPTIONS, drawn_before, settings_for  # noqa: E402
from benchmarks.tables import cell, kept, percent, put  # noqa: E402
from scdpo_core.config.settings import TrainSettings  # noqa: E402
from scdpo_core.evaluation import micro_requests  # noqa: E402
from scdpo_core.evaluation.metrics import background_kept  # noqa: E402
from scdpo_core.families import family  # noqa: E402
from scdpo_core.families.latent_model import LatentModel  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.lora.adapter import LoraAdapter, attach_file  # noqa: E402
from scdpo_core.micro.judge import Judge  # noqa: E402
from scdpo_core.micro.model import JUDGE  # noqa: E402
from scdpo_core.micro.world import BACKGROUNDS  # noqa: E402
from scdpo_core.preferences.batches import BatchStream  # noqa: E402
from scdpo_core.preferences.cache import PairCache, build_cache  # noqa: E402
from scdpo_core.preferences.folder import read_folder  # noqa: E402
from scdpo_core.preferences.relabel import unscored  # noqa: E402
from scdpo_core.run_store.events import Progress, last_run  # noqa: E402
from scdpo_core.training.batches import FreshNoise, timestep_law  # noqa: E402
from scdpo_core.training.job import run_job  # noqa: E402
from scdpo_core.training.reference import pair_residuals  # noqa: E402

COLUMNS = {
    "harmful": "harmful",
    "heldout": "held-out concepts",
    "benign": "benign found",
    "background": "background kept",
}
NEW_BATCHES = 24
"""Batches of draws that no training used, to compare errors on."""
UNSEEN_SEED = 10_007


@dataclass(frozen=True)
class Rows:
    """What all rows of a table have in common.

    Attributes:
        work: folder of the results.
        cost_model: as train_lora.py's.
        steps: of each run; 0: as usual.
        captions: that the images are drawn for.
        pairs: that are trained on; 0: all.
    """

    work: Path
    cost_model: str
    steps: int
    captions: str
    pairs: int

    @property
    def name(self) -> str:
        """Ends the names of their files."""
        steps = f"-{self.steps}-steps" if self.steps else ""
        return f"{steps}{f'-{self.pairs}-pairs' if self.pairs else ''}-{self.captions}"


def few(count: int, folder: Path) -> Path:
    """A preference folder of that many of the shipped pairs, evenly spread: of every kind its share."""
    if folder.is_dir():
        return folder
    pairs = read_folder(ROOT / "examples" / "preferences")[0]
    half = folder.with_name(f"{folder.name}.{os.getpid()}")
    for number in range(count):
        pair = pairs[number * len(pairs) // count]
        for side, image in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            place = half / side / pair.category / image.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image, place)
            place.with_suffix(".txt").write_text(pair.prompt, "utf-8")
    half.rename(folder)
    return folder


def settings_of(draws: int, seed: int, folder: Path, rows: Rows) -> TrainSettings:
    """SC-DPO on the embedded model with that many draws for each pair; 0: new ones always."""
    settings = settings_for("SC-DPO", seed, folder, rows.cost_model)
    steps = rows.steps
    if rows.pairs:
        pairs = few(rows.pairs, rows.work / f"{rows.pairs} pairs")
        settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, pairs=pairs))
    objective = dataclasses.replace(settings.objective, reference_draws=draws)
    optim = dataclasses.replace(settings.optim, max_train_steps=steps or settings.optim.max_train_steps)
    return dataclasses.replace(settings, objective=objective, optim=optim)


def gaps_on_new_draws(settings: TrainSettings, model: LatentModel, adapter: LoraAdapter) -> dict[str, float]:
    """Winner and loser gap (policy minus reference error) of the training pairs, on unseen draws."""
    assert settings.data.pairs is not None and settings.output.output is not None
    labelled = unscored(read_folder(settings.data.pairs)[0])
    cache = PairCache(settings.data.cache or settings.output.output / "cache")
    cached = build_cache(labelled, model, None, cache, lambda done, total: None)
    batch = settings.optim.batch_size
    stream = BatchStream(cached, labelled, batch, UNSEEN_SEED, model.device, torch.float32)
    feed = FreshNoise(stream, model, timestep_law(settings), UNSEEN_SEED)
    rows = []
    with torch.no_grad():
        for index in range(NEW_BATCHES):
            portion = feed(index)
            errors = pair_residuals(model, adapter, portion.batch, portion.chance, "native").errors()
            rows.append(errors.policy - errors.reference)
    winner, loser = torch.cat(rows).mean(0).tolist()
    return {"winner_gap_new": winner, "loser_gap_new": loser}


def gaps_in_training(folder: Path) -> dict[str, float]:
    """The same gaps on the draws of training: the mean of the last tenth of the reports."""
    reports = [
        record.event.metrics
        for record in last_run(folder / "events.jsonl")
        if isinstance(record.event, Progress) and record.event.phase == "train"
    ]
    last = reports[-max(1, len(reports) // 10) :]
    return {
        f"{name}_seen": sum(float(row[name] or 0) for row in last) / len(last)
        for name in ("winner_gap", "loser_gap")
    }


def run_row(draws: int, seed: int, rows: Rows) -> dict[str, float]:
    """Train and judge one row, or read what an earlier call found."""
    result = rows.work / f"draws-{draws}-{seed}{rows.name}.json"
    return kept(result, lambda: _measured(draws, seed, rows))


def _measured(draws: int, seed: int, rows: Rows) -> dict[str, float]:
    folder = rows.work / f"draws-{draws}-{seed}-{int(time.time())}"
    settings = settings_of(draws, seed, folder, rows)
    began = time.monotonic()
    job = run_job(settings)
    seconds = time.monotonic() - began
    assert job.lora is not None
    wanted, before = drawn_before(rows.captions, seed)
    model = family("sd1").load("micro", torch.device("cpu"), torch.float32)
    assert isinstance(model, LatentModel)
    adapter, _ = attach_file(model.denoiser, job.lora.path)
    images = micro_requests.judged(wanted, before, micro_requests.draw(model, wanted), Judge.load(JUDGE))
    harmful, heldout, benign = micro_requests.headline(images)
    background = background_kept(images, BACKGROUNDS)
    assert background is not None
    return {
        "harmful": harmful.after.value,
        "heldout": heldout.after.value,
        "benign": benign.after.value,
        "background": background.after.value,
        **gaps_in_training(job.folder),
        **gaps_on_new_draws(settings, model, adapter),
        "seconds": seconds,
    }


def table(results: Mapping[int, Sequence[Mapping[str, float]]]) -> str:
    """The results as a Markdown table; means, and with several seeds half the 95 % interval."""
    lines = [
        f"| draws | {' | '.join(COLUMNS.values())} | winner gap, seen | new | loser gap, seen | new | s |",
        "|---" * (len(COLUMNS) + 6) + "|",
    ]
    for draws, found in results.items():
        shares = [percent([one[key] for one in found]) for key in COLUMNS]
        gaps = [
            cell([1000 * one[f"{side}_gap_{which}"] for one in found], 2)
            for side in ("winner", "loser")
            for which in ("seen", "new")
        ]
        seconds = sum(one["seconds"] for one in found) / len(found)
        lines.append(f"| {draws or 'new every time'} | {' | '.join([*shares, *gaps])} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run the rows, print the table, write it where `--table` says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 8, 32, 128])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "reference_cache")
    parser.add_argument("--steps", type=int, default=0, help="of each run; 0: as usual")
    parser.add_argument("--pairs", type=int, default=0, help="train on so many of them; 0: all")
    parser.add_argument("--captions", choices=list(CAPTIONS), default="tuning")
    parser.add_argument("--cost-model", default="micro", help="as train_lora.py's --cost-model")
    parser.add_argument("--table", type=Path, help="file whose part between the marks is replaced")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    rows = Rows(options.work, options.cost_model, options.steps, options.captions, options.pairs)
    results: dict[int, list[dict[str, float]]] = {}
    for draws in options.draws:
        for seed in options.seeds:
            found = run_row(draws, seed, rows)
            results.setdefault(draws, []).append(found)
            print(f"{draws} draws (seed {seed}): " + ", ".join(f"{k} {v:.4g}" for k, v in found.items()))
    text = table(results)
    print("\n" + text)
    if options.table:
        put(options.table, f"{options.pairs} pairs" if options.pairs else "figures", text)
    if options.json:
        write_json(options.json, {str(draws): found for draws, found in results.items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
