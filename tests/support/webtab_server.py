"""Serve the tab under any gradio: `python tests/support/webtab_server.py PORT FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from a1111_extension import tab
from a1111_extension.jobs import Jobs
from a1111_extension.ui_context import UiContext
from scdpo_core.types import CostScore


class Redness:
    """Scores images by their red; needs no weights."""

    id, hash, categories = "redness", "0123456789ab", ()

    def prepare(self, image):
        return image.convert("RGB").resize((1, 1)).getpixel((0, 0))[0]

    def score_prepared(self, prepared):
        return [CostScore(red / 32 - 4, {}, self.id, self.hash) for red in prepared]

    def score(self, images):
        return self.score_prepared([self.prepare(image) for image in images])


def ui_context_in(data: Path) -> UiContext:
    return UiContext(
        jobs=Jobs(data / "runs", scorer=Redness),
        preferences=data / "preferences",
        images=str(data / "images"),
        bases=lambda: {"embedded": "micro"},
        base=lambda: "embedded",
        loras=dict,
        cost_models=lambda: ["redness"],
        in_use=lambda: "redness",
        scorer=lambda name: Redness(),
    )


def main() -> None:
    port, data = int(sys.argv[1]), Path(sys.argv[2])
    page = tab.build(ui_context_in(data))
    page.queue()
    page.launch(server_name="127.0.0.1", server_port=port, quiet=True)


if __name__ == "__main__":
    main()
