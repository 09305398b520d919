"""Everything that can be found wrong with a run before a model is loaded, said at once."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ..config.settings import ModelSettings, TrainSettings
from ..families import LoadOptions, family_of
from ..io.printable import not_unicode
from ..preferences.several_folders import check_folders, pair_folders
from ..preferences.verified_images import KnownImages
from ..run_store.folder import TITLES, RunFolder, kind_of
from ..types import PreferencePair, Problem, ScdpoError
from .base_images import PromptPairs, pairs_of_prompts
from .setting_checks import invalid
from .starting_loras import ReferenceMerge, problems_of_loras

MANY_EPOCHS = 100
"""Rounds through the pairs beyond which a run is warned of."""

_MIB = 2**20
LONGEST_NAME = 243
"""Bytes of a run's name: file systems take 255, and the LoRA's has '.safetensors' behind it."""
# Masters and both moments of AdamW for the attention layers of SD 1.5, in MiB for each rank.
_MIB_PER_RANK = 2.5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_run(
    settings: TrainSettings,
    resume: bool,
    *,
    notice: Callable[[Problem], None],
    progress: Callable[[int, int], None],
    unasked: Sequence[TrainSettings],
    known: KnownImages | None = None,
) -> tuple[RunFolder, Sequence[PreferencePair], PromptPairs | None]:
    """The run folder and the pairs of a run that can begin; and those of prompts alone, still to be drawn.

    Args:
        settings: of the run.
        resume: whether an interrupted run is to go on.
        notice: is told what is odd but stops nothing.
        progress: is told how many images of how many have been looked at.
        unasked: settings that nobody gave, see `requirements.without_effect`.
        known: images that were found sound before, see `read_folder`.

    Raises:
        ScdpoError: names everything that is wrong, one thing a line.
    """
    family = _family(settings.model)
    wrong = [
        *invalid(settings, family, unasked),
        *problems_of_loras(settings, family),
        *_names(settings),
        *_output(settings, resume),
        *_model(settings, notice),
        *_cost_model(settings),
    ]
    pairs: Sequence[PreferencePair] = []
    drawn: PromptPairs | None = None
    data, folder = settings.data, RunFolder(settings.output.output or Path())
    try:
        if data.pairs is not None and data.prompts is not None:
            wrong.append("Give --pairs or --prompts, not both.")
        elif data.pairs is not None:
            # Decoding every image takes minutes, in which nobody should wait for a mistyped setting.
            pairs = check_folders(
                pair_folders(data.pairs, data.more_pairs),
                notice=notice,
                progress=progress,
                decode=not wrong,
                known=known,
            )
        elif data.prompts is not None:
            drawn = pairs_of_prompts(data.prompts, folder.drawn_pairs, notice)
            pairs = drawn.pairs
        else:
            wrong.append(
                "Say which folder holds the preference pairs: --pairs FOLDER. Without pairs, give harmful "
                "and safe prompts: --prompts FILE.csv."
            )
    except ScdpoError as error:
        wrong.append(str(error))
    if wrong or settings.output.output is None:
        raise ScdpoError("\n".join(wrong))
    return folder, pairs, drawn


def _names(settings: TrainSettings) -> Iterator[str]:
    """Names that the settings file of a run cannot hold."""
    for section in ("model", "data", "terms", "lora", "output"):
        for key, value in vars(getattr(settings, section)).items():
            wrong = not_unicode(str(value)) if isinstance(value, Path | str) else ""
            if wrong:
                yield f"--{key.replace('_', '-')} {wrong} Rename it."


def epochs_of(settings: TrainSettings, processes: int, pairs: int) -> float:
    """How often a run takes each of so many pairs."""
    optim = settings.optim
    return optim.max_train_steps * optim.batch_size * optim.accumulation * processes / max(pairs, 1)


def many_epochs(epochs: float, pairs: int) -> Iterator[str]:
    """A sentence for a run that takes its pairs more often than `MANY_EPOCHS`, else none."""
    if epochs <= MANY_EPOCHS:
        return
    yield (
        f"Each of the {pairs} pairs comes {epochs:.0f} times, which easily teaches them by heart. Lower "
        "--max-train-steps, add pairs, or let held-out pairs end it in time (--validation 0.1 --patience 3)."
    )


def _output(settings: TrainSettings, resume: bool) -> Iterator[str]:
    path = settings.output.output
    if path is None:
        yield "Say where the results go: --output PATH/NAME."
        return
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        yield (
            f"--output: the name {path.name[:40]}... is too long, for the LoRA in the folder takes it. Give "
            f"one of up to {LONGEST_NAME} letters (accents and other signs count as two to four)."
        )
        return
    folder = RunFolder(path)
    if path.suffix == ".safetensors":
        yield f"--output is a folder, and the LoRA in it takes its name: give {path.with_suffix('')}."
    elif not path.name or path.name in (".", ".."):
        yield f"--output needs a name for the run: {path / 'my_lora'}, for example."
    elif path.exists() and not path.is_dir():
        yield f"--output {path} is a file. Give a folder."
    elif kind_of(path) != "lora":
        yield f"{path} is the run folder of {TITLES[kind_of(path)]}. Give another --output."
    elif folder.has_results() and not resume:
        yield (
            f"{path} already holds a trained LoRA or its checkpoints, and nothing is ever overwritten. "
            "Go on with it (--resume), give another --output, or move the folder away."
        )
    elif resume and not folder.job.is_file():
        yield f"There is no run in {path} to resume. Check --output, or leave --resume out to begin one."
    elif resume and folder.reached > settings.optim.max_train_steps:
        yield (
            f"The run in {path} has {folder.reached} steps behind it, and --max-train-steps "
            f"{settings.optim.max_train_steps} is fewer. Give more to train on, or leave it out."
        )
    else:
        yield from _room(path, settings)


def _room(path: Path, settings: TrainSettings) -> Iterator[str]:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        yield f"--output {path} cannot be made: {existing} is a file."
    elif not os.access(existing, os.W_OK | os.X_OK):
        yield f"You may not write to {existing}. Choose another --output, or change the folder's permissions."
    else:
        # One more than are kept: a new checkpoint is whole before an old one goes.
        needed = _MIB * (16 + _MIB_PER_RANK * settings.lora.rank * (settings.output.keep + 1))
        free = shutil.disk_usage(existing).free
        if free < needed:
            yield (
                f"The disk of {existing} is nearly full: {free // _MIB} MiB are free, and this run may need "
                f"{needed // _MIB:.0f}. Make room, or choose an --output on another disk."
            )


def load_options(settings: ModelSettings) -> LoadOptions:
    """What the settings say of a base model beside where it is."""
    return LoadOptions(
        prediction=settings.prediction,
        zero_snr=settings.zero_snr,
        vae=settings.vae,
        text_encoders=settings.text_encoders,
        t5_tokens=settings.t5_tokens,
        prompt_chunks=settings.prompt_chunks,
        guidance=settings.guidance_embedding,
        quantize=settings.quantize,
        offload_blocks=settings.offload_blocks,
        on_read=None if settings.reference_lora is None else ReferenceMerge(settings.reference_lora),
        vae_tiling=settings.vae_tiling,
    )


def _model(settings: TrainSettings, notice: Callable[[Problem], None]) -> Iterator[str]:
    own = settings.model
    try:
        for problem in family_of(own.family, own.base).check(own.base, load_options(own)):
            if problem.fatal:
                yield f"--base {own.base}: {problem.path}: {problem.what}"
            else:
                notice(problem)
        device = resolve_device(own.device)
        resolve_dtype(own.precision, device)
        if own.offload_blocks not in (0, "auto") and device.type == "mps":
            yield "--offload-blocks gains nothing where the GPU's memory is the main memory: leave it out."
        if own.compile != "off" and device.type == "cpu":
            yield from _compiler_paths()
    except ScdpoError as error:
        yield str(error)


def _family(settings: ModelSettings) -> str | None:
    """The family of the base model; None where its files do not tell, which `_model` words."""
    try:
        return family_of(settings.family, settings.base).name
    except ScdpoError:
        return None


def _compiler_paths() -> Iterator[str]:
    """A sentence where torch's compiler for processors would fail: its linker splits paths at spaces."""
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    torch_folder = str(Path(torch.__file__).parent)
    if " " in torch_folder:
        yield (
            f"--compile needs paths without spaces on a processor, and torch lies in {torch_folder}. Move "
            "the project to such a path, or leave --compile out."
        )
    elif " " in cache:
        yield (
            f"--compile needs paths without spaces on a processor, and its files would go to {cache}. Set "
            "TORCHINDUCTOR_CACHE_DIR to a folder without one, or leave --compile out."
        )


def _cost_model(settings: TrainSettings) -> Iterator[str]:
    name = settings.data.cost_model
    if name == "none":
        return
    from ..cost.scorers import names_a_scorer, offered_scorers

    if not names_a_scorer(name):
        yield (
            f"There is no cost model '{name}'. Give {', '.join(offered_scorers())}, a file that "
            "train_cost.py wrote, or none."
        )


def resolve_device(name: str) -> torch.device:
    """The device of that name; 'auto' is the best there is.

    Raises:
        ScdpoError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ScdpoError(f"--device {name} cannot be used here ({reason}). Try --device auto.") from error
    return device


def resolve_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The number format of the frozen model; 'auto' is bf16 or fp16 on a GPU and fp32 elsewhere.

    Raises:
        ScdpoError: the device cannot train in that format.
    """
    if precision == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if precision == "fp16" and device.type != "cuda":
        raise ScdpoError(f"--precision fp16 needs a GPU; on '{device.type}' take fp32 or bf16.")
    return _DTYPES[precision]
