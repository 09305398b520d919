"""The openly licensed emoji art that the embedded world is drawn from (see NOTICE).

The packages come from the npm registry through the `npm` client, once, into a folder of the build.
Only building the world needs this module; using the shipped weights does not.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .icon_names import NAMED_OTHERWISE, PISTOL

PACKAGES = {
    "noto": "emoji-datasource-google@16.0.0",
    "fluent-3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto-old": "@iconify-json/noto-v1@1.2.5",
    "emojione": "@iconify-json/emojione@1.2.3",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
    "noto-oreo": "emoji-datasource-google@4.0.4",
    "fluent-ink": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "emojione-ink": "@iconify-json/emojione-monotone@1.2.1",
    "noto-ink": "@fontsource/noto-emoji@5.3.2",
    "mdi": "@iconify-json/mdi@1.2.3",
    "game-icons": "@iconify-json/game-icons@1.2.4",
    "tabler": "@iconify-json/tabler@1.2.41",
    "twemoji": "emoji-datasource-twitter@16.0.0",
}
"""Drawing styles: the generator draws in Noto; all but Twemoji train the image tower, the first seven the
cost model too, the first five the towers' first leg; Twemoji is the style that no training ever sees."""

STYLES_TRAINED = ("noto", "fluent-3d", "fluent-flat", "noto-old", "emojione")
STYLES_OF_COST = (*STYLES_TRAINED, "fxemoji", "streamline")
STYLES_IN_INK = ("fluent-ink", "emojione-ink", "noto-ink", "mdi", "game-icons", "tabler")
STYLES_OF_TOWER = (*STYLES_OF_COST, "noto-oreo", *STYLES_IN_INK)
STYLE_UNSEEN = "twemoji"
SPRITE_SIZE = 64


@dataclass(frozen=True)
class Art:
    """Sprites of every style, by emoji code.

    Attributes:
        folder: where the packages were unpacked.
    """

    folder: Path

    def codes(self, style: str) -> list[str]:
        """List the emoji codes that a style can draw, sorted (without skin-tone variants)."""
        return sorted(_index(self.folder, style))

    def catalogue(self) -> list[tuple[str, str, str]]:
        """Code, name and Unicode's group of every emoji, sorted by code."""
        rows = json.loads((self.folder / "noto" / "package" / "emoji.json").read_text(encoding="utf-8"))
        return sorted((_plain(row["unified"].lower()), row["short_name"], row["subcategory"]) for row in rows)

    def has(self, style: str, code: str) -> bool:
        """Return whether a style draws an emoji."""
        return code in _index(self.folder, style)

    def sprite(self, style: str, code: str) -> Image.Image | None:
        """Return the RGBA sprite, 64x64, or None when the style lacks that emoji. Do not modify it."""
        return _sprite(self.folder, style, code)


def fetch(
    folder: Path, tell: Callable[[str], None] = lambda _: None, styles: Sequence[str] = tuple(PACKAGES)
) -> Art:
    """Get every package that is missing under `folder` and return the art.

    Args:
        folder: one subfolder per style.
        tell: gets a line for each package.
        styles: keys of `PACKAGES` that will be drawn in.

    Raises:
        RuntimeError: npm is not installed, or a package could not be had; says which.
    """
    npm = shutil.which("npm")
    for style in styles:
        package, target = PACKAGES[style], folder / style
        if target.is_dir():
            continue
        if npm is None:
            raise RuntimeError("Building the embedded world needs the program `npm` to get the emoji art.")
        tell(f"getting {package}")
        folder.mkdir(parents=True, exist_ok=True)
        run = subprocess.run(
            [npm, "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(f"npm could not get {package}: {run.stderr.strip()[-500:]}")
        archive = folder / run.stdout.strip().splitlines()[-1]
        partial = folder / f".{style}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as bundle:
            bundle.extractall(partial, filter="data")
        archive.unlink()
        partial.rename(target)
    return Art(folder)


@lru_cache(maxsize=32)
def _index(folder: Path, style: str) -> dict[str, str]:
    """Emoji code (without variation selectors) to the file or icon name of a style."""
    package = folder / style / "package"
    if style in _DATASOURCES:
        vendor = _DATASOURCES[style]
        rows = json.loads((package / "emoji.json").read_text(encoding="utf-8"))
        return {
            _plain(row["unified"].lower()): str(package / "img" / vendor / "64" / row["image"])
            for row in rows
            if row[f"has_img_{vendor}"] and row["category"] not in ("Flags", "Component")
            if not (style == "noto-oreo" and row["unified"].lower() == PISTOL)
        }
    if style == "fluent-3d":
        return {_plain(path.stem): str(path) for path in sorted((package / "assets").glob("*.webp"))}
    if style == "noto-ink":
        return _glyphs(package)
    if style in NAMED_OTHERWISE:
        return _by_any_name(folder, style)
    # These Iconify sets name their icons after Unicode's own names; the Fluent one has a list of the codes.
    drawn = _icons(package / "icons.json")
    return {
        code: name
        for code, name in _fluent_names(folder).items()
        if name in drawn["icons"] or name in drawn.get("aliases", {})
    }


_DATASOURCES = {"noto": "google", "noto-oreo": "google", "twemoji": "twitter"}
"""Styles in packages of images with a table of their codes, and that table's name for the vendor."""


def _by_any_name(folder: Path, style: str) -> dict[str, str]:
    """Match icons to codes by Unicode's name, the short names in use, or Fluent's name."""

    def squash(name: str) -> str:
        return "".join(letter for letter in name.lower() if letter.isalnum())

    drawn = _icons(folder / style / "package" / "icons.json")
    named = {squash(name.removesuffix("-1")): name for name in [*drawn.get("aliases", {}), *drawn["icons"]]}
    rows = json.loads((folder / "noto" / "package" / "emoji.json").read_text(encoding="utf-8"))
    fluent, by_name = _fluent_names(folder), dict[str, str]()
    for row in rows:
        code = _plain(row["unified"].lower())
        calls = [fluent.get(code, ""), row["name"] or "", *row["short_names"]]
        name = next((named[squash(call)] for call in calls if squash(call) in named), None)
        name = NAMED_OTHERWISE[style].get(code, name)
        if name is not None:
            by_name[code] = name
    return by_name


def _glyphs(package: Path) -> dict[str, str]:
    """Emoji of one code point to the part of the font that draws them."""
    ranges = json.loads((package / "unicode.json").read_text(encoding="utf-8"))
    glyphs: dict[str, str] = {}
    for part, listed in ranges.items():
        path = package / "files" / f"noto-emoji-{part.strip('[]')}-400-normal.woff2"
        for span in listed.split(","):
            first, _, last = span.removeprefix("U+").partition("-")
            for code in range(int(first, 16), int(last or first, 16) + 1):
                glyphs.setdefault(f"{code:x}", str(path))
    return glyphs


def _fluent_names(folder: Path) -> dict[str, str]:
    path = folder / "fluent-flat" / "package" / "chars.json"
    return {_plain(code): name for code, name in json.loads(path.read_text(encoding="utf-8")).items()}


def _plain(code: str) -> str:
    return "-".join(part for part in code.split("-") if part != "fe0f")


@lru_cache(maxsize=32)
def _icons(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@lru_cache(maxsize=20000)
def _sprite(folder: Path, style: str, code: str) -> Image.Image | None:
    where = _index(folder, style).get(code)
    if where is None:
        return None
    icons = folder / style / "package" / "icons.json"
    if icons.is_file():
        image = _rasterise(_icons(icons), where)
    else:
        path = Path(where)
        if not path.is_file():
            return None
        if path.suffix == ".woff2":
            image = _written(path, chr(int(code, 16)))
        else:
            image = Image.open(path).convert("RGBA")
    return image.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS)


def _written(font: Path, letter: str) -> Image.Image:
    side = 2 * SPRITE_SIZE
    ink = Image.new("L", (side, side))
    face = ImageFont.truetype(str(font), round(0.78 * side))
    ImageDraw.Draw(ink).text((side / 2, side / 2), letter, fill=255, font=face, anchor="mm")
    drawn = Image.new("RGBA", (side, side))
    drawn.putalpha(ink)
    return drawn


def _rasterise(icons: dict[str, Any], name: str) -> Image.Image:
    import resvg_py  # only the build extra has it

    if name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    body = icons["icons"][name]["body"]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SPRITE_SIZE}" height="{SPRITE_SIZE}" viewBox="0 0 {icons["width"]} {icons["height"]}">'
        f"{body}</svg>"
    )
    drawn = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SPRITE_SIZE, height=2 * SPRITE_SIZE)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")
