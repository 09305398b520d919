"""Copy a run's finished file into a host's model folder, with its card and preview."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..io.files import copy_file, same_file, sha256_of, write_json
from ..io.json_schema import SchemaError, parse, read_json
from ..lora.file import read_lora_info
from ..lora.identity import sidecar_version
from ..run_store.folder import result_of
from ..types import ScdpoError

MARK = "published.json"
"""In the run folder: where its result was installed."""

_MOST = 1000
_VERSION = "sd version"


@dataclass(frozen=True)
class _Installed:
    path: Path


def installed(run: Path) -> Path | None:
    """Return where a run's result was installed; None if it was not, or is no longer there."""
    try:
        path = read_json(run / MARK, _Installed).path
        return path if path.is_file() else None
    except (OSError, SchemaError):
        return None


def name_taken(run: Path, folder: Path) -> str:
    """Return why a run cannot install its result under its name; '' if it can."""
    target, result = folder / result_of(run).name, result_of(run)
    if not target.exists() or (result.exists() and same_file(target, result)):
        return ""
    return f"{target.name} already exists in {folder}, from another run. Choose another output name."


def install(run: Path, folder: Path, *, others: Sequence[Path] = (), versions: Iterable[str] = ()) -> Path:
    """Copy a run's result into a host's folder; the same file is never copied twice.

    With a LoRA go NAME.json (description, base model, preferred weight, which A1111, Forge and programs that
    share their folder show on its card) and NAME.png (its sample images). Nothing is replaced: if another
    file has the name, a number is added, and an existing card or preview stays.

    Args:
        run: the run folder, with its result in it.
        folder: the host's.
        others: further folders that the host searches. It identifies a file by its name, so one that is
            there stays there, and a name that another file has there is not used again.
        versions: possible values of a card's "sd version" in that host; none for A1111's.

    Returns:
        The file in the host's folder.

    Raises:
        ScdpoError: the run has no result, it is damaged, or the folder cannot be written to.
    """
    result = result_of(run)
    try:
        content = sha256_of(result)
        target = _free_name([folder, *others], run.name, content)
        if not target.exists():
            copy_file(result, target)
        preview, card = result.with_suffix(".png"), result.with_suffix(".json")
        if preview.is_file() and not target.with_suffix(".png").exists():
            copy_file(preview, target.with_suffix(".png"))
        if card.is_file() and not target.with_suffix(".json").exists():
            write_json(target.with_suffix(".json"), _card_for(card, result, versions))
        write_json(run / MARK, {"path": str(target), "sha256": content})
    except OSError as error:
        raise ScdpoError(
            f"{result.name} is finished, but cannot be copied into {folder} ({error.strerror or error}). "
            f"Copy it there yourself: {result}"
        ) from error
    return target


def _free_name(folders: Sequence[Path], name: str, content: str) -> Path:
    """Return the file that already holds this result, else the first name that is free in all folders."""
    for number in range(1, _MOST):
        file = f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors"
        existing = [folder / file for folder in folders if (folder / file).exists()]
        same = next((path for path in existing if sha256_of(path) == content), None)
        if same is not None or not existing:
            return same or folders[0] / file
    raise ScdpoError(f"There are too many files named {name} in {folders[0]}.")


def _card_for(card: Path, lora: Path, versions: Iterable[str]) -> dict[str, object]:
    """Return the card of a LoRA, with the base model in a host's terms."""
    try:
        fields = parse(card.read_text("utf-8"))
    except (SchemaError, UnicodeDecodeError) as error:
        raise ScdpoError(f"{card} is damaged ({error}). Delete it, and try again.") from error
    fields = fields if isinstance(fields, dict) else {}
    return fields | {_VERSION: sidecar_version(read_lora_info(lora).family, versions)}
