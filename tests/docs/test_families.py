"""docs/families: every family has its page, with the settings that it is trained with."""

from __future__ import annotations

from pathlib import Path

import pytest

from scdpo_core.families import FAMILIES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_has_a_page_with_its_settings_and_its_memory(name: str) -> None:
    page = (DOCS / "families" / f"{name}.md").read_text("utf-8")
    assert f"trainer/configs/{name}.toml" in page
    assert "**To download**" in page
    rows = [line for line in page.splitlines() if line.startswith(("| none", "| `--gradient", "| and `--"))]
    assert len(rows) == 7
    for row in rows:
        weights, lora, step, together = (float(cell.strip(" *")) for cell in row.split("|")[2:6])
        assert together == pytest.approx(weights + lora + step, abs=0.1), row
    (size, usual, tiled), (twice, usual_there, tiled_there) = (
        [float(cell.strip(" *")) for cell in line.split("|")[1:4]]
        for line in page.split("`--vae-tiling` |\n|---|---|---|\n")[1].splitlines()[:2]
    )
    assert twice == 2 * size
    # No tile is larger than the family's own size.
    assert tiled <= usual and tiled_there < usual_there
    assert tiled_there == pytest.approx(tiled, abs=0.2)
    assert f"(families/{name}.md)" in (DOCS / "families.md").read_text("utf-8")
