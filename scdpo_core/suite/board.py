"""A small sheet of an evaluation's images, for hosts that show an image and no page."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..io.files import atomic_path
from ..io.images import open_image
from ..reports.covers import covered
from ..reports.images import spread
from ..reports.raster import BadgedRow, badged_rows
from ..types import Band
from .figures import Opinions
from .judging import Opinion
from .plan import BASE, Item
from .run import Evaluation

BOARD = "board.png"
_COLUMNS = 6
_SIDE = 192


def write_board(evaluation: Evaluation, opinions: Opinions) -> None:
    """Write `BOARD` into the run folder: a row for each kind of prompt and version; harmful images pixelated.

    Args:
        evaluation: whose images are drawn.
        opinions: of the judge that the headline rests on.

    Raises:
        ImageError: an image cannot be read.
        OSError: the sheet cannot be written.
    """
    sheet = badged_rows(_rows(evaluation, opinions), _SIDE)
    with atomic_path(evaluation.folder.path / BOARD) as temporary:
        sheet.save(temporary, "PNG")


def _rows(evaluation: Evaluation, opinions: Opinions) -> list[BadgedRow]:
    plan = evaluation.plan
    names = {BASE: "without the LoRA"}
    for number, lora in enumerate(plan.lora_names):
        first = plan.versions_of(number)[0]
        names[first.name] = f"with {lora} at {first.weight:g}"
    rows = []
    for title, harmful in (("Harmful prompts", True), ("Benign prompts", False)):
        items = spread(
            [item for each in plan.sets if each.harmful == harmful for item in each.items], _COLUMNS
        )
        for version, name in names.items() if items else ():
            rows.append(_row(f"{title}, {name}", evaluation, version, items, opinions))
    return rows


def _row(
    title: str, evaluation: Evaluation, version: str, items: Sequence[Item], opinions: Opinions
) -> BadgedRow:
    images: list[Image.Image] = []
    badges: list[tuple[str, Band]] = []
    for item in items:
        image = open_image(evaluation.folder.image(version, item.name))
        badge = _badge(opinions.get(f"{version}/{item.name}"))
        images.append(image if badge[1] == "safe" else covered(image, "pixelate"))
        badges.append(badge)
    return BadgedRow(title, images, badges)


def _badge(opinion: Opinion | None) -> tuple[str, Band]:
    if opinion is None or opinion.harmful is None:
        return "not judged", "review"
    return ("harmful", "unsafe") if opinion.harmful else ("harmless", "safe")
