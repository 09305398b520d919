"""Everything that can be found wrong with a run before a model is loaded, said at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..config import ModelSettings, TrainSettings
from ..families import LoadOptions, family_of
from ..preferences.folder import check_folder
from ..types import PreferencePair, Problem, ScdpoError
from . import optimizers, tracking
from .run_folder import RunFolder

_MIB = 2**20
# Masters and both moments of AdamW for the attention layers of SD 1.5, in MiB for each rank.
_MIB_PER_RANK = 2.5
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_run(
    settings: TrainSettings,
    resume: bool,
    *,
    notice: Callable[[Problem], None],
    progress: Callable[[int, int], None],
) -> tuple[RunFolder, list[PreferencePair]]:
    """The run folder and the pairs of a run that can begin.

    Args:
        settings: of the run.
        resume: whether an interrupted run is to go on.
        notice: is told what is odd but stops nothing.
        progress: is told how many pictures of how many have been looked at.

    Raises:
        ScdpoError: names everything that is wrong, one thing a line.
    """
    wrong = [
        *invalid(settings),
        *_output(settings, resume),
        *_model(settings, notice),
        *_cost_model(settings),
    ]
    pairs: list[PreferencePair] = []
    if settings.data.pairs is None:
        wrong.append("Say which folder holds the preference pairs: --pairs FOLDER.")
    else:
        try:
            pairs = check_folder(settings.data.pairs, notice=notice, progress=progress)
        except ScdpoError as error:
            wrong.append(str(error))
    if wrong or settings.output.output is None:
        raise ScdpoError("\n".join(wrong))
    return RunFolder(settings.output.output), pairs


def _output(settings: TrainSettings, resume: bool) -> Iterator[str]:
    path = settings.output.output
    if path is None:
        yield "Say where the results go: --output PATH/NAME."
        return
    folder = RunFolder(path)
    if path.suffix == ".safetensors":
        yield f"--output is a folder, and the LoRA in it takes its name: give {path.with_suffix('')}."
    elif not path.name or path.name in (".", ".."):
        yield f"--output needs a name for the run: {path / 'my_lora'}, for example."
    elif path.exists() and not path.is_dir():
        yield f"--output {path} is a file. Give a folder."
    elif folder.has_results() and not resume:
        yield (
            f"{path} already holds a trained LoRA or its checkpoints, and nothing is ever overwritten. "
            "Go on with it (--resume), give another --output, or move the folder away."
        )
    elif resume and not folder.job.is_file():
        yield f"There is no run in {path} to resume. Check --output, or leave --resume out to begin one."
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
        guidance=settings.guidance_embedding,
        quantize=settings.quantize,
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
        resolve_dtype(own.precision, resolve_device(own.device))
    except ScdpoError as error:
        yield str(error)


def _cost_model(settings: TrainSettings) -> Iterator[str]:
    name = settings.data.cost_model
    if name == "none":
        return
    from ..cost.scorers import SCORERS, names_a_scorer

    if not names_a_scorer(name):
        yield (
            f"There is no cost model '{name}'. Give {', '.join(SCORERS)}, a file that train_cost.py wrote, "
            "or none."
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


def invalid(settings: TrainSettings) -> list[str]:
    """A sentence about each value that makes no sense; empty when all do."""
    data, objective, optim, output = settings.data, settings.objective, settings.optim, settings.output
    rules = [
        (data.width >= 0 and data.height >= 0, "data.width and data.height must not be negative"),
        (bool(data.width) == bool(data.height), "data.width and data.height are given together, or neither"),
        (data.safety_weight >= 0, "data.safety_weight must not be negative"),
        (data.tie >= 0, "data.tie must not be negative"),
        (data.soft_tau is None or data.soft_tau > 0, "data.soft_tau must be above 0"),
        (data.benign_share is None or 0 <= data.benign_share <= 1, "data.benign_share must lie in 0..1"),
        (objective.effective_beta > 0, "objective.beta must be above 0"),
        (objective.winner >= 0, "objective.winner must not be negative"),
        (objective.timestep_std > 0, "objective.timestep_std must be above 0"),
        (settings.model.t5_tokens >= 0, "model.t5_tokens must not be negative"),
        (settings.model.guidance_embedding >= 0, "model.guidance_embedding must not be negative"),
        (objective.dfm_gamma >= 0, "objective.dfm_gamma must not be negative"),
        (0 <= objective.dfm_warmup <= 1, "objective.dfm_warmup must lie in 0..1"),
        (objective.focal_gamma >= 0, "objective.focal_gamma must not be negative"),
        (objective.loser_mu is None or 0 <= objective.loser_mu <= 1, "objective.loser_mu must lie in 0..1"),
        (objective.reference_draws >= 0, "objective.reference_draws must not be negative"),
        (optim.max_train_steps >= 1, "optim.max_train_steps must be at least 1"),
        (optim.batch_size >= 1, "optim.batch_size must be at least 1"),
        (optim.accumulation >= 1, "optim.accumulation must be at least 1"),
        (optim.lr > 0, "optim.lr must be above 0"),
        (0 <= optim.warmup < 1, "optim.warmup is a share of the steps: at least 0 and below 1"),
        (0 <= optim.beta1 < 1 and 0 <= optim.beta2 < 1, "optim.beta1 and optim.beta2 must lie in 0..1"),
        (optim.max_grad_norm >= 0, "optim.max_grad_norm must not be negative"),
        (0 <= optim.seed < 2**31, "optim.seed must lie in 0..2147483647"),
        (settings.lora.rank >= 1, "lora.rank must be at least 1"),
        (0 <= settings.lora.dropout < 1, "lora.dropout must be at least 0 and below 1"),
        (output.checkpoint_every >= 1, "output.checkpoint_every must be at least 1"),
        (output.keep >= 1, "output.keep must be at least 1"),
        (output.log_every >= 1, "output.log_every must be at least 1"),
        (settings.sampling.samples >= 0, "sampling.samples must not be negative"),
        (settings.sampling.sample_steps >= 1, "sampling.sample_steps must be at least 1"),
        (objective.min_snr_gamma > 0, "objective.min_snr_gamma must be above 0"),
        (
            0 <= objective.timestep_min < objective.timestep_max <= 1,
            "objective.timestep_min and objective.timestep_max are shares of the schedule, in this order",
        ),
        (data.bucket_step >= 8 and data.bucket_step % 8 == 0, "data.bucket_step must be a multiple of 8"),
        (optim.text_lr is None or optim.text_lr > 0, "optim.text_lr must be above 0"),
        (optim.schedule_power > 0, "optim.schedule_power must be above 0"),
        (optim.schedule_cycles >= 1, "optim.schedule_cycles must be at least 1"),
        (0 <= optim.ema < 1, "optim.ema must be at least 0 and below 1"),
    ]
    sentences = [sentence for fine, sentence in rules if not fine]
    sentences += [*_meaningless(settings), *optimizers.invalid(optim), *tracking.unknown(output.track)]
    return [f"{sentence}." for sentence in sentences]


def _meaningless(settings: TrainSettings) -> Iterator[str]:
    """A sentence about each setting that would do nothing, or cannot be had, beside the others."""
    lora, validation = settings.lora, settings.validation
    if lora.kind in ("loha", "lokr") and lora.dropout:
        yield f"lora.dropout: a {lora.kind} drops no inputs in training; set it to 0, or train a lora"
    coded = settings.model.quantize
    if coded != "off" and (lora.kind == "dora" or (coded == "nf4" and lora.kind != "lora")):
        yield (
            f"lora.kind '{lora.kind}' looks at the base's own matrices, which model.quantize '{coded}' has "
            "coded: leave one of them out"
        )
    if settings.optim.text_lr is not None and not lora.train_text:
        yield "optim.text_lr is of text encoders that train along: give --train-text as well, or leave it out"
    if not 0 <= validation.validation < 1:
        yield "validation.validation is a share of the pairs: at least 0 and below 1"
    if validation.validation_every < 1 or validation.validation_draws < 1:
        yield "validation.validation_every and validation.validation_draws must be at least 1"
    if validation.patience < 0 or (validation.patience and not validation.validation):
        yield "validation.patience looks at held-out pairs: give --validation 0.1 as well, or set it to 0"
    try:
        _ = lora.rank_of_block
    except ScdpoError as error:
        yield str(error).removesuffix(".")
