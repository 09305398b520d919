"""The tables of `docs/evidence.md`, from result files: pooled over seeds, with intervals and exact tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.evidence.measures import HARMFUL, TITLES
from benchmarks.evidence.results import Result
from benchmarks.evidence.rows import OURS, ROWS
from benchmarks.evidence.worlds import WORLDS
from scdpo_core.evaluation.intervals import Rate
from scdpo_core.evaluation.paired import bootstrap_mean, mcnemar

Results = Mapping[str, Sequence[Result]]
"""Row -> its results, one for each seed."""

_RATES = ("harmful", "synonyms", "heldout", "benign", "unpaired", "companion", "ghosts", "background")
_EQUAL_HARM = 0.05


def pooled(results: Sequence[Result], measure: str) -> list[bool]:
    """The hits of all seeds, one after the other."""
    return [hit for one in results for hit in one.hits.get(measure, ())]


def harm(results: Sequence[Result]) -> list[bool]:
    """Every harmful caption of all seeds: trained, in other words, held out."""
    return [hit for one in results for name in HARMFUL for hit in one.hits.get(name, ())]


def rate(hits: Sequence[bool]) -> str:
    """A share with its Wilson interval: '2.1 % (0.7-6)'."""
    if not hits:
        return ""
    found = Rate(sum(hits), len(hits))
    interval = found.interval()
    return f"{100 * found.value:.1f} % ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def _mean(results: Sequence[Result], measure: str) -> str:
    values = [value for one in results for value in one.values.get(measure, ())]
    if values:
        found = bootstrap_mean(values)
        return f"{found.value:.3f} ({found.interval.low:.3f}-{found.interval.high:.3f})"
    figures = [one.figures[measure] for one in results if measure in one.figures]
    return f"{sum(figures) / len(figures):.3f}" if figures else ""


def _against(results: Results, row: str, hits: Callable[[Sequence[Result]], list[bool]], to: str) -> str:
    """Hits that only this row has : hits that only the other has, and the exact p."""
    if to not in results or row in (to, "base"):
        return ""
    one, other = hits(results[row]), hits(results[to])
    if len(one) != len(other):
        return ""
    found = mcnemar(one, other)
    return f"{found.only_first}:{found.only_second}, p = {found.p:.2g}"


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def main_table(results: Results) -> str:
    """Every row of one world: what is drawn, and harm against the row that is ours."""
    names = [
        name
        for name in _RATES
        if name != "unpaired" or any(pooled(own, "unpaired") for own in results.values())
    ]
    head = ["row", *(TITLES[name] for name in names), "SSIM", "ua_proxy", f"harm against {ROWS[OURS].title}"]
    rows = []
    for row, own in results.items():
        cells = [rate(pooled(own, name)) for name in names]
        told = _against(results, row, harm, OURS)
        rows.append([ROWS[row].title, *cells, _mean(own, "ssim"), _mean(own, "ua_proxy"), told])
    return _markdown(head, rows)


def cost_table(results: Results) -> str:
    """What each row computes, and harm for it: equal steps, equal images, equal harm."""
    head = ["row", "steps", "images with gradient", "images without", "seconds", "all harm", "SSIM"]
    head += [f"strength for {100 * _EQUAL_HARM:.0f} % harm", "SSIM there"]
    rows = []
    for row, own in results.items():
        trained = [one.training for one in own if one.training]
        if not trained:
            continue

        def mean(key: str, trained: Sequence[Mapping[str, float]] = trained) -> str:
            return f"{sum(one[key] for one in trained) / len(trained):,.0f}"

        keys = ("steps", "images_policy", "images_reference", "seconds")
        strength, alike = equal_harm(own)
        cells = [rate(harm(own)), _mean(own, "ssim"), strength, alike]
        rows.append([ROWS[row].title, *(mean(key) for key in keys), *cells])
    return _markdown(head, rows)


def equal_harm(results: Sequence[Result], limit: float = _EQUAL_HARM) -> tuple[str, str]:
    """The least strength with at most that harm, interpolated, and the SSIM there; means of the seeds."""
    crossings = [_crossing(one.frontier, limit) for one in results if one.frontier]
    found = [crossing for crossing in crossings if crossing is not None]
    if len(found) < len(crossings):
        return "none", ""
    if not found:
        return "", ""
    strength, alike = (sum(pair[k] for pair in found) / len(found) for k in (0, 1))
    return f"{strength:.2f}", f"{alike:.3f}"


def _crossing(points: Sequence[Mapping[str, float]], limit: float) -> tuple[float, float] | None:
    previous: Mapping[str, float] = {"strength": 0.0, "harmful": 1.0, "ssim": 1.0}
    for point in points:
        if point["harmful"] <= limit:
            drop = previous["harmful"] - point["harmful"]
            share = (previous["harmful"] - limit) / drop if drop > 0 else 1.0
            return (
                previous["strength"] + share * (point["strength"] - previous["strength"]),
                previous["ssim"] + share * (point["ssim"] - previous["ssim"]),
            )
        previous = point
    return None


def attack_table(results: Results, names: Sequence[str]) -> str:
    """Attacks down, rows across: share of captions that were broken."""
    rows = [row for row, own in results.items() if any(one.attacks for one in own)]
    shown = [name for name in names if any(name in one.attacks for row in rows for one in results[row])]
    lines = []
    for name in shown:
        own = {row: [hit for one in results[row] for hit in _broken(one, name)] for row in rows}
        budget = next(
            (one.attacks[name]["budget"] for row in rows for one in results[row] if name in one.attacks), ""
        )
        lines.append([name, budget, *(rate(own[row]) for row in rows)])
    return _markdown(["attack", "budget", *(ROWS[row].title for row in rows)], lines)


def _broken(result: Result, name: str) -> list[bool]:
    return list(result.attacks.get(name, {}).get("hits", ()))


def worlds_table(found: Mapping[str, Results]) -> str:
    """Every world and row: all harm, benign with and without pairs, SSIM, style."""
    head = ["world", "row", "all harm", "benign with a pair", "benign without", "companion kept", "SSIM"]
    head += ["contrast", "style drift", "mark drawn", f"harm against {ROWS[OURS].title}"]
    rows = []
    for world, results in found.items():
        for row, own in results.items():
            cells = [
                rate(harm(own)),
                *(rate(pooled(own, name)) for name in ("paired", "unpaired", "companion")),
            ]
            cells += [_mean(own, "ssim"), _mean(own, "contrast"), _mean(own, "style")]
            cells.append(rate(pooled(own, "marked")) if WORLDS[world].marked else "")
            told = _against(results, row, harm, OURS)
            rows.append([WORLDS[world].title, ROWS[row].title, *cells, told])
    return _markdown(head, rows)


def category_table(results: Results, category: str) -> str:
    """Harm in one category, where it was rare, beside all other harm."""
    rows = []
    for row, own in results.items():
        rows.append([ROWS[row].title, rate(pooled(own, f"harmful_{category}")), rate(harm(own))])
    return _markdown(["row", f"harmful, {category}", "all harm"], rows)
