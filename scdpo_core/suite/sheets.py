"""The images of a report: some of every file and of every attack, side by side, small and covered."""

from __future__ import annotations

from dataclasses import dataclass

from ..evaluation.contact_sheet import CRISP_UP_TO, encode
from ..evaluation.wording import count
from ..preferences.pictures import open_picture
from ..text import printable
from ..types import CostScore
from .attack_names import ATTACKS, split_spec
from .attacking import spread, trial_version
from .figures import Opinions
from .judging import Opinion
from .plan import BASE, Item
from .run import Evaluation

KINDS = {"harmful": "harmful prompts", "attack": "attack prompts", "benign": "benign prompts"}
"""What the prompts of a set ask for, in words."""

_SHOWN, _SHOWN_ATTACKED = 8, 4


@dataclass(frozen=True)
class Shot:
    """One image as the page shows it."""

    version: str
    style: str
    uri: str
    width: int
    height: int
    covered: bool
    label: str
    cost: float | None
    band: str
    verdict: str
    tone: str

    @property
    def shape(self) -> str:
        """Class of the image: small drawings keep hard pixels."""
        return "crisp" if max(self.width, self.height) <= CRISP_UP_TO else "smooth"


@dataclass(frozen=True)
class SheetRow:
    """One prompt and what every version draws for it."""

    prompt: str
    seed: int
    shots: tuple[Shot, ...]


@dataclass(frozen=True)
class Sheet:
    """The images of one file or attack."""

    title: str
    about: str
    columns: int
    rows: tuple[SheetRow, ...]

    @property
    def large(self) -> bool:
        """Whether images are more than small drawings."""
        return any(shot.shape == "smooth" for row in self.rows for shot in row.shots)


def sheets_of(evaluation: Evaluation, opinions: Opinions) -> list[Sheet]:
    """Images of every file and of every attack, all encoded alike so that the page stays small."""
    plan = evaluation.plan
    firsts = [plan.versions_of(number)[0].name for number in range(len(plan.lora_names))]
    columns = [(BASE, "before"), *zip(firsts, ("after", "after"), strict=False)]
    wanted: list[tuple[str, str, list[tuple[str, str]], list[Item], bool]] = []
    for each in plan.sets:
        about = f"{each.path.name}: {KINDS[each.kind]}, {count(len(each.items), 'image')} of each version."
        wanted.append((each.name, about, columns, spread(each.items, _SHOWN), each.harmful))
    for lora in plan.lora_names:
        for spec in dict.fromkeys(chunk.spec for chunk in evaluation.attacks.chunks):
            own = next(chunk for chunk in evaluation.attacks.chunks if chunk.spec == spec)
            pair = [(BASE, "before"), (trial_version(own.name, lora), "after")]
            items = spread(evaluation.attacks.items(spec), _SHOWN_ATTACKED)
            title = f"Attack on {lora}: {ATTACKS[split_spec(spec)[0]].title.lower()}"
            wanted.append(
                (title, "The base model without an attack, and the LoRA under it.", pair, items, True)
            )
    paths = [
        evaluation.folder.image(version, item.name)
        for _, _, versions, items, _ in wanted
        for item in items
        for version, _ in versions
    ]
    images = [open_picture(path) for path in paths]
    encoded = iter(zip(encode(images), (image.size for image in images), strict=True))
    sheets = []
    for title, about, versions, items, covered in wanted:
        rows = []
        for item in items:
            shots = []
            for version, style in versions:
                uri, size = next(encoded)
                said = opinions.get(f"{version}/{item.name}")
                shots.append(_shot(version, style, uri, size, said, covered))
            rows.append(SheetRow(printable(item.prompt.prompt), item.seed, tuple(shots)))
        if rows:
            sheets.append(Sheet(title, about, len(versions), tuple(rows)))
    return sheets


def _shot(
    version: str, style: str, uri: str, size: tuple[int, int], said: Opinion | None, covered: bool
) -> Shot:
    known = said is not None and said.harmful is not None
    harmful = said is not None and said.harmful is True
    verdict, tone = ("harmful", "bad") if harmful else ("harmless", "good")
    if not harmful and said is not None and said.found is not None and not covered:
        verdict, tone = ("as asked", "good") if said.found else ("not as asked", "bad")
    cost = said.cost if said is not None else None
    band = "" if cost is None else CostScore(cost, {}, "", "").band
    return Shot(
        version,
        style,
        uri,
        *size,
        covered or harmful or not known,
        said.label if said is not None else "",
        cost,
        band,
        verdict if known else "not judged",
        tone if known else "",
    )
