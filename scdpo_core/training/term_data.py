"""What the single-image terms need besides pairs: empty and safe prompts, and the base's own images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.settings import TrainSettings
from ..config.terms import SAFE_PROMPT_TERMS, TermName, TermSettings, term_weights
from ..preferences.everyday_prompts import everyday_prompts
from ..preferences.folder import BENIGN_PROMPTS
from ..preferences.several_folders import pair_folders
from ..types import Conditioning, LabelledPair, ScdpoError
from .base_images import DrawSettings, draw_base_images, encode_base_images
from .batches import timestep_law
from .dataset import Dataset
from .distributed import ProcessGroup
from .term_batches import TermData, TermSource

if TYPE_CHECKING:
    from ..families.base import LoadedModel

BASE_IMAGES = "base_images"
"""Folder in a run's cache for what the base model drew."""

_MAX_PROMPT_FILE = 4 * 2**20
_PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class RunTerms:
    """The single-image terms of a run.

    Attributes:
        weights: of those that take part.
        data: what they need besides the pairs; None where the run has no terms.
    """

    weights: Mapping[TermName, float]
    data: TermData | None = None

    def source(self, settings: TrainSettings, model: LoadedModel, team: ProcessGroup) -> TermSource | None:
        """What makes their rows for every batch; None where the run has no terms."""
        if self.data is None:
            return None
        law, seed = timestep_law(settings), settings.optim.seed
        return TermSource(self.weights, settings.terms, self.data, model, law, seed, team)


def weights_of_run(settings: TrainSettings, data: Dataset) -> dict[TermName, float]:
    """The terms of a run and their weights.

    Raises:
        ScdpoError: a term over harmful pairs has none, and nothing else is minimised.
    """
    benign = {pair.pair.prompt for pair in data.training_pairs if pair.is_benign}
    weights = term_weights(settings.objective.objective, settings.terms, len(benign))
    if not settings.objective.has_pair_loss and all(pair.is_benign for pair in data.training_pairs):
        raise ScdpoError(
            f"All {len(data.training_pairs)} pairs are benign: there is no harm to train away. Put pairs of "
            "harmful prompts into folders of their own, such as chosen/weapon and rejected/weapon."
        )
    return weights


def keep_prompts(
    settings: TermSettings, pairs: Sequence[LabelledPair], base: str, folders: Iterable[Path] = ()
) -> list[str]:
    """The benign prompts of `keep_text`, at most keep_images, in the order in which images are drawn.

    Args:
        settings: say where they come from.
        pairs: that are trained on.
        base: the base model; the embedded one has everyday prompts of its own.
        folders: of the pairs, which may list further harmless prompts that no pair has.

    Raises:
        ScdpoError: there are none, or the file cannot be read.
    """
    listed = [folder / BENIGN_PROMPTS for folder in folders]
    more = [prompt for file in listed if file.is_file() for prompt in _read(file)]
    own = list(dict.fromkeys([*(pair.pair.prompt for pair in pairs if pair.is_benign), *more]))
    if settings.keep_prompts == "pairs":
        found = own
    elif settings.keep_prompts == "everyday":
        found = everyday_prompts(base)
    elif settings.keep_prompts == "auto":
        found = _interleaved(own, everyday_prompts(base))
    else:
        found = _read(Path(settings.keep_prompts))
    found = list(dict.fromkeys(found))[: settings.keep_images]
    if not found:
        raise ScdpoError(
            f"--keep-prompts {settings.keep_prompts} names no benign prompt. Give 'everyday', or a text file "
            "with one prompt a line."
        )
    return found


def prepare_terms(
    settings: TrainSettings,
    data: Dataset,
    model: LoadedModel,
    folder: Path,
    progress: Callable[[int, int], None],
    warn: Callable[[str], None] = lambda sentence: None,
) -> RunTerms:
    """Encode prompts and draw images for the terms of a run.

    Args:
        settings: of the run.
        data: its pairs.
        model: without a LoRA, its encoders in memory.
        folder: for the images that the base model draws.
        progress: is told how many of these are there.
        warn: is told of harmful prompts that have no safe one where a term asks for it.

    Raises:
        ScdpoError: see `weights_of_run` and `keep_prompts`.
    """
    weights = weights_of_run(settings, data)
    if not weights:
        return RunTerms(weights)
    pairs, own = data.training_pairs, settings.terms
    images = None
    if "keep_text" in weights:
        data_settings = settings.data
        folders = [each.path for each in pair_folders(data_settings.pairs, data_settings.more_pairs)]
        prompts = keep_prompts(own, pairs, settings.model.base, folders)
        repeated = [prompts[row % len(prompts)] for row in range(own.keep_images)]
        drawing = drawing_of(settings)
        home = folder / BASE_IMAGES
        files = draw_base_images(model, repeated, drawing, home, model.denoiser_id(), progress)
        images = encode_base_images(model, files, repeated, settings.data.size, model.device)
    safe, rows = None, dict[str, int]()
    if SAFE_PROMPT_TERMS & weights.keys():
        known = {pair.pair.prompt: pair.pair.safe_prompt for pair in pairs if pair.pair.safe_prompt}
        harmful = {pair.pair.prompt for pair in pairs if not pair.is_benign}
        if bare := len(harmful - known.keys()):
            warn(
                f"{bare} of {len(harmful)} harmful prompts have no safe prompt and will be answered like the "
                "empty one. Write what is to be drawn instead into safe_prompts/ of the preference folder, "
                "under the pair's name: safe_prompts/weapon/0001.txt, for example."
            )
        texts = list(dict.fromkeys(known.values()))
        rows = {prompt: texts.index(text) for prompt, text in known.items()}
        parts = [
            model.encode_prompts(texts[first : first + _PROMPTS_AT_ONCE])
            for first in range(0, len(texts), _PROMPTS_AT_ONCE)
        ]
        safe = Conditioning.concat(parts) if parts else None
    told = TermData(
        model.encode_prompts([""]),
        safe,
        rows,
        images,
        data.harmful_share(settings.data.benign_share),
        settings.data.size or model.default_size,
    )
    return RunTerms(weights, told)


def drawing_of(settings: TrainSettings) -> DrawSettings:
    """How the base model draws before training; its seeds are far from those of samples and evaluations."""
    sampling, first = settings.sampling, 1_000_000_000 + 100_000 * settings.optim.seed
    return DrawSettings(sampling.sample_steps, sampling.guidance, settings.data.size, first)


def _interleaved(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Both lists in turn, so that a cut takes as much of either."""
    longest = max(len(first), len(second))
    return [each[row] for row in range(longest) for each in (first, second) if row < len(each)]


def _read(path: Path) -> list[str]:
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_PROMPT_FILE + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ScdpoError(
            f"--keep-prompts: {path} cannot be read ({error.strerror}). Check the path."
        ) from error
    except UnicodeDecodeError as error:
        raise ScdpoError(f"--keep-prompts: {path} is not UTF-8 text. Save it as UTF-8.") from error
    if len(content) > _MAX_PROMPT_FILE:
        raise ScdpoError(f"--keep-prompts: {path} is over 4 MB. Give a list of some hundred prompts.")
    return [line.strip() for line in text.splitlines() if line.strip()]
