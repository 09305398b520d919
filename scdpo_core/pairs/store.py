"""What has been drawn so far, on the disk: nothing is drawn twice, however a process ended.

Images that belong together are drawn in groups, which are always the same ones, so that a job which goes on
draws the rest as it would have drawn it at once. In the preference folder:

    building/job.json            what decides the pairs
    building/rows/000003.json    the rows of group 3, written once the group is done
    building/drawn/000003/       its images until then
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image

from ..io.files import atomic_path, write_json
from ..io.images import ImageError, open_image
from ..io.json_schema import SchemaError, read_json
from ..run_store.file_lock import exclusive, try_exclusive
from ..types import ScdpoError
from .strategies import Request

FOLDER = "building"


@dataclass(frozen=True)
class Row:
    """The outcome of a requested image.

    Attributes:
        number: of `PairSpec`.
        prompt: words.
        safe_prompt: what was drawn instead; '' for none said.
        category: the pair's folder.
        seed: of the rejected image; of the chosen one of a benign pair.
        pair: id of the pair; '' where none came of it.
        reason: why none came of it; '' for a pair.
        tries: images that were drawn to be chosen.
        chosen_cost: log-odds; None where nothing was drawn.
        rejected_cost: likewise.
        chosen: file below the folder; '' for none.
        rejected: likewise.
        mask: likewise.
    """

    number: int
    prompt: str
    safe_prompt: str
    category: str
    seed: int
    pair: str = ""
    reason: str = ""
    tries: int = 0
    chosen_cost: float | None = None
    rejected_cost: float | None = None
    chosen: str = ""
    rejected: str = ""
    mask: str = ""


@dataclass(frozen=True)
class _Rows:
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class _Identity:
    decided_by: Mapping[str, str]


class Store:
    """The record of a job in its preference folder. Several processes may have it open."""

    def __init__(self, output: Path) -> None:
        """Open the record in the preference folder `output`, which need not be there yet."""
        self._home = output / FOLDER

    def begin(self, identity: Mapping[str, str]) -> None:
        """Claim the folder for a job, or continue the same one.

        Raises:
            ScdpoError: the folder was begun with other settings; names them.
            OSError: it cannot be written to.
        """
        path = self._home / "job.json"
        with exclusive(self._home / "job.lock"):
            try:
                recorded = read_json(path, _Identity).decided_by
            except FileNotFoundError:
                write_json(path, asdict(_Identity(identity)))
                return
            except SchemaError as error:
                raise ScdpoError(
                    f"{path} is damaged: {error}. Give another --output, or remove {self._home} to start "
                    "again; the pairs stay."
                ) from error
        names = sorted(recorded.keys() | identity.keys())
        changed = [
            f"{name}: {recorded.get(name, 'not said')} -> {identity.get(name, 'not said')}"
            for name in names
            if recorded.get(name) != identity.get(name)
        ]
        if changed:
            raise ScdpoError(
                f"The pairs in {self._home.parent} were started with other settings ({'; '.join(changed)}). "
                "Use the same ones to continue, or another --output."
            )

    def rows(self, group: int) -> tuple[Row, ...] | None:
        """Return the rows of a group; None while it is not done, or where its record is damaged."""
        try:
            return read_json(self._rows_of(group), _Rows).rows
        except (OSError, SchemaError):
            return None

    @contextmanager
    def working_on(self, group: int) -> Iterator[bool]:
        """Keep other processes from a group while the block runs; False if one has it already."""
        lock = self._home / "locks" / f"{group:06d}.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                free = try_exclusive(handle)
            except OSError:  # a disk without locks; shards still separate the processes
                free = True
            yield free
        finally:
            os.close(handle)

    def done(self, group: int, rows: Sequence[Row]) -> None:
        """Record the rows of a group whose pairs are on the disk, and delete its drawings."""
        write_json(self._rows_of(group), asdict(_Rows(tuple(rows))))
        self.forget(group)

    def forget(self, group: int) -> None:
        """Remove the drawings of a group that is done."""
        shutil.rmtree(self._drawn(group), ignore_errors=True)

    def clean(self) -> None:
        """Remove files that are not needed once every group is done."""
        for name in ("drawn", "locks"):
            shutil.rmtree(self._home / name, ignore_errors=True)

    def drawn(
        self,
        group: int,
        name: str,
        requests: Sequence[Request],
        draw: Callable[[Sequence[Request]], Sequence[Image.Image]],
    ) -> list[Image.Image]:
        """Return the images of one call of the model, drawn unless all of them are here.

        Args:
            group: that they belong to.
            name: of the call within the group.
            requests: what to draw.
            draw: draws it.

        Raises:
            OSError: an image cannot be written.
        """
        digest = hashlib.sha256(b"".join(one.digest for one in requests)).hexdigest()[:12]
        files = [self._drawn(group) / f"{name}-{digest}-{row:03d}.png" for row in range(len(requests))]
        try:
            if all(file.is_file() for file in files):
                return [open_image(file) for file in files]
        except ImageError:
            pass  # one is damaged: all are generated again
        images = list(draw(requests))
        for file, image in zip(files, images, strict=True):
            with atomic_path(file) as temporary:
                image.save(temporary, format="PNG")
        return images

    def _rows_of(self, group: int) -> Path:
        return self._home / "rows" / f"{group:06d}.json"

    def _drawn(self, group: int) -> Path:
        return self._home / "drawn" / f"{group:06d}"
