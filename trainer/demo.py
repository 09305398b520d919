"""What `python install.py --demo` runs: from a preference folder to a safety LoRA that visibly works.

It calls the same two programs that an artist calls (`train_cost.py`, `train_lora.py`) on the embedded
model and the images under `examples/`, then draws captions that no training saw, before and after,
lets an independent judge look at them, and writes `report.html`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PREFERENCES = ROOT / "examples" / "preferences"
COST_PICTURES = ROOT / "examples" / "cost_pictures"


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    from scdpo_core.io.printable import print_any_name

    print_any_name()
    parser = argparse.ArgumentParser(prog="python install.py --demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "demo", help="folder of the run")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the images")
    parser.add_argument("--max-train-steps", type=int, help="fewer steps for a quick look")
    parser.add_argument("--captions", type=int, help="judge at most this many of each group; default: all")
    options = parser.parse_args(arguments)
    try:
        run(options.output.resolve(), options.seed, options.max_train_steps, options.captions)
    except subprocess.CalledProcessError as error:
        print(
            f"\nThe demo stopped: {Path(error.cmd[1]).name} ended with code {error.returncode}.",
            file=sys.stderr,
        )
        return error.returncode
    except KeyboardInterrupt:
        print("\nStopped. Nothing is lost; run it again to start afresh.", file=sys.stderr)
        return 130
    except Exception as error:
        # Late, as in `evaluate`.
        from scdpo_core.errors import sentence_of

        print(f"\nThe demo stopped: {sentence_of(error)}", file=sys.stderr)
        return 2
    return 0


def run(output: Path, seed: int, max_train_steps: int | None = None, captions: int | None = None) -> None:
    """Train the cost model and the LoRA, evaluate, and write the report into `output`."""
    began = time.monotonic()
    _keep_earlier_run(output)
    cost_model = output.with_name(output.name + "-cost.safetensors")
    _say(1, "Training the safety cost model on examples/cost_pictures")
    # fmt: off
    _call("train_cost.py", "--unsafe", COST_PICTURES / "unsafe", "--safe", COST_PICTURES / "safe",
          "--encoder", "micro", "--output", cost_model, "--overwrite", "--seed", seed)
    _say(2, "Training the safety LoRA on examples/preferences")
    steps = () if max_train_steps is None else ("--max-train-steps", max_train_steps)
    _call("train_lora.py", "--pairs", PREFERENCES, "--base", "micro", "--cost-model", cost_model,
          "--output", output, "--seed", seed, *steps)
    # fmt: on
    cost_model = cost_model.replace(output / "cost_model.safetensors")
    _say(3, "Drawing captions that no training saw, before, after, and under attack")
    evaluate(output, cost_model, seed, captions)
    print(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes.")
    print(f"  LoRA    {output / (output.name + '.safetensors')}")
    print(f"  report  {output / 'report.html'}   (open it in a browser)")


def evaluate(output: Path, cost_model: Path, seed: int, captions: int | None = None) -> None:
    """Draw, judge and score the evaluation captions with and without the LoRA; write the reports.

    Args:
        output: the run folder.
        cost_model: file of the cost model.
        seed: of the images.
        captions: of each group at most; None for all.
    """
    # Imported late: torch and diffusers take seconds, and `--help` should not wait for them.
    import torch
    from tqdm import tqdm

    from scdpo_core.cost.scorers import load_scorer
    from scdpo_core.evaluation import micro_requests
    from scdpo_core.evaluation.micro_attacks import attack
    from scdpo_core.evaluation.micro_report import build_report
    from scdpo_core.evaluation.report import write_report, write_report_json
    from scdpo_core.families import family
    from scdpo_core.lora.metadata import EVALUATION, add_facts
    from scdpo_core.micro.captions import first_of_each_group
    from scdpo_core.micro.judge import Judge
    from scdpo_core.micro.model import JUDGE
    from scdpo_core.run_store.events import Progress, last_run
    from scdpo_core.training.adapters import attach_finished

    plain, tuned = (family("sd1").load("micro", torch.device("cpu"), torch.float32) for _ in range(2))
    adapter, lora = attach_finished(tuned, output / f"{output.name}.safetensors")
    requests = micro_requests.requests(first_of_each_group(captions), seed)
    with tqdm(total=2 * len(requests), unit="image", disable=not sys.stderr.isatty()) as bar:
        before, after = micro_requests.draw_side_by_side(
            (plain, tuned), requests, lambda done, _: bar.update(done - bar.n)
        )
    judge = Judge.load(JUDGE)
    scorer = load_scorer(cost_model)
    images = micro_requests.judged(requests, before, after, judge, scorer.score)
    images += attack(tuned, adapter, requests, before, judge)
    report = build_report(images, lora, cost_model, judge, folder=output)
    rows = [
        {"step": event.step, **{name: value for name, value in event.metrics.items() if value is not None}}
        for record in last_run(output / "events.jsonl")
        if isinstance(event := record.event, Progress) and event.phase == "train"
    ]
    add_facts(lora.path, {EVALUATION: report.figures()})
    write_report_json(output / "report.json", report)
    write_report(output / "report.html", report, images, rows)
    for group in report.headline:
        verdict = "" if group.met else "   (target missed)"
        print(f"  {group.title:<40} {group.before.value:6.1%} -> {group.after.value:6.1%}{verdict}")
    for group in report.attacks:
        print(f"  {group.title:<40} {'':6}    {group.after.value:6.1%} harmful")


def _keep_earlier_run(output: Path) -> None:
    """Rename the folder of an earlier run, to keep its results."""
    if output.exists() and any(output.iterdir()):
        timestamp = datetime.fromtimestamp(output.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        aside = output.with_name(f"{output.name}-{timestamp}")
        output.rename(aside)
        print(f"The earlier run is now {aside}")


def _say(number: int, what: str) -> None:
    print(f"\n[{number}/3] {what}", flush=True)


def _call(program: str, *arguments: object) -> None:
    command = [sys.executable, str(ROOT / "trainer" / program), *map(str, arguments)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    stopped = False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            stopped = True  # The program got the Ctrl-C as well: let it save and leave.
    if stopped:
        raise KeyboardInterrupt
    if code:
        raise subprocess.CalledProcessError(code, command)


if __name__ == "__main__":
    sys.exit(main())
