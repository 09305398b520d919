"""SVG images element by element, and the ticks of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from markupsafe import Markup

from .wording import MINUS

WIDTH = 400
"""Of a chart in its own units; shown at 240 to 560 pixels."""


class Svg:
    """An SVG image under construction; every text and attribute is escaped when it is written."""

    def __init__(self, width: float, height: float, description: str = "", style: str = "chart") -> None:
        """Begin an image; without a description screen readers pass over it."""
        self._root = Element("svg", {"class": style, "viewBox": f"0 0 {width:g} {height:g}"})
        self._root.attrib |= (
            {"role": "img", "aria-label": description}
            if description
            else {"aria-hidden": "true", "focusable": "false"}
        )

    def add(self, tag: str, style: str, text: str = "", tooltip: str = "", **attributes: float | str) -> None:
        """Append an element; numbers are rounded to a tenth of a unit."""
        element = SubElement(self._root, tag, {"class": style})
        for name, value in attributes.items():
            number = f"{value:.1f}".removesuffix(".0") if isinstance(value, int | float) else value
            element.set(name.replace("_", "-"), number)
        if text:
            element.text = text
        if tooltip:
            SubElement(element, "title").text = tooltip

    def line(self, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """Append a straight line."""
        self.add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def path(self, style: str, points: Sequence[tuple[float, float]]) -> None:
        """Append an open path; points that are not finite interrupt it."""
        commands, pen = [], "M"
        for x, y in points:
            if math.isfinite(y):
                commands.append(f"{pen}{x:.1f} {y:.1f}")
                pen = "L"
            else:
                pen = "M"
        self.add("path", style, d="".join(commands))

    def text(
        self, style: str, x: float, y: float, text: str, anchor: str = "start", tooltip: str = ""
    ) -> None:
        """Append a line of text."""
        self.add("text", style, text, tooltip, x=x, y=y, text_anchor=anchor)

    def markup(self) -> Markup:
        """Return the image for a page."""
        return Markup(tostring(self._root, encoding="unicode"))


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return about that many round numbers within low..high."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    start = math.ceil(low / step - 1e-9)
    return [k * step for k in range(start, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float) -> str:
    """Return a number as an axis shows it."""
    text = f"{value:.6g}"
    return (text if "e" not in text else f"{value:.0e}").replace("-", MINUS)
