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

from . import sections
from .config_learning import LoraSettings, OptimSettings, ValidationSettings
from .types import ScdpoError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ObjectiveName = Literal[
    "sc_dpo", "winner_only", "diffusion_dpo", "safetydpo", "duo", "safedpo", "mapo", "diffusion_kto"
]

DEFAULT_BETAS: Mapping[ObjectiveName, float] = {
    "sc_dpo": 2000.0,
    "winner_only": 2000.0,
    "diffusion_dpo": 5000.0,
    "safetydpo": 5000.0,
    "duo": 500.0,
    "safedpo": 5000.0,
    "mapo": 0.1,
    "diffusion_kto": 1000.0,
}
"""The beta of each objective when none is given; they do not mean the same thing in all of them."""


@dataclass(frozen=True)
class ModelSettings:
    """The model that the LoRA is for.

    Attributes:
        base: 'micro' (the embedded model), a diffusers model folder, a .safetensors checkpoint, or the name
            of a model on the hub (owner/name).
        family: architecture of the base model: sd1, sd2, sdxl, sd3 or flux; 'auto' looks at its files.
        prediction: what a diffusion model predicts; 'auto' believes its own files.
        zero_snr: whether the noise schedule ends in pure noise; 'auto' believes the model's own files.
        vae: a VAE (.safetensors file or folder) instead of the model's own.
        text_encoders: folder with the text encoders that the base lacks, and with T5's tokenizer.
        t5_tokens: length of T5's prompts; 0 is the family's own (256 for SD 3, 512 for FLUX.1).
        guidance_embedding: that FLUX.1 dev is told while training, policy and reference alike.
        precision: number format of the frozen model; the LoRA itself always trains in float32.
            'auto' takes bf16 or fp16 on a GPU, fp32 on a CPU.
        device: 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' ...
        gradient_checkpointing: spend a third more time to need much less GPU memory.
        quantize: keep the frozen model's matrices in 8 or 4 bits; the arithmetic stays in `precision`.
        vae_tiling: encode and draw large pictures in overlapping tiles, for GPUs of little memory.
        channels_last: order in memory that 16-bit convolutions of a GPU like; 'auto' takes it for them.
        compile: let torch.compile make the denoiser faster after a start of some minutes: its repeated
            'blocks', or the 'whole' of it.
    """

    base: str = "micro"
    family: str = "auto"
    prediction: Literal["auto", "epsilon", "v_prediction"] = "auto"
    zero_snr: Literal["auto", "on", "off"] = "auto"
    vae: Path | None = None
    text_encoders: Path | None = None
    t5_tokens: int = 0
    guidance_embedding: float = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    quantize: Literal["off", "int8", "fp8", "nf4"] = "off"
    vae_tiling: bool = False
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: Literal["off", "blocks", "whole"] = "off"


@dataclass(frozen=True)
class DataSettings:
    """The preference pairs, and how the safety cost changes their labels.

    Attributes:
        pairs: preference folder with chosen/ and rejected/ pictures and .txt prompts.
        width: of the training pictures in pixels; 0 takes the model's own size.
        height: of the training pictures in pixels; 0 takes the model's own size.
        cost_model: scores every picture before training: 'micro', a cost model file, or 'none'.
        safety_weight: lambda of the combined reward R = r - lambda * max(cost, 0).
        tie: pairs whose combined rewards differ by less are dropped.
        both_unsafe: what to do with a pair of two harmful pictures: leave it out, or order it by cost.
        soft_tau: temperature of soft labels; not given, labels are hard.
        benign_share: share of pairs under benign prompts in a batch; not given, as in the folder.
        cache: folder of encoded pictures, which runs may share; not given, inside the run folder.
        cache_in: 'disk' keeps encoded pictures for other runs, 'ram' forgets them with the process.
        buckets: train every pair at the size nearest to its pictures' shape, width and height deciding how
            many pixels there are; off, everything is cropped to one size.
        bucket_step: widths and heights of buckets are multiples of this many pixels.
        real_sizes: tell SDXL how large the chosen picture was and where it was cropped, instead of an
            uncropped picture of the training size.
    """

    pairs: Path | None = None
    width: int = 0
    height: int = 0
    cost_model: str = "none"
    safety_weight: float = 1.0
    tie: float = 0.1
    both_unsafe: Literal["drop", "order"] = "drop"
    soft_tau: float | None = None
    benign_share: float | None = None
    cache: Path | None = None
    cache_in: Literal["disk", "ram"] = "disk"
    buckets: bool = False
    bucket_step: int = 64
    real_sizes: bool = False

    @property
    def size(self) -> tuple[int, int] | None:
        """(width, height) of the training pictures, None for the model's own."""
        return (self.width, self.height) if self.width and self.height else None


@dataclass(frozen=True)
class ObjectiveSettings:
    """What is minimised. The method's formulas and their sources are in `scdpo_core.objectives`.

    Attributes:
        objective: SC-DPO, one of its controls, or a peer's loss for comparison.
        beta: strength of the preference term; not given, the objective's usual one.
        winner: weight of the anchor on the chosen pictures, as a share of beta; 0 switches it off.
        margin: kappa: how far the policy must prefer the safer picture; 0 off, 1 robust.
        weighting: 'native' takes the error of what the network predicts, 'exact' of the noise it implies;
            'min_snr' is exact, held down where there is little noise.
        min_snr_gamma: signal-to-noise ratio from which 'min_snr' holds down; smaller holds down more.
        timesteps: how they are drawn; 'auto' is uniform for diffusion and logit-normal for flows.
        timestep_mean: of the logit-normal law's logit; above 0 trains the noisy steps more. A schedule
            shifted by s is ln s.
        timestep_std: of the logit-normal law's logit.
        timestep_min: least noise that is trained, as a share of the schedule.
        timestep_max: most noise that is trained, as a share of the schedule.
        dfm_gamma: how much training focuses on difficult pairs; 0 switches the focus off.
        dfm_by_time: compare a pair's difficulty with what is usual at its timestep.
        dfm_warmup: share of the steps without focus.
        focal_gamma: exponent of the plain focal loss instead of the log loss; 0 off.
        loser_mu: how strictly the loser's gradient may not harm the winner, 0..1; not given, it may.
        prior_weight: DUO's weight, as a share of beta, of keeping the network's answer to pure noise.
        reference_draws: timesteps and noises that each pair gets for the whole run; what the base model makes
            of them is computed once, before training. 0 draws new ones in every step.
    """

    objective: ObjectiveName = "sc_dpo"
    beta: float | None = None
    winner: float = 0.05
    margin: float = 0.0
    weighting: Literal["native", "exact", "min_snr"] = "native"
    min_snr_gamma: float = 5.0
    timesteps: Literal["auto", "uniform", "logit_normal"] = "auto"
    timestep_mean: float = 0.0
    timestep_std: float = 1.0
    timestep_min: float = 0.0
    timestep_max: float = 1.0
    dfm_gamma: float = 1.0
    dfm_by_time: bool = True
    dfm_warmup: float = 0.1
    focal_gamma: float = 0.0
    loser_mu: float | None = None
    prior_weight: float = 1e4
    reference_draws: int = 0

    @property
    def effective_beta(self) -> float:
        """`beta`, or the objective's usual one."""
        return DEFAULT_BETAS[self.objective] if self.beta is None else self.beta


@dataclass(frozen=True)
class OutputSettings:
    """Where everything goes.

    Attributes:
        output: run folder PATH/NAME; the LoRA becomes PATH/NAME/NAME.safetensors.
        checkpoint_every: steps between checkpoints; one is always written at the end.
        keep: checkpoints to keep; older ones are removed.
        log_every: steps between two lines of figures.
        track: programs that show the figures beside our own: tensorboard, wandb.
        estimate: say before the first step how much memory and time training will need; 'auto' does on a
            GPU.
    """

    output: Path | None = None
    checkpoint_every: int = 100
    keep: int = 2
    log_every: int = 10
    track: tuple[str, ...] = ()
    estimate: Literal["auto", "on", "off"] = "auto"


@dataclass(frozen=True)
class SampleSettings:
    """Pictures drawn before, during and after training, always from the same noise.

    Attributes:
        samples: how many prompts of the preference folder to draw; 0 draws nothing at all.
        sample_prompts: texts to draw instead of the folder's.
        sample_every: steps between drawings while training; 0 draws only before and after.
        sample_steps: denoising steps of a drawing.
        guidance: classifier-free guidance of a drawing.
    """

    samples: int = 4
    sample_prompts: tuple[str, ...] = ()
    sample_every: int = 0
    sample_steps: int = 20
    guidance: float = 5.0


@dataclass(frozen=True)
class TrainSettings:
    """A whole training run, one section for each concern."""

    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
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
        tree = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ScdpoError(f"There is no settings file {path}.") from None
    except tomllib.TOMLDecodeError as error:
        raise ScdpoError(f"The settings file {path} is not valid TOML: {error}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ScdpoError(f"The settings file {path} cannot be read: {error}.") from error
    return sections.from_dict(defaults or TrainSettings(), tree, source=str(path))


def to_toml(settings: TrainSettings) -> str:
    """TOML text that `load_toml` turns into the same settings. What is not set (None) is left out."""
    import tomli_w

    return tomli_w.dumps(sections.to_dict(settings))


# These say where a run lives, how often it reports or where it computes, never what it learns.
_NO_IDENTITY = {
    "model": {"device", "channels_last", "compile", "gradient_checkpointing"},
    "data": {"pairs", "cache", "cache_in", "cost_model"},
    "optim": {"max_train_steps"},
    "output": {key.name for key in dataclasses.fields(OutputSettings)},
    "sampling": {key.name for key in dataclasses.fields(SampleSettings)},
}


def identity(settings: TrainSettings) -> dict[str, Any]:
    """The settings that decide what the LoRA learns, as plain values by 'section.key'.

    Pairs and cost model are not among them, for what they hold counts and not where they lie; nor is
    the number of steps, so that a run can be made longer.
    """
    return {
        f"{section}.{key}": value
        for section, values in sections.to_dict(settings).items()
        for key, value in values.items()
        if key not in _NO_IDENTITY.get(section, set())
    }


def config_hash(settings: TrainSettings) -> str:
    """12 hexadecimal digits that change with `identity`."""
    return hashlib.sha256(json.dumps(identity(settings), sort_keys=True).encode()).hexdigest()[:12]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two `identity`s, one phrase each: 'optim.lr: 0.1 -> 0.2'."""
    return [
        f"{key}: {old.get(key, 'not set')} -> {new.get(key, 'not set')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
