"""Drawing the same prompts and noise with a LoRA at several weights, and scoring what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..config import ModelSettings, load_toml
from ..cost.protocol import provenance
from ..cost.scorers import load_scorer
from ..files import atomic_path
from ..runs import folder as names
from ..runs.comparison import Cell, CompareJob, Comparison
from ..types import ScdpoError
from .similarity import ssim

if TYPE_CHECKING:
    import torch

    from ..families.base import LoadedModel

AT_ONCE = 4
"""Pictures drawn together."""


def compare(
    job: CompareJob, folder: Path, device: torch.device, progress: Callable[[int, int], None]
) -> Comparison:
    """Draw, score and write the pictures into samples/ below the folder.

    A LoRA in the folder of the run that made it is drawn with its base loaded as that run loaded it: with its
    VAE, its text encoders, its prediction, in its 8 or 4 bits and, on a GPU, its number format.

    Args:
        job: what to draw.
        folder: the run folder.
        device: where to draw.
        progress: is told how many pictures of how many are drawn; may raise to end the work.

    Raises:
        ScdpoError: the base, the LoRA or the cost model cannot be loaded, or they do not fit.
        OSError: a picture cannot be written.
    """
    # Late: they take seconds, and wrong settings should not wait for them.
    from ..families import family_of
    from ..families.source import lora_family, model_name
    from ..lora.file import read_lora_info
    from ..lora.identity import BASES
    from ..training.attaching import attach_finished
    from ..training.checks import load_options, resolve_dtype

    total = len(job.prompts) * len(job.weights)
    progress(0, total)
    scorer = load_scorer(job.cost_model)
    own = _as_trained(job)
    # A processor may not know the format that a GPU trained in.
    dtype = resolve_dtype(own.precision if device.type == "cuda" else "auto", device)
    model = family_of(own.family, job.base).load(job.base, device, dtype, load_options(own))
    made_for, wanted = read_lora_info(job.lora).family, lora_family(job.base, model.family)
    if made_for and made_for != wanted:
        raise ScdpoError(
            f"{job.lora} is a LoRA for {BASES[made_for].title}, and {job.base} is {BASES[wanted].title}. "
            "Give the base that the LoRA was made for."
        )
    adapter, _ = attach_finished(model, job.lora)
    drawn: dict[float, list[Image.Image]] = {}
    for weight in job.weights:
        done = len(drawn) * len(job.prompts)
        with adapter.scale(weight):
            drawn[weight] = _draw(model, job, lambda more, done=done: progress(done + more, total))  # type: ignore[misc]
    cells = []
    for row, prompt in enumerate(job.prompts):
        pictures = [drawn[weight][row] for weight in job.weights]
        for weight, picture, score in zip(job.weights, pictures, scorer.score(pictures), strict=True):
            if score.problem:
                raise ScdpoError(score.problem)
            path = f"samples/{row:03d}-weight-{weight:g}.png"
            with atomic_path(folder / path) as temporary:
                picture.save(temporary)
            cells.append(
                Cell(
                    prompt,
                    job.seed + row,
                    weight,
                    path,
                    round(score.value, 4),
                    score.band,
                    round(ssim(pictures[0], picture), 4),
                )
            )
    return Comparison(job.lora.stem, model_name(job.base), provenance(scorer), tuple(cells))


def _as_trained(job: CompareJob) -> ModelSettings:
    """What the run that made the LoRA says of the base, if it is this base; else what its own files say."""
    run = job.lora.expanduser().absolute().parent / names.JOB
    try:
        own = load_toml(run).model
    except ScdpoError:  # no run's folder, or somebody else's file of that name
        return ModelSettings(base=job.base)
    return own if own.base == job.base else ModelSettings(base=job.base)


def _draw(model: LoadedModel, job: CompareJob, progress: Callable[[int], None]) -> list[Image.Image]:
    pictures: list[Image.Image] = []
    for first in range(0, len(job.prompts), AT_ONCE):
        prompts = job.prompts[first : first + AT_ONCE]
        seeds = [job.seed + first + number for number in range(len(prompts))]

        def heard(drawn: int, _: int, first: int = first) -> None:
            progress(first + drawn)

        pictures += model.sample(prompts, seeds, job.steps, job.guidance, progress=heard)
    progress(len(pictures))
    return pictures
