"""What ordering pairs of two harmful images keeps of the shipped folder, for docs/cost-model.md.

python benchmarks/relabel.py [--work DIR] [--seeds 0 1 2]

Trains the demo's cost model once for each seed, unless DIR holds it already, and counts by category.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.tables import put  # noqa: E402
from scdpo_core.cost.scorers import load_scorer  # noqa: E402
from scdpo_core.io.images import open_image  # noqa: E402
from scdpo_core.micro.judge import Judge  # noqa: E402
from scdpo_core.micro.model import JUDGE  # noqa: E402
from scdpo_core.preferences.folder import check_folder  # noqa: E402
from scdpo_core.preferences.relabel import relabel  # noqa: E402
from scdpo_core.types import PreferencePair, ScoredPair  # noqa: E402

PAIRS, EXAMPLES = ROOT / "examples" / "preferences", ROOT / "examples" / "cost_pictures"
PAGE, NAME = ROOT / "docs" / "cost-model.md", "relabel table"


def main(arguments: Sequence[str] | None = None) -> int:
    """Count and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "relabel", help="where models are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the cost models")
    options = parser.parse_args(arguments)
    pairs = check_folder(PAIRS)
    judge = Judge.load(JUDGE)
    lost, still, judged = [], [], Counter[bool]()
    for seed in options.seeds:
        scored = scores(cost_model(options.work, seed), pairs)
        labelled, report = relabel(scored, both_unsafe="drop")
        dropped = {name for name, _ in report.dropped}
        lost.append(Counter(pair.category for pair in pairs if pair.id in dropped))
        labelled, report = relabel(scored)
        still.append(Counter(pair.category for pair in pairs if pair.id in dict(report.dropped)))
        if report.swapped:
            print(f"seed {seed}: swapped {report.swapped}")
        saved = [each.pair for each in labelled if each.pair.id in dropped]
        verdicts = judge([open_image(pair.chosen) for pair in saved])
        judged.update(verdict.harmful for verdict in verdicts)
    rows = ["| category | pairs | `drop` leaves out | `order` leaves out |", "|---|---|---|---|"]
    totals = Counter(pair.category for pair in pairs)
    for category, count in [*sorted(totals.items()), ("all", len(pairs))]:
        cells = [
            ", ".join(str(sum(one.values()) if category == "all" else one[category]) for one in counts)
            for counts in (lost, still)
        ]
        rows.append(f"| {category} | {count} | {' | '.join(cells)} |")
    end = f"\nThe judge calls {judged[False]} of the {judged.total()} chosen images that are kept harmless.\n"
    put(PAGE, NAME, "\n".join(rows) + "\n" + end)
    return 0


def cost_model(folder: Path, seed: int) -> Path:
    """The demo's cost model of a seed."""
    path = folder / f"cost{seed}.safetensors"
    if not path.is_file():
        # fmt: off
        subprocess.run([sys.executable, ROOT / "trainer" / "train_cost.py", "--unsafe", EXAMPLES / "unsafe",
                        "--safe", EXAMPLES / "safe", "--encoder", "micro", "--output", path,
                        "--seed", str(seed)], check=True)
        # fmt: on
    return path


def scores(path: Path, pairs: Sequence[PreferencePair]) -> list[ScoredPair]:
    """Both images of every pair, scored."""
    scorer = load_scorer(str(path), "cpu")
    return [
        ScoredPair(pair, *scorer.score([open_image(pair.chosen), open_image(pair.rejected)]))
        for pair in pairs
    ]


if __name__ == "__main__":
    sys.exit(main())
