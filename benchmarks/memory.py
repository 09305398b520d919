"""What training needs in memory and work, by family and saving: `python benchmarks/memory.py [--json FILE]`.

Networks of full size and no weights: a step is run on torch's fake tensors, and what would be alive at once
is added up (`scdpo_core.training.memory`, which tests compare with real steps of small networks). No GPU is
needed and none is measured, but norms are computed in 32 bits, as CUDA's autocast does and a CPU's does not.
CUDA's libraries take about 0.5 GiB more. A second table has what encoding a pair needs before the first step,
with and without VAE tiling, at the model's own size and at twice that. 'offload' lets all blocks wait in
main memory, which is the least that `--offload-blocks auto` needs. `--work` counts a step's floating point
operations too, attention included: two passes without the LoRA, two with it and their way back.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from peft import inject_adapter_in_model  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from scdpo_core.config.settings import LoraSettings, OptimSettings, TrainSettings  # noqa: E402
from scdpo_core.families import (  # noqa: E402
    LoadOptions,
    chroma,
    flux,
    flux2,
    qwen_image,
    sd1,
    sd2,
    sd3,
    sdxl,
    z_image,
)
from scdpo_core.families.block_offload import blocks_of, bytes_saved  # noqa: E402
from scdpo_core.families.component_layout import ComponentLayout  # noqa: E402
from scdpo_core.families.components import Reader, read_config  # noqa: E402
from scdpo_core.families.latent_model import LatentModel  # noqa: E402
from scdpo_core.families.text_encoders import CONFIGS  # noqa: E402
from scdpo_core.io.files import write_json  # noqa: E402
from scdpo_core.lora.adapter import LoraAdapter  # noqa: E402
from scdpo_core.lora.algorithms import ADAPTER, peft_config  # noqa: E402
from scdpo_core.lora.targets import target_modules  # noqa: E402
from scdpo_core.training.memory import Alive, memory_of  # noqa: E402
from scdpo_core.training.reference import NoiseSample, pair_residuals  # noqa: E402
from scdpo_core.types import Conditioning, PairBatch  # noqa: E402

RANK = 16
# Model, layout, tokens and width of its words, width of the pooled state.
FAMILIES: dict[str, tuple[type[LatentModel], ComponentLayout, int, int, int]] = {
    "sd1": (sd1.SD1Model, sd1.LAYOUT, 77, 768, 0),
    "sd2": (sd2.SD2Model, sd2.LAYOUT, 77, 1024, 0),
    "sdxl": (sdxl.SDXLModel, sdxl.LAYOUT, 77, 2048, 1280),
    "sd3": (sd3.SD3Model, sd3.LAYOUT, 77 + 256, 4096, 2048),
    "flux": (flux.FluxModel, flux.LAYOUT, 512, 4096, 768),
    "flux2": (flux2.Flux2Model, flux2.LAYOUT, 512, 7680, 0),
    "qwen_image": (qwen_image.QwenImageModel, qwen_image.LAYOUT, 1024, 3584, 0),
    "z_image": (z_image.ZImageModel, z_image.LAYOUT, 512, 2560, 0),
    "chroma": (chroma.ChromaModel, chroma.LAYOUT, 512, 4096, 0),
}
SAVINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"checkpointing": True},
    "checkpointing, int8": {"checkpointing": True, "quantize": "int8"},
    "checkpointing, fp8": {"checkpointing": True, "quantize": "fp8"},
    "checkpointing, nf4": {"checkpointing": True, "quantize": "nf4"},
    "checkpointing, offload": {"checkpointing": True, "offload": True},
    "checkpointing, int8, offload": {"checkpointing": True, "quantize": "int8", "offload": True},
    "checkpointing, nf4, offload": {"checkpointing": True, "quantize": "nf4", "offload": True},
    "checkpointing, adamw8bit": {"checkpointing": True, "optimizer": "adamw8bit"},
    "checkpointing, adafactor": {"checkpointing": True, "optimizer": "adafactor"},
}


@dataclass(frozen=True)
class Row:
    """GiB of a family with a saving: frozen weights, the LoRA with its optimiser, one step, all of it; and
    the work of a step, 10^12 operations, if it was counted."""

    family: str
    size: int
    pairs: int
    saving: str
    weights: float
    lora: float
    step: float
    total: float
    work: float | None


@dataclass(frozen=True)
class Encoding:
    """GiB of the VAE and of encoding a pair's two images with it, in 32 bits."""

    family: str
    size: int
    tiling: bool
    weights: float
    peak: float
    total: float


class Blank(Reader):
    """A family's components: the denoiser in full size without memory, the VAE at random, no texts."""

    def __init__(self, layout: ComponentLayout, mode: FakeTensorMode) -> None:
        self._layout, self._mode, self._configs = layout, mode, CONFIGS / layout.configs

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """See `Reader.denoiser`."""
        import diffusers

        cls = getattr(diffusers, self._layout.denoiser_class)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        with self._mode:
            network: Any = cls.from_config(cls.load_config(str(self._configs / self._layout.denoiser)))
        torch.set_default_dtype(usual)
        return cast(nn.Module, network)

    def vae(self) -> Any:
        """See `Reader.vae`."""
        import diffusers

        cls = getattr(diffusers, self._layout.vae_class)
        return cls.from_config(cls.load_config(str(self._configs / "vae")))

    def text(self, *_: object) -> None:
        """See `Reader.text`."""

    def scheduler(self) -> dict[str, Any]:
        """See `Reader.scheduler`."""
        return read_config(self._configs / "scheduler" / "scheduler_config.json")

    def spread(self, name: str) -> float | None:
        """See `Reader.spread`."""
        return None


def fake_lora(network: nn.Module) -> LoraAdapter:
    """A LoRA on the attention, as `attach` makes it, in a network without memory."""
    names = target_modules(network, "attention")
    config = peft_config("lora", dict.fromkeys(names, RANK), dict.fromkeys(names, float(RANK)), 0.0)
    network.requires_grad_(False)
    inject_adapter_in_model(config, network, ADAPTER, low_cpu_mem_usage=False)
    return LoraAdapter({name: network.get_submodule(name) for name in names}, RANK)


def blank_model(family: str, mode: FakeTensorMode, options: LoadOptions) -> LatentModel:
    """A family's model in bf16, in full size and without memory."""
    kind, layout, *_ = FAMILIES[family]
    # What has no memory cannot be moved, and need not be.
    with patch.object(nn.Module, "to", lambda module, *_, **__: module):
        device = torch.device("cpu")
        return kind(family, ROOT, Blank(layout, mode), layout, device, torch.bfloat16, options)


def encoded(family: str, times: int, tiling: bool) -> Encoding:
    """What a pair's images need on their way into the cache, at a multiple of the model's own size."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = blank_model(family, mode, LoadOptions(vae_tiling=tiling))
    width, height = (times * side for side in model.default_size)
    with mode, Alive() as alive:
        model.encode_images(torch.empty(2, 3, height, width))
    vae = Blank(FAMILIES[family][1], mode).vae()
    weights = sum(weight.numel() * weight.element_size() for weight in vae.parameters())
    parts = [round(part / 2**30, 2) for part in (weights, alive.peak, weights + alive.peak)]
    return Encoding(family, width, tiling, *parts)


def needed(family: str, saving: str, pairs: int, count: bool = False) -> Row:
    """What that many pairs at a time need in bf16 at the model's own size."""
    _, _, tokens, width, pooled = FAMILIES[family]
    own = SAVINGS[saving]
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    model = blank_model(family, mode, LoadOptions(quantize=own.get("quantize", "off")))
    with mode, patch.object(nn.Module, "to", lambda module, *_, **__: module):
        adapter = fake_lora(model.denoiser)
    with mode:
        if own.get("checkpointing"):
            model.enable_gradient_checkpointing()
        words = Conditioning(
            torch.empty(pairs, tokens, width), torch.empty(pairs, pooled) if pooled else None
        )
        each = torch.empty(pairs)
        latents = torch.empty(pairs, 2, *model.latent_shape())
        batch = PairBatch(latents, words, each, each, torch.empty(pairs, 2))
    optim = OptimSettings(batch_size=pairs, optimizer=own.get("optimizer", "adamw"))
    settings = TrainSettings(optim=optim, lora=LoraSettings(rank=RANK))
    with norms_as_on_cuda():
        found = memory_of(model, adapter, settings, batch, mode)
    if own.get("offload"):
        saved = bytes_saved(model.denoiser, len(blocks_of(model.denoiser)))
        found = dataclasses.replace(found, weights=found.weights - saved)
    parts = [round(part / 2**30, 2) for part in (found.weights, found.lora, found.step, found.total)]
    done = round(work_of(model, adapter, batch, mode), 2) if count else None
    return Row(family, model.default_size[0], pairs, saving, *parts, done)


@contextmanager
def norms_as_on_cuda() -> Iterator[None]:
    """CUDA's autocast computes group and layer norms in 32 bits and hands that on; a CPU's stays in 16.

    On an H200 this is the difference between what a step was said to take and what it took.
    """

    def widened(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def in_32_bits(values: Tensor, *others: Any, **named: Any) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                wide = [part.float() if isinstance(part, Tensor) else part for part in (values, *others)]
                return norm(*wide, **named)

        return in_32_bits

    with (
        patch.object(functional, "group_norm", widened(functional.group_norm)),
        patch.object(functional, "layer_norm", widened(functional.layer_norm)),
    ):
        yield


def work_of(model: LatentModel, adapter: LoraAdapter, batch: PairBatch, mode: FakeTensorMode) -> float:
    """Floating point operations of a step, 10^12."""
    pairs = len(batch.latents)
    model.denoiser.train()
    # Only in this way of computing it is attention made of parts that are counted.
    with mode, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        known = dataclasses.replace(batch.conditioning, sizes=torch.empty(pairs, 6))
        times = torch.empty(pairs, dtype=torch.float32 if model.prediction == "flow" else torch.int64)
        noise_sample = NoiseSample(model.timesteps.last(times), torch.empty(pairs, *batch.latents.shape[2:]))
        with torch.autocast("cpu", torch.bfloat16):
            one = dataclasses.replace(batch, conditioning=known)
            loss = pair_residuals(model, adapter, one, noise_sample, "exact").errors().policy.sum()
        torch.autograd.grad(loss, adapter.parameters(), allow_unused=True)
    return float(counter.get_total_flops()) / 1e12


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, and write them if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--savings", nargs="*", default=list(SAVINGS), choices=list(SAVINGS))
    parser.add_argument("--pairs", type=int, default=1, help="in a step; each is two images")
    parser.add_argument("--work", action="store_true", help="count operations too, which takes minutes")
    own = parser.parse_args(arguments)
    last = " work, TFLOP |" if own.work else ""
    print(f"| family | size | saving | weights | LoRA | step | together, GiB |{last}")
    print("|---|---|---|---|---|---|---|" + ("---|" if own.work else ""))
    rows = []
    for family in own.families:
        for saving in own.savings:
            row = needed(family, saving, own.pairs, own.work)
            rows.append(row)
            numbers = f"{row.weights:.2f} | {row.lora:.2f} | {row.step:.2f} | **{row.total:.1f}**"
            done = "" if row.work is None else f" {row.work:.2f} |"
            print(f"| {family} | {row.size} | {saving} | {numbers} |{done}", flush=True)
    print(
        "\n| family | size | VAE tiling | VAE | encoding a pair | together, GiB |\n|---|---|---|---|---|---|"
    )
    encodings = [
        encoded(family, times, tiling)
        for family in own.families
        for times in (1, 2)
        for tiling in (False, True)
    ]
    for one in encodings:
        numbers = f"{one.weights:.2f} | {one.peak:.2f} | **{one.total:.1f}**"
        print(f"| {one.family} | {one.size} | {'on' if one.tiling else 'off'} | {numbers} |", flush=True)
    if own.json:
        found = {"steps": [asdict(row) for row in rows], "encoding": [asdict(one) for one in encodings]}
        write_json(own.json, found)


if __name__ == "__main__":
    main()
