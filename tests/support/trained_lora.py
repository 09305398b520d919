"""A LoRA in a tiny UNet with weights as if it had been trained, and its file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from scdpo_core.lora.adapter import LoraAdapter, attach
from scdpo_core.lora.file import save_lora
from scdpo_core.lora.formats.keys import Dialect, key, place, split
from scdpo_core.types import LoraFile
from tests.support.tiny import LATENT_CHANNELS, WIDTH, tiny_unet

FACTS = {
    "objective": "sc_dpo",
    "cost_model_hash": "0123456789ab",
    "evaluation": {"harmful_rate": 0.05, "benign_accuracy": 0.9},
    "ss_learning_rate": "0.001",
}


def unet_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return tiny_unet().eval()


def answer(unet: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(2, LATENT_CHANNELS, 8, 8, generator=generator)
    prompt = torch.randn(2, 3, WIDTH, generator=generator)
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 700]), prompt).sample


def trained(unet: nn.Module, targets: str = "attention", rank: int = 4, alpha: float = 2.0) -> LoraAdapter:
    adapter = attach(unet, rank=rank, alpha=alpha, targets=targets, seed=1)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in adapter.parameters():
            # Rounded to float16, so that a float16 file loses nothing.
            weight.copy_((0.2 * torch.randn(weight.shape, generator=generator)).half())
    return adapter


def spoken(name: str, dialect: Dialect, family: str = "sd1") -> str:
    """The key of one weight in a dialect, where its module is not fused with others."""
    module, part = split(name)
    stem, members = place(module, dialect, family)
    assert members == (module,)
    return key(stem, part, dialect)


def to_kohya(name: str) -> str:
    return spoken(name, "kohya")


def to_peft(name: str) -> str:
    return spoken(name, "peft")


def save(path: Path, adapter: LoraAdapter, **changes: object) -> LoraFile:
    options = {"family": "sd1", "rank": adapter.rank, "alpha": adapter.alpha, "facts": FACTS, **changes}
    return save_lora(path, adapter.state(), **options)  # type: ignore[arg-type]
