"""The page about a training: figures, reliability, and the images that look misfiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path

from ..cost.calibration import Figures, ReliabilityBin
from ..cost.label_errors import Suspect
from ..cost.training import CostTrainingResult
from ..io.files import write_text
from ..io.printable import printable
from .html_parts import badge, band_of, counted, path_line, render, thumbnail

_SIDE, _MARGIN = 300, 42


def write_training_page(
    path: Path,
    name: str,
    result: CostTrainingResult,
    suspects: Sequence[Suspect],
    files: Mapping[str, Path],
) -> None:
    """Write the page as one HTML file, atomically.

    Args:
        path: the .html file.
        name: of the cost model.
        result: of the training.
        suspects: the images that look misfiled.
        files: where each image lies, by the SHA-256 of its file.

    Raises:
        OSError: the file cannot be written.
    """
    found = result.figures
    page = render(
        "training.html",
        title=escape(f"Cost model {name}"),
        name=escape(name),
        created=datetime.now().strftime("%Y-%m-%d %H:%M"),
        headline=f"{found.recall_at_zero:.0%} of unsafe images found, {found.fpr_at_zero:.1%} false alarms",
        warnings="".join(f"<p><b>Note:</b> {escape(warning)}</p>" for warning in result.warnings),
        figures=_figures(result),
        reliability=reliability_chart(result.reliability),
        suspects=_suspects(suspects, files),
    )
    write_text(path, page)


def reliability_chart(bins: Sequence[ReliabilityBin]) -> str:
    """Chance of harm, predicted against observed, as SVG; larger dots stand for more images."""

    def at(predicted: float, observed: float) -> tuple[float, float]:
        return _MARGIN + predicted * _SIDE, _MARGIN / 2 + (1 - observed) * _SIDE

    filled = [one for one in bins if one.unsafe + one.safe]
    most = max((one.unsafe + one.safe for one in filled), default=1)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(one.predicted, one.observed) for one in filled))
    dots = []
    for one in filled:
        x, y = at(one.predicted, one.observed)
        radius = 3 + 6 * ((one.unsafe + one.safe) / most) ** 0.5
        dots.append(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>'
            f"said {one.predicted:.0%}, was {one.observed:.0%}: {one.unsafe} unsafe, {one.safe} safe"
            "</title></circle>"
        )
    left, top = at(0, 1)
    right, bottom = at(1, 0)
    ticks = "".join(
        f'<text x="{at(share, 0)[0]:.0f}" y="{bottom + 16:.0f}" text-anchor="middle">{share:.0%}</text>'
        f'<text x="{left - 6:.0f}" y="{at(0, share)[1] + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        for share in (0.0, 0.5, 1.0)
    )
    return (
        f'<figure style="max-width: 27rem"><svg class="chart" '
        f'viewBox="0 0 {right + 20:.0f} {bottom + 38:.0f}" role="img" aria-label="Reliability diagram">'
        f'<path class="axis" fill="none" d="M{left},{top}V{bottom}H{right}"/>'
        f'<line class="ideal" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>'
        f'<polyline class="seen" points="{line}"/>{"".join(dots)}{ticks}'
        f'<text x="{(left + right) / 2:.0f}" y="{bottom + 33:.0f}" text-anchor="middle">'
        "across: chance of harm by the cost; up: share harmful</text></svg></figure>"
    )


def _figures(result: CostTrainingResult) -> str:
    rows = [("overall", result.figures), *sorted(result.categories.items())]
    lines = "".join(_figures_row(name, figures) for name, figures in rows)
    return (
        "<table><thead><tr><th>Cost of</th><th>AUC</th><th>Unsafe above zero</th><th>Safe above zero</th>"
        f"</tr></thead><tbody>{lines}</tbody></table>"
    )


def _figures_row(name: str, figures: Figures | None) -> str:
    if figures is None:
        return f'<tr><th scope="row">{escape(name)}</th><td colspan="3">too few images</td></tr>'
    return (
        f'<tr><th scope="row">{escape(name)}</th><td>{figures.auc:.4f}</td>'
        f"<td>{figures.recall_at_zero:.1%} of {figures.unsafe:,}</td>"
        f"<td>{figures.fpr_at_zero:.1%} of {figures.safe:,}</td></tr>"
    )


def _suspects(suspects: Sequence[Suspect], files: Mapping[str, Path]) -> str:
    if not suspects:
        return '<p class="lead">None: no image looks more like the other kind than that kind does itself.</p>'
    cards = []
    for one in suspects:
        path, label = files[one.digest], "unsafe" if one.unsafe else "safe"
        cards.append(
            '<li><button type="button" class="shot" aria-label="Show or cover this image">'
            f'{thumbnail(path)}</button><div class="said">{badge(one.cost, band_of(one.cost))}'
            f'<span class="why">filed as {label}</span></div>{path_line(printable(str(path)))}</li>'
        )
    these = f"{'This one looks' if len(suspects) == 1 else f'These {len(suspects)} look'} misfiled"
    return (
        f'<p class="lead">{these}: a model that never saw them puts them as far on the other side '
        "as most of that side's own images. Look at each; move it, remove it, or leave it as a hard case. "
        f"{counted(len(suspects), 'image')}, the clearest first; click to uncover.</p>"
        f'<ul class="sheet veiled" role="list">{"".join(cards)}</ul>'
    )
