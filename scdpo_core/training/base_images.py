"""Images that the base model itself draws before training: for `keep_text`, and as pairs of prompts alone.

They are drawn in groups of fixed size, so that a run which was interrupted meanwhile draws the rest as it
would have drawn it at once, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from ..io.files import atomic_path, write_json, write_text
from ..io.images import open_image, to_pixels
from ..io.infotext import plain
from ..io.json_schema import parse
from ..io.prompt_files import EvalPrompt, check_prompts
from ..preferences.folder import SAFE_PROMPTS
from ..preferences.writer import category_folder
from ..types import Conditioning, PreferencePair, Problem, ScdpoError
from .term_batches import BaseImages

if TYPE_CHECKING:
    from ..families.base import LoadedModel


FACTS = "images.json"
"""Beside the images: what they were drawn with."""

_GROUP = 8
_ENCODED_AT_ONCE = 16


@dataclass(frozen=True)
class DrawSettings:
    """How the base model draws.

    Attributes:
        steps: of the denoiser.
        guidance: classifier-free guidance.
        size: (width, height) in pixels; None for the model's own.
        seed: of the first image; the others count on from it.
    """

    steps: int
    guidance: float
    size: tuple[int, int] | None
    seed: int


def draw_base_images(
    model: LoadedModel,
    prompts: Sequence[str],
    settings: DrawSettings,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None],
) -> list[Path]:
    """Draw one image for each prompt, unless the folder holds it already.

    Args:
        model: without a LoRA.
        prompts: what to draw.
        settings: how.
        folder: for the images; a folder below it is named after everything that decides them.
        identity: of the base model, see `LoadedModel.denoiser_id`.
        progress: is told how many images of how many are there; may raise to end the work.

    Returns:
        The files, in the order of the prompts.

    Raises:
        OSError: an image cannot be written.
    """
    numbers = [settings.seed + row for row in range(len(prompts))]
    facts = _facts(model, prompts, numbers, settings, identity)
    home = folder / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    home.mkdir(parents=True, exist_ok=True)
    write_json(home / FACTS, facts)
    files = [home / f"{row:05d}.png" for row in range(len(prompts))]
    _draw(model, prompts, numbers, settings, files, progress)
    return files


def draw_pairs(
    model: LoadedModel,
    pairs: Sequence[PreferencePair],
    seeds: Sequence[int | None],
    settings: DrawSettings,
    folder: Path,
    identity: str,
    progress: Callable[[int, int], None],
) -> None:
    """Draw both images of pairs that come from prompts alone, from the same noise, where they are missing.

    Args:
        model: without a LoRA.
        pairs: rejected is drawn for the prompt, chosen for the safe prompt.
        seeds: of each pair; None: counts on from the settings' seed.
        settings: how.
        folder: preference folder of the pairs; what was drawn otherwise in it is drawn anew.
        identity: of the base model, see `LoadedModel.denoiser_id`.
        progress: is told how many images of how many are there; may raise to end the work.

    Raises:
        OSError: a file cannot be written.
    """
    prompts = [text for pair in pairs for text in (pair.prompt, pair.safe_prompt)]
    files = [file for pair in pairs for file in (pair.rejected, pair.chosen)]
    own = [settings.seed + row if seed is None else seed for row, seed in enumerate(seeds)]
    numbers = [seed for seed in own for _ in range(2)]
    facts = _facts(model, prompts, numbers, settings, identity)
    try:
        known = parse((folder / FACTS).read_text("utf-8"))
    except (OSError, ValueError):
        known = None
    if known != facts:
        for file in files:
            file.unlink(missing_ok=True)
        for pair in pairs:
            write_text(pair.chosen.with_suffix(".txt"), f"{pair.prompt}\n")
            write_text(folder / SAFE_PROMPTS / f"{pair.id}.txt", f"{pair.safe_prompt}\n")
        write_json(folder / FACTS, facts)
    _draw(model, prompts, numbers, settings, files, progress)


def _facts(
    model: LoadedModel, prompts: Sequence[str], seeds: Sequence[int], settings: DrawSettings, identity: str
) -> dict[str, Any]:
    """Everything that decides the images."""
    return {
        "model": identity,
        "encoder": model.encoder_id,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "size": list(settings.size or model.default_size),
        "prompts": list(prompts),
        "seeds": list(seeds),
    }


def _draw(
    model: LoadedModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: DrawSettings,
    files: Sequence[Path],
    progress: Callable[[int, int], None],
) -> None:
    """Draw every group of images of which a file is missing."""
    for first in range(0, len(prompts), _GROUP):
        some = slice(first, first + _GROUP)
        progress(first, len(prompts))
        if all(file.is_file() for file in files[some]):
            continue

        def told(done: int, _: int, before: int = first) -> None:
            progress(before + done, len(prompts))

        drawn = model.sample(
            prompts[some], seeds[some], settings.steps, settings.guidance, settings.size, told
        )
        for file, image in zip(files[some], drawn, strict=True):
            _save(image, file)
    progress(len(prompts), len(prompts))


def encode_base_images(
    model: LoadedModel,
    files: Sequence[Path],
    prompts: Sequence[str],
    size: tuple[int, int] | None,
    device: torch.device,
) -> BaseImages:
    """Encode images that were drawn; the tensors wait on `device`.

    Raises:
        ScdpoError: an image cannot be read.
    """
    wanted = size or model.default_size
    latents, parts = [], []
    for first in range(0, len(files), _ENCODED_AT_ONCE):
        some = slice(first, first + _ENCODED_AT_ONCE)
        pixels = torch.stack([to_pixels(open_image(file), wanted) for file in files[some]])
        latents.append(model.encode_images(pixels.to(model.device)).to(device))
        parts.append(model.encode_prompts(list(prompts[some])).map(lambda part: part.to(device)))
    return BaseImages(torch.cat(latents).contiguous(), Conditioning.concat(parts), tuple(prompts))


def _save(image: Image.Image, file: Path) -> None:
    with atomic_path(file) as temporary:
        image.save(temporary, format="PNG")


@dataclass(frozen=True)
class PromptPairs:
    """Pairs whose images need not be there yet.

    Attributes:
        folder: preference folder that they will make up.
        pairs: with the files that their images get.
        seeds: of the images that the file of prompts asks for; None where it does not.
    """

    folder: Path
    pairs: tuple[PreferencePair, ...]
    seeds: tuple[int | None, ...]


def pairs_of_prompts(file: Path, folder: Path, notice: Callable[[Problem], None]) -> PromptPairs:
    """Read harmful prompts with a safe prompt each.

    Args:
        file: .csv or .tsv with columns for both, see `io.prompt_files`.
        folder: for the images.
        notice: is told what is left out.

    Raises:
        ScdpoError: the file cannot be used, or no prompt in it has a safe one.
    """
    rows = check_prompts(file)
    pairs, seeds, bare = [], list[int | None](), 0
    for number, row in enumerate(rows):
        # The same words would teach nothing: both images would be the same one.
        if plain(row.safe_prompt) in ("", plain(row.prompt)):
            bare += 1
            continue
        pairs.append(_pair(number, row, folder))
        seeds.append(row.seed)
    if not pairs:
        raise ScdpoError(
            f"{file} has no safe prompts. Training from prompts alone needs a .csv or .tsv file with the "
            "columns prompt and safe_prompt: what is asked for, and what is to be drawn instead."
        )
    if bare:
        what = f"{bare} of {len(rows)} prompts have no safe prompt of their own and are left out."
        notice(Problem(file, what, fatal=False))
    return PromptPairs(folder, tuple(pairs), tuple(seeds))


def _pair(number: int, row: EvalPrompt, folder: Path) -> PreferencePair:
    category = category_folder(row.categories[0]) if row.categories else ""
    stem = f"{category}/{number:05d}" if category else f"{number:05d}"
    chosen, rejected = (folder / side / f"{stem}.png" for side in ("chosen", "rejected"))
    return PreferencePair(
        stem, plain(row.prompt), chosen, rejected, category, safe_prompt=plain(row.safe_prompt)
    )
