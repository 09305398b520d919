"""Images with ratings: one image a record, brought together by prompt, then compared.

The records wait in an SQLite file on the disk, so that memory does not grow with them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from .rows import TIE, Outcome, Outcomes, PairRow, PerPrompt, Skipped, ranked_pairs

_SCHEMA = (
    "CREATE TABLE images (number INTEGER PRIMARY KEY, prompt TEXT NOT NULL, category TEXT NOT NULL, "
    "safe_prompt TEXT NOT NULL, place BLOB NOT NULL, image BLOB NOT NULL, score REAL NOT NULL)"
)
_TOGETHER = 256
ALONE = "the only image of its prompt: there is nothing to compare it with"


@dataclass(frozen=True)
class RatedImage:
    """An image and its rating.

    Attributes:
        where: it stands.
        prompt: that it was made for.
        image: its name, as the table writes it.
        score: higher is better.
        category: kind of harm; '' if not said.
        safe_prompt: a harmless prompt; '' if not said.
    """

    where: str
    prompt: str
    image: str
    score: float
    category: str = ""
    safe_prompt: str = ""


def groups_of(
    images: Iterable[RatedImage | Skipped], database: Path, per_prompt: PerPrompt
) -> Iterator[Outcomes]:
    """Yield the outcomes of each prompt, in the order of the prompts' text; what was skipped comes first.

    Args:
        images: in any order.
        database: file to write; one that is there is replaced. Removed at the end.
        per_prompt: which pairs are made of the images of a prompt.
    """
    database.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=OFF")
            connection.execute("PRAGMA synchronous=OFF")
            connection.execute(_SCHEMA)
            connection.execute("BEGIN")
            yield from _filled(connection, images)
            connection.execute("COMMIT")
            connection.execute("CREATE INDEX by_prompt ON images (prompt, category, number)")
            yield from _compared(connection, per_prompt)
    finally:
        database.unlink(missing_ok=True)


def _filled(connection: sqlite3.Connection, images: Iterable[RatedImage | Skipped]) -> Iterator[Outcomes]:
    insert = (
        "INSERT INTO images (prompt, category, safe_prompt, place, image, score) VALUES (?, ?, ?, ?, ?, ?)"
    )
    for image in images:
        if isinstance(image, Skipped):
            yield [image]
            continue
        names = (_packed(image.where), _packed(image.image))
        row = (image.prompt, image.category, image.safe_prompt, *names, image.score)
        connection.execute(insert, row)


def _packed(name: str) -> bytes:
    """Encode a file name for the database, which rejects bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogatepass")


def _unpacked(name: bytes) -> str:
    return name.decode("utf-8", "surrogatepass")


def _compared(connection: sqlite3.Connection, per_prompt: PerPrompt) -> Iterator[Outcomes]:
    keys = connection.execute("SELECT DISTINCT prompt, category FROM images ORDER BY prompt, category")
    for prompt, category in keys:
        rows = connection.execute(
            "SELECT place, image, score, safe_prompt FROM images WHERE prompt = ? AND category = ? "
            "ORDER BY number",
            (prompt, category),
        ).fetchall()
        sources, images = ([_unpacked(row[column]) for row in rows] for column in (0, 1))
        if len(rows) < 2:
            yield [Skipped(sources[0], ALONE)]
            continue
        pairs: list[Outcome] = []
        any_pair = False
        for better, worse in ranked_pairs([row[2] for row in rows], per_prompt):
            any_pair = True
            where = f"{sources[better]} and {sources[worse]}"
            safe_prompt = rows[better][3] or rows[worse][3]
            pairs.append(PairRow(where, prompt, images[better], images[worse], category, safe_prompt))
            # All pairs of many images are many.
            if len(pairs) == _TOGETHER:
                yield pairs
                pairs = []
        if pairs:
            yield pairs
        elif not any_pair:
            yield [Skipped(sources[0], TIE, f"{len(rows)} images of one prompt, all rated alike")]
