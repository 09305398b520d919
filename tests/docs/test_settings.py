"""docs/settings.md: every setting is there, with its default."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from scdpo_core.config.settings import TrainSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
ROW = re.compile(r"\| `--([a-z0-9-]+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")


def _default(value: object) -> str:
    if value is None or value == ():
        return "not set" if value is None else "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_every_setting_is_explained_with_its_default() -> None:
    text = PAGE.read_text("utf-8")
    for section in dataclasses.fields(TrainSettings):
        part = getattr(TrainSettings(), section.name)
        start = text.index(f"(`[{section.name}]`)")
        end = text.find("\n## ", start)
        rows = {name: default.strip() for name, default, _, _ in ROW.findall(text[start:end])}
        expected = {
            field.name.replace("_", "-"): _default(getattr(part, field.name))
            for field in dataclasses.fields(part)
        }
        assert rows == expected
