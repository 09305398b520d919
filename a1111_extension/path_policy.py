"""What somebody at the page or the API may name. Who sits at the machine may name anything; who comes by
network, only what lies in the host's folders and lists. Every path that a user names goes through `confined`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scdpo_core.config import toml
from scdpo_core.io.prompt_files import name_prompt_files

from .request_checks import RefusalError

_MAY_SET: Mapping[str, frozenset[str] | None] = {
    "objective": None,
    "optim": None,
    "lora": frozenset({"kind", "rank", "alpha", "targets", "block_ranks", "dropout", "train_text"})
    | {"save_dtype", "save_format"},
    "sampling": None,
    "output": frozenset({"checkpoint_every", "keep", "log_every"}),
    "data": frozenset({"width", "height", "safety_weight", "tie", "both_unsafe", "soft_tau", "benign_share"}),
    "model": frozenset({"precision", "gradient_checkpointing", "offload_blocks", "prediction", "zero_snr"})
    | {"guidance_embedding", "t5_tokens", "prompt_chunks"},
}
"""Settings by section that remote users may set; all others name files. None: the whole section."""


def confined(path: str | Path, roots: Sequence[Path], *, exists: bool = True) -> Path:
    """Resolve a name to a real file or folder below one of the roots.

    Args:
        path: absolute, or relative to the first root.
        roots: folders that may be used.
        exists: whether it has to be there.

    Raises:
        RefusalError: it lies elsewhere, by its name or by a link on the way, or is not there. Of what lies
            elsewhere it is not told whether it exists.
    """
    text = str(path)
    if "\0" in text or not text.strip():
        raise RefusalError(422, "Name an image or a folder.")
    try:
        real = os.path.realpath(Path(roots[0] / Path(text).expanduser()))
        if within(real, roots):
            if exists and not os.path.exists(real):
                raise RefusalError(404, f"There is no file or folder {text[:300]}.")
            return Path(real)
    # Invalid names: broken characters, too long, or "~nobody".
    except (OSError, ValueError, RuntimeError):
        raise RefusalError(422, "No file or folder can have this name.") from None
    raise RefusalError(
        403,
        f"Only what lies in {', '.join(map(str, roots))} may be read: this host is open to the network, or "
        "a program asks. The host's flag --scdpo-folder adds folders.",
    )


def within(path: str | Path, roots: Sequence[Path]) -> bool:
    """Return whether a path lies in one of the folders, all links followed."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(root)) for root in roots)


def check_settings(text: str) -> None:
    """Let only settings pass that name no files.

    Args:
        text: TOML, as in a job.toml.

    Raises:
        RefusalError: it is no TOML, or has others.
    """
    try:
        tree = toml.loads(text)
    except ValueError as error:
        raise RefusalError(422, f"'settings' is no TOML: {error}.") from None
    for section, values in tree.items():
        allowed = _MAY_SET.get(section, frozenset())
        for key in values if isinstance(values, dict) else ("",):
            named = isinstance(values, dict) and key == "sample_prompts" and name_prompt_files(values[key])
            if not isinstance(values, dict) or named or (allowed is not None and key not in allowed):
                raise RefusalError(
                    403,
                    f"'{section[:80]}.{key[:80]}' cannot be set by remote users, because it may name files.",
                )


@dataclass(frozen=True)
class Reach:
    """What may be named.

    Attributes:
        roots: the folders that may be used; None for any.
        closed: folders inside them that remote users may not read: the quarantine.
    """

    roots: Callable[[], Sequence[Path] | None] = lambda: None
    closed: Callable[[], Sequence[Path]] = tuple

    def folder(self, text: str) -> Path:
        """Resolve a typed folder, which may be missing; no link in it may lead out.

        Raises:
            ScdpoError: it may not be used.
        """
        roots = self.roots()
        if roots is None:
            return Path(text.strip()).expanduser()
        resolved = self._open(confined(text.strip(), roots, exists=False))
        for shut in self.closed():
            if within(shut, [resolved]) and shut.is_dir() and any(shut.iterdir()):
                raise RefusalError(403, f"The quarantine is inside {resolved}. Choose another folder.")
        for link in _links(resolved):
            if not within(link, roots):
                raise RefusalError(
                    403, f"{link} is a link to another folder, which remote users may not access. Remove it."
                )
        return resolved

    def existing(self, text: str) -> Path:
        """Resolve an existing file or folder; links in it are checked by `readable`.

        Raises:
            ScdpoError: it may not be used, or is not there.
        """
        roots = self.roots()
        if roots is None:
            return Path(text.strip()).expanduser()
        return self._open(confined(text.strip(), roots))

    def readable(self, files: Iterable[Path]) -> list[Path]:
        """Filter the files that may be read: links that lead out are skipped."""
        roots = self.roots()
        # The resolved path is opened later, so a changed link cannot redirect it.
        if roots is None:
            return [*files]
        closed = self.closed()
        return [Path(os.path.realpath(f)) for f in files if within(f, roots) and not within(f, closed)]

    def _open(self, path: Path) -> Path:
        if within(path, self.closed()):
            raise RefusalError(403, "Images in quarantine are not shown.")
        return path

    def dropped(self, files: Iterable[Path]) -> list[Path]:
        """Resolve files that a browser uploaded; it sends only their names, which could be any.

        Raises:
            ScdpoError: one of them was not sent.
        """
        roots, sent = (
            self.roots(),
            Path(os.environ.get("GRADIO_TEMP_DIR") or Path(tempfile.gettempdir(), "gradio")),
        )
        return [*files] if roots is None else [confined(file, [sent, *roots]) for file in files]

    def base(self, chosen: str, bases: Mapping[str, str]) -> str:
        """Resolve a base model by its name or value; remote users must choose from the list.

        Raises:
            ScdpoError: there is none of that name in the list.
        """
        if self.roots() is None or chosen in bases or chosen in bases.values():
            return bases.get(chosen, chosen or "")
        raise RefusalError(422, f"There is no model '{chosen[:300]}'; there are: {', '.join(bases)}.")

    def settings(self, text: str) -> str:
        """Check further settings as TOML; remote users may only set those that name no files.

        Raises:
            ScdpoError: it has others.
        """
        if self.roots() is not None:
            check_settings(text)
        return text


def listed_cost_model(name: str, names: Iterable[str], where: str = "") -> str:
    """Check that a cost model is in the list, because other names are paths.

    Raises:
        ScdpoError: it is not in the list.
    """
    if name not in [*names]:
        more = f"; see {where}" if where else ". Choose one of the list"
        raise RefusalError(422, f"There is no cost model '{str(name)[:300]}'{more}.")
    return name


def _links(folder: Path) -> Iterable[str]:
    """Yield every link below a folder, wherever it leads."""
    for directory, folders, files in os.walk(folder):
        paths = (os.path.join(directory, name) for name in (*folders, *files))
        yield from filter(os.path.islink, paths)
