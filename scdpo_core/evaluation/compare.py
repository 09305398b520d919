"""Drawing the same prompts and noise with a LoRA at several weights, and scoring what comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..cost.protocol import provenance
from ..cost.scorers import load_scorer
from ..io.files import atomic_path
from ..runs.comparison import Cell, CompareJob, Comparison
from ..types import ScdpoError
from .load_model import load_for_drawing, require_fit
from .similarity import ssim

if TYPE_CHECKING:
    import torch

    from ..families.base import LoadedModel

AT_ONCE = 4
"""Images drawn together."""


def compare(
    job: CompareJob, folder: Path, device: torch.device, progress: Callable[[int, int], None]
) -> Comparison:
    """Draw, score and write the images into samples/ below the folder.

    The base is loaded as `load_for_drawing` does.

    Args:
        job: what to draw.
        folder: the run folder.
        device: where to draw.
        progress: called with the number of images generated and the total; may raise to end the work.

    Raises:
        ScdpoError: the base, the LoRA or the cost model cannot be loaded, or they do not fit.
        OSError: an image cannot be written.
    """
    # Late: they take seconds, and wrong settings should not wait for them.
    from ..families.source import model_name
    from ..training.adapters import attach_finished

    total = len(job.prompts) * len(job.weights)
    progress(0, total)
    scorer = load_scorer(job.cost_model)
    model = load_for_drawing(job.base, job.lora, device)
    require_fit(job.lora, job.base, model.family)
    adapter, _ = attach_finished(model, job.lora)
    drawn: dict[float, list[Image.Image]] = {}
    for weight in job.weights:
        done = len(drawn) * len(job.prompts)
        with adapter.scale(weight):
            drawn[weight] = _draw(model, job, lambda more, done=done: progress(done + more, total))  # type: ignore[misc]
    cells = []
    for row, prompt in enumerate(job.prompts):
        images = [drawn[weight][row] for weight in job.weights]
        for weight, image, score in zip(job.weights, images, scorer.score(images), strict=True):
            if score.problem:
                raise ScdpoError(score.problem)
            path = f"samples/{row:03d}-weight-{weight:g}.png"
            with atomic_path(folder / path) as temporary:
                image.save(temporary)
            cells.append(
                Cell(
                    prompt,
                    job.seed + row,
                    weight,
                    path,
                    round(score.value, 4),
                    score.band,
                    round(ssim(images[0], image), 4),
                )
            )
    return Comparison(job.lora.stem, model_name(job.base), provenance(scorer), tuple(cells))


def _draw(model: LoadedModel, job: CompareJob, progress: Callable[[int], None]) -> list[Image.Image]:
    images: list[Image.Image] = []
    for first in range(0, len(job.prompts), AT_ONCE):
        prompts = job.prompts[first : first + AT_ONCE]
        seeds = [job.seed + first + number for number in range(len(prompts))]

        def heard(drawn: int, _: int, first: int = first) -> None:
            progress(first + drawn)

        images += model.sample(prompts, seeds, job.steps, job.guidance, progress=heard)
    progress(len(images))
    return images
