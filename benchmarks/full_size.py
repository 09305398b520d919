"""Training steps of a model in its full size, with coded random weights and blocks in main memory:

    python benchmarks/full_size.py --family flux --quantize nf4 --size 64 --steps 2

Every matrix has the size that it has in the real model, and is made in its 4 or 8 bits at once, so that the
full-size weights never exist. Blocks of one kind have the same random codes. Text encoders are left out: the
words are random numbers of their widths. What is run is our trainer's own step, of SC-DPO, with gradient
checkpointing and every block waiting in main memory (`--blocks` for another number). It prints what the
process held at most, the seconds of each step, and whether the LoRA moved.
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from benchmarks.memory import FAMILIES, Blank  # noqa: E402
from benchmarks.step_variants import BETA, Pairs, ours  # noqa: E402
from scdpo_core.config.settings import (  # noqa: E402
    LoraSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimSettings,
    TrainSettings,
)
from scdpo_core.families.base import LoadOptions  # noqa: E402
from scdpo_core.families.block_offload import blocks_of, offload_of  # noqa: E402
from scdpo_core.families.component_layout import ComponentLayout  # noqa: E402
from scdpo_core.families.latent_model import LatentModel  # noqa: E402
from scdpo_core.families.quantization import Quantize, QuantizedLinear  # noqa: E402
from scdpo_core.training.adapters import attach_lora  # noqa: E402
from scdpo_core.training.checks import resolve_device  # noqa: E402
from scdpo_core.types import Conditioning  # noqa: E402


class CodedReader(Blank):
    """A family's components: the denoiser in full size with random coded matrices; see `Blank`."""

    def __init__(self, layout: ComponentLayout, kind: Quantize) -> None:
        """Make matrices of that code."""
        super().__init__(layout, FakeTensorMode())
        self._kind = kind

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """See `Reader.denoiser`."""
        import diffusers

        cls = getattr(diffusers, self._layout.denoiser_class)
        with torch.device("meta"):
            network: Any = cls.from_config(cls.load_config(str(self._configs / self._layout.denoiser)))
        generator = torch.Generator().manual_seed(0)
        coded: dict[tuple[int, int, bool], QuantizedLinear] = {}
        for block in blocks_of(network):
            for name, layer in list(block.named_modules()):
                if type(layer) is nn.Linear:
                    shape = (layer.in_features, layer.out_features, layer.bias is not None)
                    if shape not in coded:
                        coded[shape] = _coded(*shape, self._kind, generator)
                    parent, _, own = name.rpartition(".")
                    setattr(block.get_submodule(parent), own, copy.deepcopy(coded[shape]))
        for module in network.modules():
            _fill(module, dtype, generator)
        return network  # type: ignore[no-any-return]


def _coded(
    inputs: int, outputs: int, bias: bool, kind: Quantize, generator: torch.Generator
) -> QuantizedLinear:
    layer = nn.Linear(inputs, outputs, bias)
    with torch.no_grad():
        layer.weight.normal_(0, 0.5 * inputs**-0.5, generator=generator)
        if bias:
            layer.bias.zero_()
    return QuantizedLinear(layer.requires_grad_(False), kind)


def _fill(module: nn.Module, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Give a module's own weights contents, where they have none yet."""
    for name, weight in list(module._parameters.items()):
        if weight is not None and weight.is_meta:
            made = torch.empty(weight.shape, dtype=dtype)
            if weight.ndim > 1:
                made.normal_(0, 0.5 * weight[0].numel() ** -0.5, generator=generator)
            else:
                made.fill_(0.0 if name == "bias" else 1.0)
            module._parameters[name] = nn.Parameter(made, requires_grad=False)
    for name, buffer in list(module._buffers.items()):
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def without_texts(kind: type[LatentModel], tokens: int, width: int, pooled: int) -> type[LatentModel]:
    """Make the class of a family's models with random words in the place of text encoders."""

    class Wordless(kind):  # type: ignore[misc, valid-type]
        def encode_prompts(self, prompts: list[str]) -> Conditioning:
            generator = torch.Generator().manual_seed(len(prompts))

            def made(*shape: int) -> Tensor:
                return torch.randn((len(prompts), *shape), generator=generator).to(self.device)

            return Conditioning(made(tokens, width), made(pooled) if pooled else None)

    return Wordless


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the model, take the steps, print what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=list(FAMILIES), default="flux")
    parser.add_argument("--quantize", choices=["int8", "nf4"], default="nf4")
    parser.add_argument("--blocks", type=int, default=10**6, help="that wait in main memory (default: all)")
    parser.add_argument("--size", type=int, default=64, help="pixels along an edge")
    parser.add_argument("--tokens", type=int, default=16, help="of the prompt")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    device = resolve_device(options.device)
    kind, layout, _, width, pooled = FAMILIES[options.family]
    reader = CodedReader(layout, options.quantize)
    began = time.monotonic()
    load = LoadOptions(quantize=options.quantize, offload_blocks=options.blocks)
    made = without_texts(kind, options.tokens, width, pooled)
    model = made("random", ROOT, reader, layout, device, torch.bfloat16, load)
    settings = TrainSettings(
        model=ModelSettings(gradient_checkpointing=True, offload_blocks=options.blocks),
        objective=ObjectiveSettings("sc_dpo", beta=BETA),
        optim=OptimSettings(batch_size=1, accumulation=1, max_train_steps=options.steps),
        lora=LoraSettings(rank=16),
    )
    adapter = attach_lora(model, settings.lora, seed=0)
    model.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]
    shape = model.latent_shape((options.size, options.size))
    latents = torch.randn((1, 2, *shape), generator=torch.Generator().manual_seed(0)).to(device)
    pairs = Pairs(latents, model.encode_prompts(["a thing"]), torch.empty(0), ["a thing"])
    offload = offload_of(model.denoiser)
    waiting = "" if offload is None else f", {offload.count} of {offload.total} blocks wait in main memory"
    print(
        f"{options.family} in {options.quantize}: made in {time.monotonic() - began:.0f} s{waiting}",
        flush=True,
    )
    before = [weight.detach().clone() for weight in adapter.parameters()]
    with tempfile.TemporaryDirectory(prefix="scdpo-full-size-") as work:
        variant = ours(model, adapter, pairs, settings, Path(work))
        model.release_encoders()
        for number in range(options.steps):
            began = time.monotonic()
            variant.step()
            print(f"step {number + 1}: {time.monotonic() - began:.1f} s", flush=True)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, adapter.parameters(), strict=True))
    finite = all(bool(weight.isfinite().all()) for weight in adapter.parameters())
    # Kilobytes on Linux.
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{moved} of {len(before)} weights moved, {'all' if finite else 'NOT all'} are finite numbers")
    print(f"the process held at most {held:.1f} GiB")
    if device.type == "cuda":
        print(f"the device held at most {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
