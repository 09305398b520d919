"""The folder that keeps originals out of sight."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from scdpo_core.io.files import atomic_path
from scdpo_core.types import ScdpoError

_MOST = 10_000


def keep(folder: Path, image: Image.Image, texts: Mapping[str, str]) -> Path:
    """Write an image into the folder as a PNG, never across another one.

    Args:
        folder: made if missing, for its owner's eyes only.
        image: the original.
        texts: text chunks, such as the cost and the seed.

    Returns:
        The new file.

    Raises:
        ScdpoError: it cannot be written.
    """
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(0o700)
        now = datetime.now().strftime("%Y%m%d-%H%M%S")
        for number in range(_MOST):
            path = folder / f"{now}-{number:04}.png"
            try:
                # Not reserved by an empty file, which a killed host would leave there.
                with atomic_path(path, replace=False) as temporary:
                    image.save(temporary, format="PNG", pnginfo=chunks)
            except FileExistsError:
                continue
            return path
        raise OSError("no name is free")
    except OSError as error:
        raise ScdpoError(
            f"The original could not be kept in {folder} ({error.strerror or error}). Make room there, or "
            "choose another quarantine folder in the settings."
        ) from error
