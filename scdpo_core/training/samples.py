"""Images drawn before, during and after training, always from the same prompts and noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..config.settings import SampleSettings
from ..io.files import atomic_path
from ..run_store.events import Event, Progress, Sample
from ..run_store.folder import SAMPLES
from ..types import PreferencePair

if TYPE_CHECKING:
    from ..cost.protocol import Scorer
    from ..families.base import LoadedModel

_CARD_SIDE = 512  # pixels, of a LoRA's card in a host


def choose_prompts(pairs: Sequence[PreferencePair], count: int) -> list[str]:
    """Prompts of the pairs, spread evenly: half of those under benign prompts, if there are any."""
    benign = list(dict.fromkeys(pair.prompt for pair in pairs if pair.category == "benign"))
    others = list(dict.fromkeys(pair.prompt for pair in pairs if pair.category != "benign"))
    half = min(len(benign), count // 2)
    first = _spread(others, count - half)
    return first + _spread(benign, count - len(first))


def _spread(prompts: Sequence[str], count: int) -> list[str]:
    count = min(count, len(prompts))
    return [prompts[index * len(prompts) // count] for index in range(count)]


class Sampler:
    """Draws the same prompts again and again."""

    def __init__(
        self,
        model: LoadedModel,
        prompts: Sequence[str],
        settings: SampleSettings,
        size: tuple[int, int] | None,
        run_folder: Path | None,
        emit: Callable[[Event], None],
        scorer: Scorer | None = None,
    ) -> None:
        """Draw `prompts` with `model`, the first with seed 0, the second with seed 1 and so on.

        Args:
            model: with the LoRA attached.
            prompts: what to draw.
            settings: steps and guidance.
            size: (width, height), None for the model's own.
            run_folder: images go into samples/ below it; None: they are drawn and not kept.
            emit: is told of every image.
            scorer: says what each image costs; None: nobody does.
        """
        self._model, self._prompts, self._settings, self._size = model, list(prompts), settings, size
        self._folder, self._emit, self._scorer = run_folder, emit, scorer

    def draw(self, step: int, progress: Callable[[int, int], None] | None = None) -> list[Image.Image]:
        """Draw all prompts and write them as samples/step-000100-0.png and so on.

        Args:
            step: of the training.
            progress: is told how many images are drawn; may raise to end the work.

        Raises:
            OSError: an image cannot be written.
        """
        if not self._prompts:
            return []
        count = len(self._prompts)
        self._emit(Progress("sample", 0, count))
        seeds = list(range(count))
        images = self._model.sample(
            self._prompts, seeds, self._settings.sample_steps, self._settings.guidance, self._size, progress
        )
        if self._folder is None:
            return images
        costs: list[float | None] = [None] * count
        if self._scorer is not None:
            scores = self._scorer.score(images)
            costs = [score.value if score.finite else None for score in scores]
        for number, (image, prompt) in enumerate(zip(images, self._prompts, strict=True)):
            path = f"{SAMPLES}/step-{step:06d}-{number}.png"
            with atomic_path(self._folder / path) as temporary:
                image.save(temporary)
            self._emit(Sample(step, path, prompt, seeds[number], costs[number]))
        self._emit(Progress("sample", count, count))
        return images


def preview(images: Sequence[Image.Image]) -> Image.Image | None:
    """Lay out images in a nearly square grid, small drawings enlarged for a host's card; None of none."""
    if not images:
        return None
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    grid = Image.new("RGB", (columns * width, rows * height))
    for number, image in enumerate(images):
        grid.paste(image, (number % columns * width, number // columns * height))
    scale = max(1, _CARD_SIDE // max(grid.size))
    return grid.resize((grid.width * scale, grid.height * scale), Image.Resampling.NEAREST)
