"""The images of a report: some of every file and of every attack, side by side, small and covered."""

from __future__ import annotations

from dataclasses import dataclass

from ..io.images import open_image
from ..reports.images import CRISP_UP_TO, encode, spread
from ..reports.wording import count
from .attack_names import ATTACKS, split_spec
from .attacks import trial_version
from .figures import Opinions
from .judging import Opinion
from .plan import BASE, Item
from .run import Evaluation

KINDS = {"harmful": "harmful prompts", "attack": "attack prompts", "benign": "benign prompts"}
"""What the prompts of a set ask for, in words."""

STYLES = ("after", "other")
"""Class of the colour of the first LoRA, and of the second."""

_SHOWN, _SHOWN_ATTACKED = 8, 4
_SIDE = 256


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


@dataclass(frozen=True)
class _Column:
    """A version on a sheet: its folder, the class of its colour, and what people read."""

    version: str
    style: str
    label: str


@dataclass(frozen=True)
class _Wanted:
    """A sheet before its images are read."""

    title: str
    about: str
    columns: tuple[_Column, ...]
    items: tuple[Item, ...]
    covered: bool


def sheets_of(evaluation: Evaluation, opinions: Opinions) -> list[Sheet]:
    """Return images of every file and of every attack, all encoded alike so that the page stays small.

    Raises:
        ImageError: an image cannot be read.
    """
    sheets = [each for each in (*_of_files(evaluation), *_of_attacks(evaluation)) if each.items]
    small, sizes = [], []
    for each in sheets:
        for item in each.items:
            for column in each.columns:
                image = open_image(evaluation.folder.image(column.version, item.name))
                sizes.append(image.size)
                # At once: many large ones would not fit into memory.
                image.thumbnail((_SIDE, _SIDE))
                small.append(image)
    encoded = iter(zip(encode(small), sizes, strict=True))
    return [
        Sheet(
            each.title,
            each.about,
            len(each.columns),
            tuple(
                SheetRow(
                    item.prompt.prompt,
                    item.seed,
                    tuple(
                        _shot(
                            column,
                            *next(encoded),
                            opinions.get(f"{column.version}/{item.name}"),
                            each.covered,
                        )
                        for column in each.columns
                    ),
                )
                for item in each.items
            ),
        )
        for each in sheets
    ]


def _of_files(evaluation: Evaluation) -> list[_Wanted]:
    plan = evaluation.plan
    firsts = [plan.versions_of(number)[0].name for number in range(len(plan.lora_names))]
    columns = (
        _Column(BASE, "before", BASE),
        *(_Column(name, style, name) for name, style in zip(firsts, STYLES, strict=False)),
    )
    return [
        _Wanted(
            each.name,
            f"{each.path.name}: {KINDS[each.kind]}, {count(len(each.items), 'image')} of each version.",
            columns,
            tuple(spread(each.items, _SHOWN)),
            each.harmful,
        )
        for each in plan.sets
    ]


def _of_attacks(evaluation: Evaluation) -> list[_Wanted]:
    attacks = evaluation.attacks
    return [
        _Wanted(
            f"Attack on {lora}: {ATTACKS[split_spec(spec)[0]].title.lower()}",
            "The base model without an attack, and the LoRA under it.",
            (
                _Column(BASE, "before", BASE),
                _Column(trial_version(name, lora), style, f"{lora}, attacked"),
            ),
            tuple(spread(attacks.items(spec), _SHOWN_ATTACKED)),
            True,
        )
        for lora, style in zip(evaluation.plan.lora_names, STYLES, strict=False)
        for spec, name in {chunk.spec: chunk.name for chunk in attacks.chunks}.items()
    ]


def _shot(column: _Column, uri: str, size: tuple[int, int], opinion: Opinion | None, covered: bool) -> Shot:
    judged = opinion is not None and opinion.harmful is not None
    harmful = opinion is not None and opinion.harmful is True
    verdict, tone = ("harmful", "bad") if harmful else ("harmless", "good")
    if not harmful and opinion is not None and opinion.found is not None and not covered:
        verdict, tone = ("as asked", "good") if opinion.found else ("not as asked", "bad")
    return Shot(
        column.label,
        column.style,
        uri,
        *size,
        covered or harmful or not judged,
        opinion.label if opinion is not None else "",
        None if opinion is None else opinion.cost,
        verdict if judged else "not judged",
        tone if judged else "",
    )
