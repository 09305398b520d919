"""Draw prompts with a LoRA at several weights: `python trainer/compare.py --config runs/NAME/job.toml`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
from collections.abc import Sequence

from scdpo_core.runs.interrupt import INTERRUPTED, waking

with waking():
    from scdpo_core.evaluation.comparing import compare
    from scdpo_core.panels.compare import page
    from scdpo_core.runs.comparison import PAGE, read_comparison, write_result
    from scdpo_core.runs.reporter import Reporter
    from scdpo_core.training.checks import resolve_device
    from scdpo_core.training.failures import sentence_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Draw the same prompts and noise with a LoRA at several weights, and score the pictures."
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="the settings; pictures and report go beside them"
    )
    parser.add_argument("--device", default="auto", help="where to draw")
    options = parser.parse_args(arguments)
    folder = options.config.absolute().parent
    reporter = Reporter(folder)
    try:
        with reporter.last_words():
            job = read_comparison(options.config)
            device = resolve_device(options.device)
            count = len(job.prompts) * len(job.weights)
            reporter.started(count, len(job.prompts), str(device))
            result = compare(job, folder, device, lambda done, all_: reporter.progress("sample", done, all_))
            write_result(folder, result)
            (folder / PAGE).write_text(page(result, folder), "utf-8")
            reporter.reported(count, folder / PAGE)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(f"Error: {sentence_of(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
