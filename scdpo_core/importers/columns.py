"""What the columns of a table mean: their published names, and the pairs that one record makes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..preferences.listing import BENIGN
from ..types import ScdpoError
from .rows import (
    MISSING_FIELD,
    TIE,
    ImageRef,
    Outcome,
    PairRow,
    PerPrompt,
    RowError,
    Skipped,
    ranked_pairs,
    weight_of,
)
from .tables import Record

ROLES: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "caption", "text", "unsafe_prompt"),
    "chosen": ("chosen", "chosen_image", "chosen_path", "image_chosen", "winner", "win", "preferred", "good"),
    "rejected": ("rejected", "rejected_image", "rejected_path", "image_rejected", "loser", "lose", "bad"),
    "image_0": ("image_0", "jpg_0", "image_0_path", "path_0"),
    "image_1": ("image_1", "jpg_1", "image_1_path", "path_1"),
    "label_0": ("label_0", "prefer_0"),
    "label_1": ("label_1", "prefer_1"),
    "best": ("best_image_uid", "best_uid"),
    "uid_0": ("image_0_uid", "uid_0"),
    "uid_1": ("image_1_uid", "uid_1"),
    "images": ("image_path", "images", "file_path"),
    "ranks": ("rank", "ranks"),
    "preferences": ("human_preference",),
    "path1": ("path1",),
    "path2": ("path2",),
    "tie": ("tie_case",),
    "image": ("image", "file_name", "filename", "file", "path", "image_path"),
    "rating": ("rating", "score", "stars", "rate"),
    "category": ("category", "categories"),
    "safe_prompt": ("safe_prompt", "benign_prompt"),
    "weight": ("weight", "pair_weight"),
}
"""What a column may mean, and the names it has in published data sets, the usual one first."""

MAPPABLE = tuple(ROLES)
"""Names that --columns takes on its left side."""


@dataclass(frozen=True)
class Columns:
    """Which column of a table has which meaning.

    Attributes:
        names: column by meaning, see `ROLES`.
    """

    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, header: Sequence[str], mapped: Mapping[str, str]) -> Columns:
        """Find the meaning of a table's columns.

        Args:
            header: names of the columns.
            mapped: column by meaning, as the person gives it; wins over the published names.

        Raises:
            ScdpoError: a meaning or a column that there is not.
        """
        plain = {_plain(name): name for name in reversed(header)}
        names: dict[str, str] = {}
        for role, published in ROLES.items():
            if role in mapped:
                if mapped[role] not in header:
                    columns = ", ".join(header[:30]) or "none"
                    raise ScdpoError(f"There is no column '{mapped[role]}'. The columns are: {columns}.")
                names[role] = mapped[role]
            elif column := next((plain[name] for name in published if name in plain), None):
                names[role] = column
        return cls(names)

    def __contains__(self, role: str) -> bool:
        return role in self.names

    def has(self, *roles: str) -> bool:
        """Return whether there is a column for each of these roles."""
        return all(role in self.names for role in roles)

    @property
    def needed(self) -> Collection[str]:
        """All columns that mean something."""
        return frozenset(self.names.values())

    def value(self, record: Record, role: str) -> Any:
        """Return a record's value; None where there is no such column or it is empty."""
        name = self.names.get(role)
        return None if name is None else record.get(name)

    def text(self, record: Record, role: str) -> str:
        """Return a record's value as text; '' where it is empty."""
        value = self.value(record, role)
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        return value.strip() if isinstance(value, str) else ""

    def number(self, record: Record, role: str) -> float | None:
        """Return a record's value as a number; None where it is none."""
        return _number(self.value(record, role))

    def image(self, record: Record, role: str) -> ImageRef:
        """Return a record's image: its path, its bytes, or what the datasets library makes of either.

        Raises:
            RowError: there is none.
        """
        image = _image(self.value(record, role))
        if image is None:
            raise RowError(MISSING_FIELD, self.names.get(role, role))
        return image


def parse_mapping(items: Sequence[str]) -> dict[str, str]:
    """Read `--columns chosen=win rejected=lose` as column by meaning.

    Raises:
        ScdpoError: an item without =, or a meaning that there is not.
    """
    mapped = {}
    for item in items:
        role, separator, column = item.partition("=")
        if not separator or role not in MAPPABLE:
            raise ScdpoError(
                f"--columns {item}: write MEANING=COLUMN, where the meaning is one of: {', '.join(MAPPABLE)}."
            )
        mapped[role] = column
    return mapped


def _plain(name: str) -> str:
    """Header names as one spelling: 'Image path' and 'image_path' are the same column."""
    return "_".join(name.strip().lower().replace("_", " ").replace("-", " ").split())


def _number(value: object) -> float | None:
    if isinstance(value, str):
        value = {"true": 1.0, "false": 0.0}.get(value.strip().lower(), value)
    try:
        number = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _image(value: object) -> ImageRef | None:
    if isinstance(value, dict):
        # The datasets library writes images as {"bytes": ..., "path": ...}.
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, bytes):
        return value or None
    return value.strip() or None if isinstance(value, str) else None


def pairs_of_table(record: Record, columns: Columns, where: str, per_prompt: PerPrompt) -> Iterator[Outcome]:
    """Yield the pair of a record with a column for the chosen and one for the rejected image."""
    yield _pair(record, columns, where, columns.image(record, "chosen"), columns.image(record, "rejected"))


def pairs_of_labels(record: Record, columns: Columns, where: str, per_prompt: PerPrompt) -> Iterator[Outcome]:
    """Yield the pair of two images and a label: Pick-a-Pic, invoke-training, SafetyDPO.

    Equal labels are a tie, Pick-a-Pic's .5 too. Without a label, the uid of the best image decides.
    """
    first, second = columns.number(record, "label_0"), columns.number(record, "label_1")
    if first is not None and second is None:
        second = 1 - first
    elif second is not None and first is None:
        first = 1 - second
    if first is None or second is None:
        best = columns.text(record, "best")
        uids = [columns.text(record, "uid_0"), columns.text(record, "uid_1")]
        if not best and not columns.has("best"):
            raise RowError(MISSING_FIELD, "label_0")
        first, second = (float(bool(best) and best == uid) for uid in uids)
    if first == second:
        yield Skipped(where, TIE)
        return
    images = columns.image(record, "image_0"), columns.image(record, "image_1")
    yield _pair(record, columns, where, *(images if first > second else images[::-1]))


def pairs_of_hpd(record: Record, columns: Columns, where: str, per_prompt: PerPrompt) -> Iterator[Outcome]:
    """Yield the pairs of a record of HPD: version 3 lists the better one first, version 2 has lists.

    In version 2's training half `human_preference` is 1 for the better image, in its test half `rank` is
    lowest for the best one.
    """
    if columns.has("path1", "path2"):
        if columns.number(record, "tie"):
            yield Skipped(where, TIE)
            return
        yield _pair(record, columns, where, columns.image(record, "path1"), columns.image(record, "path2"))
        return
    paths, ranks = columns.value(record, "images"), columns.value(record, "ranks")
    preferences = columns.value(record, "preferences")
    values = preferences if isinstance(preferences, list) else ranks
    if not isinstance(paths, list) or not isinstance(values, list) or not 2 <= len(paths) == len(values):
        raise RowError(MISSING_FIELD, "image_path and human_preference or rank, of the same length")
    numbers, images = [_number(value) for value in values], [_image(path) for path in paths]
    scores = [number if values is preferences else -number for number in numbers if number is not None]
    usable = [image for image in images if image is not None]
    if len(scores) < len(numbers) or len(usable) < len(images):
        raise RowError(MISSING_FIELD, "an image or a number of a list")
    has_pairs = False
    for better, worse in ranked_pairs(scores, per_prompt):
        has_pairs = True
        yield _pair(record, columns, where, usable[better], usable[worse])
    if not has_pairs:
        yield Skipped(where, TIE)


def _pair(record: Record, columns: Columns, where: str, chosen: ImageRef, rejected: ImageRef) -> PairRow:
    return PairRow(
        where,
        columns.text(record, "prompt"),
        chosen,
        rejected,
        columns.text(record, "category"),
        columns.text(record, "safe_prompt"),
        weight_of(columns.value(record, "weight")),
    )


@dataclass(frozen=True)
class TableFormat:
    """A kind of table.

    Attributes:
        about: what it is, for --help and the docs.
        is_met: whether a table is one, by its columns.
        pairs: of one record.
        category: of its pairs unless the source names one.
    """

    about: str
    is_met: Callable[[Columns], bool]
    pairs: Callable[[Record, Columns, str, PerPrompt], Iterator[Outcome]]
    category: str = ""


def _is_labelled(columns: Columns) -> bool:
    return columns.has("image_0", "image_1") and ("label_0" in columns or "label_1" in columns)


def _is_pickapic(columns: Columns) -> bool:
    return columns.has("image_0", "image_1", "best", "uid_0", "uid_1")


def _is_hpd(columns: Columns) -> bool:
    lists = "images" in columns and ("preferences" in columns or "ranks" in columns)
    return lists or columns.has("path1", "path2")


TABLE_FORMATS: Mapping[str, TableFormat] = {
    "pickapic": TableFormat(
        "Pick-a-Pic and diffusers' DPO shards: jpg_0, jpg_1, label_0, best_image_uid, caption",
        _is_pickapic,
        pairs_of_labels,
        BENIGN,
    ),
    "labelled": TableFormat(
        "two images and a label: invoke-training's metadata.jsonl (image_0, image_1, prefer_0), SafetyDPO "
        "(jpg_0, jpg_1, label_0, caption)",
        _is_labelled,
        pairs_of_labels,
    ),
    "hpd": TableFormat(
        "HPD: image_path with human_preference or rank (version 2), path1 and path2 (version 3)",
        _is_hpd,
        pairs_of_hpd,
        BENIGN,
    ),
    "table": TableFormat(
        "a column for the chosen and one for the rejected image",
        lambda columns: columns.has("chosen", "rejected"),
        pairs_of_table,
    ),
}
"""Tables of which each record makes its own pairs, the most particular first."""
