"""LoRA files of a run: the result, those kept on the way, and those exported from checkpoints later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.files import write_json
from ..io.json_schema import from_json, parse
from ..lora.file import save_lora
from ..lora.formats.convert import to_file
from ..lora.formats.keys import Dialect
from ..run_store.events import Event, Saved, Warned
from ..run_store.folder import RunFolder, checkpoint_steps
from ..types import LoraFile, ScdpoError
from . import checkpoint
from .starting_loras import used_with

if TYPE_CHECKING:
    from ..config.settings import TrainSettings
    from ..families.base import LoadedModel
    from ..lora.adapter import LoraAdapter
    from .loop import Outcome, Trainer
    from .validation import Best

_REMEMBERED = ("family", "rank", "alpha", "dtype", "dialect", "description", "facts")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class JobResult:
    """What a job leaves.

    Attributes:
        outcome: how training ended.
        lora: the finished file; None when it was stopped before the first step.
        folder: the run folder.
    """

    outcome: Outcome
    lora: LoraFile | None
    folder: Path


@dataclass(frozen=True)
class _Remembered:
    """What `LoraWriter.remember` writes, without the facts."""

    family: str
    rank: int
    alpha: float
    dtype: str
    dialect: Dialect
    description: str


@dataclass(frozen=True)
class LoraWriter:
    """What every LoRA file of a run says of itself.

    Attributes:
        family: of the base model.
        rank: the highest of any module.
        alpha: of the settings.
        dtype: of the weights in the file: fp16, bf16 or fp32.
        dialect: of their names.
        description: for the host's card.
        facts: see `save_lora`.
        folder: of the run.
        active: whether this process writes at all.
    """

    folder: RunFolder
    family: str
    rank: int
    alpha: float
    dtype: str
    dialect: Dialect
    description: str
    facts: Mapping[str, Any]
    active: bool = True

    def write(
        self,
        path: Path,
        state: Mapping[str, Tensor],
        step: int,
        facts: Mapping[str, Any] | None = None,
        preview: Image.Image | None = None,
    ) -> LoraFile:
        """Write a LoRA.

        Args:
            path: ends in .safetensors.
            state: of `LoraAdapter.state`.
            step: training steps in it.
            facts: more of them.
            preview: for the host's card.

        Raises:
            ScdpoError: see `save_lora`.
        """
        return save_lora(
            path,
            state,
            family=self.family,
            rank=self.rank,
            alpha=self.alpha,
            facts={**self.facts, "train_steps": step, **(facts or {})},
            dtype=_DTYPES[self.dtype],
            dialect=self.dialect,
            description=self.description,
            preview=preview,
        )

    def keep(self, state: Mapping[str, Tensor], step: int, emit: Callable[[Event], None]) -> None:
        """Write a LoRA into the run folder's loras/ and say so, if this process is `active`."""
        if self.active:
            path = self.write(self.folder.lora_at(step), state, step).path
            emit(Saved(step, f"{path.parent.name}/{path.name}", "lora"))

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Find out now, and not after the training, whether a LoRA can be written in this dialect.

        Raises:
            ScdpoError: it has no exact form there.
        """
        try:
            to_file(state, self.dialect, self.family)
        except ScdpoError as error:
            raise ScdpoError(
                f"--save-format {self.dialect} cannot hold this LoRA ({error}). Leave it at kohya, and "
                "convert what you need with trainer/lora.py convert."
            ) from error

    def remember(self) -> None:
        """Write all this beside the checkpoints, for `export`."""
        if self.active:
            write_json(self.folder.lora_facts, {name: getattr(self, name) for name in _REMEMBERED})


def lora_writer(
    settings: TrainSettings,
    model: LoadedModel,
    adapter: LoraAdapter,
    facts: Mapping[str, Any],
    pairs: int,
    active: bool,
) -> LoraWriter:
    """The writer of a run that trains on so many pairs."""
    from ..families.source import lora_family

    return LoraWriter(
        RunFolder(settings.output.output or Path()),
        lora_family(settings.model.base, model.family),
        adapter.rank,
        settings.lora.effective_alpha if settings.lora.init_lora is None else adapter.alpha,
        settings.lora.save_dtype,
        settings.lora.save_format,
        f"Safety LoRA for {model.name}, trained on {pairs} preference pairs. {used_with(settings)}".strip(),
        {**facts, "train_pairs": pairs},
        active,
    )


def choose_result(
    trainer: Trainer, result: str, last: int, writer: LoraWriter, emit: Callable[[Event], None]
) -> Best | None:
    """The LoRA that a run ends with in the place of its last one, None for the last; the artist is told.

    Where the best one is not taken, it is kept in loras/.

    Args:
        trainer: has trained.
        result: see `ValidationSettings.result`.
        last: the last step.
        writer: of the run.
        emit: is told which it is.
    """
    best = trainer.validation.best
    if best.step in (0, last):
        return None
    if result == "best" or (result == "auto" and trainer.validation.patience.is_over):
        emit(Warned(f"The result is the LoRA of step {best.step}, the best one on the held-out pairs."))
        return best
    writer.keep(best.adapter, best.step, emit)
    emit(
        Warned(
            f"On the held-out pairs the LoRA of step {best.step} was better than the last one, which is the "
            f"result (--result); it is kept as {writer.folder.lora_at(best.step).name}."
        )
    )
    return None


def export(run: Path, *, step: int | None = None, best: bool = False, output: Path | None = None) -> LoraFile:
    """Write the LoRA of a checkpoint; with an average of the weights (`ema`), that average.

    Args:
        run: the run folder.
        step: of the checkpoint; None: the newest.
        best: instead, the LoRA that was best on the held-out pairs until then.
        output: the file; None: one named after its step in the run folder's loras/.

    Raises:
        ScdpoError: there is no such checkpoint, it is damaged, or the output exists.
    """
    folder = RunFolder(run.expanduser().absolute())
    steps = checkpoint_steps(folder.checkpoints)
    if not steps:
        raise ScdpoError(
            f"There is no checkpoint in {folder.checkpoints}. Give the folder of a training run."
        )
    if step is not None and step not in steps:
        raise ScdpoError(
            f"There is no checkpoint of step {step} in {folder.checkpoints}; there are: "
            f"{', '.join(map(str, steps))}. Older ones are removed, see --keep and --save-every."
        )
    state = checkpoint.read(folder.checkpoints, steps[-1] if step is None else step)
    if state is None:
        raise ScdpoError(f"The checkpoint of step {step or steps[-1]} in {folder.checkpoints} is damaged.")
    weights, reached = state.extra.get("averaged") or state.adapter, state.step
    if best:
        found = state.extra.get("patience", {}).get("best")
        if not found:
            raise ScdpoError("This run held out no pairs (--validation), so that it knows no best LoRA.")
        weights, reached = found["adapter"], int(found["step"])
    path = folder.lora_at(reached) if output is None else output.expanduser().absolute()
    if path.exists():
        raise ScdpoError(f"{path} exists already, and nothing is ever overwritten. Give another --output.")
    return _writer_of(folder).write(path, weights, reached)


def _writer_of(folder: RunFolder) -> LoraWriter:
    try:
        values = parse(folder.lora_facts.read_text("utf-8"))
        known = from_json(values, _Remembered)
        if known.family not in FAMILY_INFO or known.dtype not in _DTYPES:
            raise ValueError(known)
        return LoraWriter(folder, **vars(known), facts=dict(values["facts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScdpoError(
            f"{folder.lora_facts} is missing or damaged, which says what the LoRA is for. A run of an older "
            "version writes it when it is resumed."
        ) from error
