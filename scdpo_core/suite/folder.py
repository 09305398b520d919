"""The run folder of an evaluation: its images, its tables, and what its images were drawn with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TextIO, TypeVar

from PIL import Image

from ..io.files import atomic_path, write_json
from ..io.json_schema import SchemaError, from_json, parse, read_json
from ..types import ScdpoError

IMAGES, TABLES, SHARDS = "images", "judged", "shards"
REPORT, FIGURES = "report.html", "report.json"
DRAWN_WITH = "drawn_with.json"

T = TypeVar("T")


@dataclass(frozen=True)
class DrawnWith:
    """What the images of a folder were drawn with: two evaluations that differ in it cannot share a folder.

    Attributes:
        steps: of denoising.
        guidance: classifier-free guidance.
        size: 'WIDTHxHEIGHT', '' for the model's own.
        model: changes with the weights of the base; '' while nothing has been drawn.
        loras: SHA-256 of each LoRA by its name.
        prompts: SHA-256 of each prompt file by its set's name.
    """

    steps: int
    guidance: float
    size: str
    model: str = ""
    loras: Mapping[str, str] = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalFolder:
    """PATH and what lies in it.

    Attributes:
        path: the run folder.
    """

    path: Path

    def image(self, version: str, name: str) -> Path:
        """Return an image of a version of the model; it is whole if it is there."""
        return self.path / IMAGES / version / name

    def write_image(self, version: str, name: str, image: Image.Image) -> None:
        """Write an image atomically.

        Raises:
            OSError: it cannot be written.
        """
        with atomic_path(self.image(version, name)) as temporary:
            image.save(temporary)

    def tables(self, name: str) -> list[Path]:
        """Return the files of a table, one for each share of the work that was ever begun."""
        return sorted((self.path / TABLES).glob(f"{name}.*.jsonl"))

    def shard(self, label: str) -> Path:
        """Return the folder in which a share of the work keeps its lock and its log."""
        return self.path / SHARDS / label

    @property
    def report(self) -> Path:
        """The report as a page."""
        return self.path / REPORT

    def remember(self, new: DrawnWith) -> None:
        """Note what images will be drawn with, beside what earlier ones were drawn with.

        Raises:
            ScdpoError: the folder's images were drawn with something else; says what differs.
        """
        path = self.path / DRAWN_WITH
        try:
            old = read_json(path, DrawnWith)
        except FileNotFoundError:
            write_json(path, asdict(new))
            return
        except (OSError, SchemaError) as error:
            raise ScdpoError(
                f"{path} is damaged ({error}), so it is unknown how its images were generated. "
                "Give another --output."
            ) from error
        for what, before, now in _differences(old, new):
            raise ScdpoError(
                f"The images in {self.path} were generated with another {what} ({before}, now {now}). "
                "Use another --output, or the same settings as before."
            )
        joined = dataclasses.replace(
            new,
            model=new.model or old.model,
            loras={**old.loras, **new.loras},
            prompts={**old.prompts, **new.prompts},
        )
        if joined != old:
            write_json(path, asdict(joined))


def _differences(old: DrawnWith, new: DrawnWith) -> list[tuple[str, str, str]]:
    """Return what differs, before, and now; only what both know."""
    pairs = [
        ("number of steps", str(old.steps), str(new.steps)),
        ("guidance", f"{old.guidance:g}", f"{new.guidance:g}"),
        ("size", old.size or "the model's own", new.size or "the model's own"),
    ]
    if old.model and new.model:
        pairs.append(("base model, or other text encoders", old.model[:12], new.model[:12]))
    for what, before, now in (("LoRA", old.loras, new.loras), ("prompt file", old.prompts, new.prompts)):
        pairs += [
            (f"{what} '{name}'", before[name][:12], now[name][:12])
            for name in now
            if name in before  # others only add
        ]
    return [pair for pair in pairs if pair[1] != pair[2]]


class Table(Generic[T]):
    """Rows of a dataclass in JSON lines, one file for each share of the work; a kill loses no finished row.

    Attributes:
        rows: by their key, those of every share.
    """

    def __init__(self, folder: EvalFolder, name: str, kind: type[T], shard: str, key: str = "image") -> None:
        """Read what is there.

        Args:
            folder: of the evaluation.
            name: of the table, fit for a file.
            kind: the dataclass of a row.
            shard: label of the share that will append.
            key: field of a row that names it.

        Raises:
            OSError: a file cannot be read.
        """
        self._path = folder.path / TABLES / f"{name}.{shard}.jsonl"
        self._key = key
        self._stream: TextIO | None = None
        self.rows: dict[str, T] = {}
        for path in folder.tables(name):
            with path.open(encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    try:
                        row = from_json(parse(line), kind)
                    except SchemaError:
                        continue  # cut off by a kill: it is made again
                    self.rows[getattr(row, key)] = row

    def add(self, row: T) -> None:
        """Append a row; it is on its way to the disk when this returns.

        Raises:
            OSError: it cannot be written.
        """
        if self._stream is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            cut = self._path.exists() and self._path.stat().st_size > 0 and not _ends_whole(self._path)
            self._stream = self._path.open("a", encoding="utf-8")
            if cut:
                self._stream.write("\n")
        self.rows[getattr(row, self._key)] = row
        values: dict[str, Any] = asdict(row)  # type: ignore[call-overload]
        self._stream.write(json.dumps(values, ensure_ascii=True) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, 2)
        return stream.read(1) == b"\n"
