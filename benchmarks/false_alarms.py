"""How often harmless images are objected to.

    python benchmarks/false_alarms.py [FOLDER ...] [--halves] [--json FILE]

Without folders: the images of `tests/data/benign`, in the groups of its `sources.csv`. With folders: every
image below them, a group for each folder. Give harmless images only; each one that a scorer objects to is a
false alarm. A line for each scorer or rule: the share of images that it calls unsafe (cost at least +1.39),
harmful (above 0), and unsafe or to be reviewed (at least -1.39).

`--halves` is how the joint rule was chosen: the images are split in two by a hash of their names (images of
one template stay together), the rules are compared on the first half, and the second half says what the
chosen one is worth. `kept` is what a rule leaves of an objection that the other network does not share: the
cost where one network says .99 and the other .05, and of a drawing that nsfwjs calls sexual at .9 while
open_nsfw, which knows no drawings, says what it says of the drawings at hand (the median).
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from scdpo_core.cost import embedded, gore, nsfwjs, open_nsfw  # noqa: E402
from scdpo_core.io.discover import find_images  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.io.images import ImageError, open_image  # noqa: E402
from scdpo_core.types import REVIEW_FROM, UNSAFE_FROM  # noqa: E402

BENIGN = ROOT / "tests" / "data" / "benign"
Costs = NDArray[np.float64]


@dataclass(frozen=True)
class Answers:
    """What the networks say of N images.

    Attributes:
        names: of the files.
        groups: of the images.
        open_costs: [N] log-odds by open_nsfw.
        log_chances: [N, 5] by nsfwjs.
        gore: [N] log-odds, or None where the package is not installed.
    """

    names: Sequence[str]
    groups: Sequence[str]
    open_costs: Costs
    log_chances: Costs
    gore: Costs | None

    def part(self, chosen: NDArray[np.bool_]) -> Answers:
        """Those of some images."""
        return Answers(
            [name for name, keep in zip(self.names, chosen, strict=True) if keep],
            [group for group, keep in zip(self.groups, chosen, strict=True) if keep],
            self.open_costs[chosen],
            self.log_chances[chosen],
            None if self.gore is None else self.gore[chosen],
        )


def _own(log_chances: Costs) -> Costs:
    """The log-odds by nsfwjs alone: hentai or porn."""
    drawing, hentai, neutral, porn, sexy = log_chances.T
    costs: Costs = np.logaddexp(hentai, porn) - np.logaddexp(drawing, np.logaddexp(neutral, sexy))
    return costs


def _blend(open_costs: Costs, log_chances: Costs, margin: float) -> Costs:
    with_floor, _ = embedded.join(open_costs, log_chances, margin=margin)
    return with_floor


RULES: dict[str, Callable[[Costs, Costs], Costs]] = {
    "open-nsfw alone": lambda o, c: o,
    "nsfwjs alone": lambda o, c: _own(c),
    "maximum (strict)": lambda o, c: embedded.join(o, c, "strict")[0],
    "mean of log-odds": lambda o, c: (o + _own(c)) / 2,
    "open_nsfw twice as much": lambda o, c: (2 * o + _own(c)) / 3,
    "nsfwjs twice as much": lambda o, c: (o + 2 * _own(c)) / 3,
    "mean, at most 3.5 below": lambda o, c: np.maximum((o + _own(c)) / 2, np.maximum(o, _own(c)) - 3.5),
    "blend without a floor": lambda o, c: _blend(o, c, math.inf),
    "blend, at most 4.5 below": lambda o, c: _blend(o, c, 4.5),
    "blend, at most 3.5 below (embedded)": lambda o, c: embedded.join(o, c)[0],
    "blend, at most 2.5 below": lambda o, c: _blend(o, c, 2.5),
}
"""Ways to make one cost of open_nsfw's log-odds [N] and nsfwjs' logarithms of chances [N, 5]."""


def ask(files: Sequence[tuple[Path, str]]) -> Answers:
    """Let the networks look at images, given with their groups."""
    photographs, drawings = open_nsfw.network("cpu", 1), nsfwjs.network("cpu", 1)
    wounds = gore.GoreScorer(threads=1) if gore.find_weights() else None
    rows = []
    for number, (path, group) in enumerate(files, 1):
        try:
            image = open_image(path)
        except ImageError as error:
            print(f"{path}: {error}", file=sys.stderr)
            continue
        chances, _ = photographs(open_nsfw.prepare(image)[None])
        logits, _ = drawings(nsfwjs.prepare(image)[None])
        rows.append(
            (
                path.name,
                group,
                open_nsfw.cost_of(chances)[0],
                nsfwjs.log_chances(logits)[0],
                wounds.score([image])[0].value if wounds else 0.0,
            )
        )
        if number % 100 == 0:
            print(f"{number} of {len(files)}", file=sys.stderr)
    names, groups, open_costs, log_chances, gore_costs = zip(*rows, strict=True)
    return Answers(
        names, groups, np.array(open_costs), np.stack(log_chances), np.array(gore_costs) if wounds else None
    )


def shares(costs: Costs) -> dict[str, float]:
    """Percent of images at or above the bounds of the bands."""
    return {
        "unsafe": round(100 * float((costs >= UNSAFE_FROM).mean()), 2),
        "harmful": round(100 * float((costs > 0).mean()), 2),
        "review": round(100 * float((costs >= REVIEW_FROM).mean()), 2),
    }


def first_half(names: Sequence[str]) -> NDArray[np.bool_]:
    """Which images belong to the half that the rule is chosen on; 'a-1.webp' and 'a-2.webp' stay together."""
    stems = (re.sub(r"[-_]?\d*(\.app)?(-\d+)?\.\w+$", "", name) for name in names)
    return np.array([hashlib.sha256(stem.encode()).digest()[0] % 2 == 0 for stem in stems])


def kept(rule: Callable[[Costs, Costs], Costs], on_drawings: float) -> dict[str, float]:
    """What remains of an objection that one network has alone, as costs."""

    def cost(open_chance: float, drawing: float, hentai: float, porn: float) -> float:
        rest = 1 - drawing - hentai - porn
        chances = np.log([[drawing, hentai, rest * 0.9, porn, rest * 0.1]])
        return round(float(rule(np.array([math.log(open_chance / (1 - open_chance))]), chances)[0]), 2)

    open_chance = 1 / (1 + math.exp(-on_drawings))
    return {
        "open_nsfw .99, nsfwjs .05 (a photograph)": cost(0.99, 0.03, 0.01, 0.04),
        "open_nsfw .99, nsfwjs .05 (a drawing)": cost(0.99, 0.93, 0.03, 0.02),
        "open_nsfw .05, nsfwjs .99 (a photograph)": cost(0.05, 0.004, 0.005, 0.985),
        "a drawing, nsfwjs .9": cost(open_chance, 0.09, 0.89, 0.01),
    }


def table(title: str, answers: Answers, by_group: bool) -> dict[str, object]:
    """Print a line for each scorer, and for each of its groups; return the numbers."""
    print(f"\n{title}: {len(answers.names)} images\n{'':38}unsafe  harmful  review   (percent)")
    scorers = {name: rule(answers.open_costs, answers.log_chances) for name, rule in RULES.items()}
    if answers.gore is not None:
        scorers["gore"] = answers.gore
    found: dict[str, object] = {}
    for name, costs in scorers.items():
        groups = {"all": costs}
        if by_group:
            of_group = np.array(answers.groups)
            groups |= {group: costs[of_group == group] for group in sorted(set(answers.groups))}
        numbers = {group: shares(some) for group, some in groups.items()}
        for group, each in numbers.items():
            label = name if group == "all" else f"  {group} ({len(groups[group])})"
            if group == "all" or any(each.values()):
                print(f"{label:38}{each['unsafe']:6.2f}  {each['harmful']:7.2f}  {each['review']:6.2f}")
        found[name] = numbers
    return found


def main() -> int:
    """Score and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument(
        "--halves", action="store_true", help="choose a rule on one half, report on the other"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.folders:
        files = [(path, f.name) for f in options.folders for path in find_images([f]).files]
    else:
        with (BENIGN / "sources.csv").open(encoding="utf-8", newline="") as stream:
            files = [(BENIGN / row["file"], row["group"]) for row in csv.DictReader(stream)]
    answers = ask(files)
    found: dict[str, object] = {}
    if options.halves:
        chosen = first_half(answers.names)
        found["first half"] = table("First half, to choose on", answers.part(chosen), True)
        found["second half"] = table("Second half, to report", answers.part(~chosen), True)
        drawn = np.exp(answers.log_chances[:, 0]) > 0.5
        typical = float(np.median(answers.open_costs[drawn])) if drawn.any() else 0.0
        print(f"\nkept (open_nsfw's median on {int(drawn.sum())} drawings: {typical:+.2f})")
        for name, rule in RULES.items():
            found[f"kept: {name}"] = remains = kept(rule, typical)
            print(f"{name:38}{', '.join(f'{what}: {cost:+.2f}' for what, cost in remains.items())}")
    else:
        found["all"] = table("Harmless images", answers, True)
    if options.json:
        write_json(options.json, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
