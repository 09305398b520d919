"""What the doors' pages show, as HTML made of the core's values: no host, no gradio, no state.

Each panel is a pure function to a piece of HTML whose look is `style`; images are inside, so that nothing has
to be served.
"""

from typing import Literal

from ..reports import html


def style() -> str:
    """Return the panels' style sheet."""
    return html.render("panel.css")


def notice(text: str, kind: Literal["info", "good", "bad"] = "info") -> str:
    """Return a sentence or several lines for the artist, which screen readers say at once."""
    return html.render("panel_notice.html", text=text, kind=kind)
