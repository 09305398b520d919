"""Every setting of a training run, its default, and its way into and out of TOML."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..types import ScdpoError
from . import convert
from .bounds import bounded, needing, with_bounds
from .objective import (
    BETA_IS_NO_SCALE,
    DEFAULT_BETAS,
    FRESH_DRAWS,
    PAIR_LOSS,
    ObjectiveName,
    ObjectiveSettings,
)
from .optim import LoraSettings, OptimSettings, ValidationSettings
from .requirements import CHUNKS, COSTS, FLUX, SAMPLES, SDXL, T5, UNETS, any_of, beside, of_objective
from .terms import KEEP_TEXT, TermSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "BETA_IS_NO_SCALE",
    "DEFAULT_BETAS",
    "DataSettings",
    "LoraSettings",
    "ModelSettings",
    "ObjectiveName",
    "ObjectiveSettings",
    "OptimSettings",
    "OutputSettings",
    "SampleSettings",
    "TermSettings",
    "TrainSettings",
    "ValidationSettings",
    "changes",
    "config_hash",
    "identity",
    "load_toml",
    "to_toml",
]

_CACHED = any_of(
    beside("data", "cache_in", "--cache-in disk", "disk"),
    beside("objective", "reference_draws", "--reference-draws 32"),
    KEEP_TEXT,
)
_PAIRS = beside("data", "pairs", "--pairs FOLDER")
_DRAWN = any_of(SAMPLES, KEEP_TEXT, beside("data", "prompts", "--prompts FILE"))


@with_bounds
@dataclass(frozen=True)
class ModelSettings:
    """The model that the LoRA is for.

    Attributes:
        base: 'micro' (the embedded model), a diffusers model folder, a .safetensors checkpoint, or the name
            of a model on the hub (owner/name).
        family: architecture of the base model, as docs/families.md names it; 'auto' looks at its files.
        prediction: what a diffusion model predicts; 'auto' believes its own files.
        zero_snr: whether the noise schedule ends in pure noise; 'auto' believes the model's own files.
        reference_lora: a LoRA file that becomes part of the base model: of the frozen reference, and of what
            the new LoRA changes. The result is to be used together with it.
        vae: a VAE (.safetensors file or folder) instead of the model's own.
        text_encoders: folder with the text encoders that the base lacks, and with T5's tokenizer.
        t5_tokens: length of T5's prompts; 0 is the family's own (256 for SD 3, 512 for FLUX.1 and Chroma1).
        prompt_chunks: how many chunks of 75 tokens CLIP reads of a prompt at most.
        guidance_embedding: that FLUX.1 dev is told while training, policy and reference alike.
        precision: number format of the frozen model; the LoRA itself always trains in float32.
            'auto' takes bf16 or fp16 on a GPU, fp32 on a CPU.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' ...
        gradient_checkpointing: spend a third more time to need much less GPU memory.
        quantize: keep the frozen model's matrices in 8 or 4 bits; the arithmetic stays in `precision`.
        offload_blocks: how many of the frozen model's blocks wait in main memory and come to the GPU in time;
            'auto' takes as few as the GPU's memory allows. The LoRA is the same, a step takes longer.
        vae_tiling: encode and draw large images in overlapping tiles, for GPUs of little memory.
        channels_last: order in memory that 16-bit convolutions of a GPU like; 'auto' takes it for them.
        compile: let torch.compile make the denoiser faster after a start of some minutes: its repeated
            'blocks', or the 'whole' of it.
    """

    base: str = "micro"
    family: str = "auto"
    prediction: Literal["auto", "epsilon", "v_prediction"] = needing("auto", UNETS)
    zero_snr: Literal["auto", "on", "off"] = needing("auto", UNETS)
    reference_lora: Path | None = None
    vae: Path | None = None
    text_encoders: Path | None = None
    t5_tokens: int = bounded(0, at_least=0, needs=T5)
    prompt_chunks: int = bounded(8, at_least=1, at_most=32, needs=CHUNKS)
    guidance_embedding: float = bounded(1.0, at_least=0, needs=FLUX)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    quantize: Literal["off", "int8", "fp8", "nf4"] = "off"
    offload_blocks: int | Literal["auto"] = bounded(0, at_least=0)
    vae_tiling: bool = False
    channels_last: Literal["auto", "on", "off"] = needing("auto", UNETS)
    compile: Literal["off", "blocks", "whole"] = "off"


@with_bounds
@dataclass(frozen=True)
class DataSettings:
    """The preference pairs, and how the safety cost changes their labels.

    Attributes:
        pairs: preference folder with chosen/ and rejected/ images and .txt prompts.
        more_pairs: further preference folders, each as FOLDER or FOLDER:REPEATS; a folder's pairs come so
            many times in an epoch.
        prompts: instead of pairs: a .csv, .tsv or .txt file of harmful prompts, with a safe prompt for each
            in a column 'safe_prompt'; the base model draws both before training.
        width: of the training images in pixels; 0 takes the model's own size.
        height: of the training images in pixels; 0 takes the model's own size.
        cost_model: scores every image before training: 'micro', a cost model file, or 'none'.
        safety_weight: lambda of the combined reward R = r - lambda * max(cost, 0).
        tie: pairs whose combined rewards differ by less are dropped.
        both_unsafe: what to do with a pair of two harmful images: order it by cost where the costs differ
            clearly (by 1 or more) and leave it out otherwise, or always leave it out.
        soft_tau: temperature of soft labels; not given, labels are hard.
        benign_share: share of pairs under benign prompts in a batch; not given, as in the folder.
        caption_dropout: share of the pairs in a batch that are trained under the empty prompt: both images of
            the pair, policy and reference alike. Terms over single images keep their prompts.
        flip: mirror about half of the pairs of every batch, left to right: both images of a pair and its
            mask alike. Mirrored images are encoded too, which takes twice the time and the space.
        cache: folder of encoded images, which runs may share; not given, inside the run folder.
        cache_in: 'disk' keeps encoded images for other runs, 'ram' forgets them with the process.
        buckets: train every pair at the size nearest to its images' shape, width and height deciding how
            many pixels there are; off, everything is cropped to one size.
        bucket_step: widths and heights of buckets are multiples of this many pixels.
        real_sizes: tell SDXL how large the chosen image was and where it was cropped, instead of an
            uncropped image of the training size.
    """

    pairs: Path | None = None
    more_pairs: tuple[str, ...] = needing((), _PAIRS)
    prompts: Path | None = None
    width: int = bounded(0, at_least=0, step=8)
    height: int = bounded(0, at_least=0, step=8)
    cost_model: str = "none"
    safety_weight: float = bounded(1.0, at_least=0, needs=COSTS)
    tie: float = bounded(0.1, at_least=0, needs=COSTS)
    both_unsafe: Literal["order", "drop"] = needing("order", COSTS)
    soft_tau: float | None = bounded(None, above=0, needs=(COSTS, of_objective("sc_dpo")))
    benign_share: float | None = bounded(None, at_least=0, at_most=1)
    caption_dropout: float = bounded(0.0, at_least=0, below=1, needs=(PAIR_LOSS, FRESH_DRAWS))
    flip: bool = needing(False, FRESH_DRAWS)
    cache: Path | None = needing(None, _CACHED)  # noqa: RUF009 - the field it makes is immutable
    cache_in: Literal["disk", "ram"] = "disk"
    buckets: bool = False
    bucket_step: int = bounded(64, at_least=8, step=8, needs=beside("data", "buckets", "--buckets"))
    real_sizes: bool = needing(False, SDXL)

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the training images, None for the model's own."""
        return (self.width, self.height) if self.width and self.height else None


@with_bounds
@dataclass(frozen=True)
class OutputSettings:
    """Where everything goes.

    Attributes:
        output: run folder PATH/NAME; the LoRA becomes PATH/NAME/NAME.safetensors.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep: checkpoints to keep; older ones are removed.
        save_every: steps between two LoRAs that are kept in loras/ while training; 0 keeps none.
        log_every: steps between two lines of figures.
        track: programs that show the figures beside our own: tensorboard, wandb.
        estimate: say before the first step how much memory and time training will need; 'auto' does on a
            GPU.
    """

    output: Path | None = None
    checkpoint_every: int = bounded(100, at_least=1)
    keep: int = bounded(2, at_least=1)
    save_every: int = bounded(0, at_least=0)
    log_every: int = bounded(10, at_least=1)
    track: tuple[str, ...] = ()
    estimate: Literal["auto", "on", "off"] = "auto"


@with_bounds
@dataclass(frozen=True)
class SampleSettings:
    """Images drawn before, during and after training, always from the same noise.

    Attributes:
        samples: how many prompts of the preference folder to draw; 0 draws nothing at all.
        sample_prompts: texts to draw instead of the folder's.
        sample_every: steps between drawings while training; 0 draws only before and after.
        sample_steps: denoising steps of a drawing.
        guidance: classifier-free guidance of a drawing.
    """

    samples: int = bounded(4, at_least=0)
    sample_prompts: tuple[str, ...] = needing((), SAMPLES)
    sample_every: int = bounded(0, at_least=0, needs=SAMPLES)
    sample_steps: int = bounded(20, at_least=1, needs=_DRAWN)
    guidance: float = bounded(5.0, at_least=0, needs=_DRAWN)


@dataclass(frozen=True)
class TrainSettings:
    """A whole training run, one section for each concern."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    terms: TermSettings = field(default_factory=TermSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    sampling: SampleSettings = field(default_factory=SampleSettings)


def load_toml(path: Path, defaults: TrainSettings | None = None) -> TrainSettings:
    """Settings from a TOML file, over `defaults`.

    Raises:
        ScdpoError: there is no such file, it is no TOML, or a key or value in it is none of ours; names it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        raise ScdpoError(f"There is no settings file {path}.") from None
    except tomllib.TOMLDecodeError as error:
        what = convert.toml_error(text, error)
        raise ScdpoError(f"The settings file {path} is not valid TOML: {what}.") from error
    except RecursionError as error:
        raise ScdpoError(f"The settings file {path} nests its values too deeply.") from error
    except (OSError, ValueError) as error:  # no UTF-8, or a number of thousands of digits
        raise ScdpoError(f"The settings file {path} cannot be read: {error}.") from error
    return convert.from_dict(defaults or TrainSettings(), tree, source=str(path))


def to_toml(settings: TrainSettings) -> str:
    """TOML text that `load_toml` turns into the same settings. What is not set (None) is left out."""
    import tomli_w

    return tomli_w.dumps(convert.to_dict(settings))


# These say where a run and what it reads lie, how often it reports, what it writes or where it computes,
# never what it learns. What the files of the base model and of LoRAs hold is looked at itself.
_NO_IDENTITY = {
    # How much of a prompt is read is part of the pairs' keys, and so of the data set's hash.
    "model": {
        "base",
        "reference_lora",
        "vae",
        "text_encoders",
        "device",
        "channels_last",
        "compile",
        "gradient_checkpointing",
        "offload_blocks",
        "prompt_chunks",
    },
    "data": {"pairs", "more_pairs", "prompts", "cache", "cache_in", "cost_model"},
    "optim": {"max_train_steps"},
    "lora": {"init_lora", "save_dtype", "save_format"},
    "validation": {"validation_every", "validation_draws", "patience", "result"},
    "output": {key.name for key in dataclasses.fields(OutputSettings)},
    "sampling": {key.name for key in dataclasses.fields(SampleSettings)},
}


def identity(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what the LoRA learns, as plain values by 'section.key'.

    Pairs, cost model and base model are not among them, for what they hold counts and not where they lie;
    nor is the number of steps, so that a run can be made longer.
    """
    return {
        f"{section}.{key}": value
        for section, values in convert.to_dict(settings).items()
        for key, value in values.items()
        if key not in _NO_IDENTITY.get(section, set())
    }


def config_hash(settings: TrainSettings) -> str:
    """12 hexadecimal digits that change with `identity`."""
    return hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()[:12]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two `identity`s, one phrase each: 'optim.lr: 0.1 -> 0.2'.

    The old one may be that of an older version: what counts no longer is passed over, and a setting that it
    did not know was what is the default now.
    """
    defaults = identity(TrainSettings())
    passed = {f"{section}.{key}" for section, keys in _NO_IDENTITY.items() for key in keys}
    old, new = ({k: v for k, v in {**defaults, **each}.items() if k not in passed} for each in (old, new))
    return [
        f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
