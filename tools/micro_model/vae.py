"""The autoencoder of the embedded world: 64x64 images to 8x8 latents with 16 channels."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from scdpo_core.micro.judge import to_tensor
from scdpo_core.micro.world import random_scene

from .art import STYLES_TRAINED, Art
from .render import render
from .training_loop import Plan, StepContext, Tell, train

LATENT_CHANNELS = 16
BATCH = 16


def build(
    art: Art, folder: Path, device: torch.device, tell: Tell, *, steps: int, seed: int
) -> AutoencoderKL:
    """Train the autoencoder; its `scaling_factor` makes the generator's latents have unit spread."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # One group, and a small rate: with two channels a group the norms wipe out the colours of small
        # things, and at 2e-3 the decoder never finds them.
        norm_num_groups=1,
        sample_size=64,
        mid_block_add_attention=False,
    )

    def loss(context: StepContext) -> torch.Tensor:
        images = []
        for _ in range(BATCH):
            # Half in the generator's style: that is what latents will be asked to hold.
            style = "noto" if context.rng.random() < 0.5 else context.rng.choice(STYLES_TRAINED)
            try:
                images.append(render(random_scene(context.rng, two=0.4), art, context.rng, style))
            except LookupError:
                continue
        pixels = to_tensor(images).to(context.device)
        with context.autocast():
            latents = vae.encode(pixels).latent_dist.mean.float()
            noise = torch.randn(latents.shape, generator=context.generator).to(context.device)
            # A little noise on the latents keeps their neighbourhood decodable, so that the small
            # errors of a diffusion sampler do not show.
            decoded = vae.decode(latents + 0.1 * noise).sample.float()
        sharp = sum(F.l1_loss(decoded.diff(dim=axis), pixels.diff(dim=axis)) for axis in (2, 3))
        spread = latents.pow(2).mean()
        far = F.mse_loss(decoded, pixels) + 0.1 * F.l1_loss(decoded, pixels)
        total: torch.Tensor = far + 0.1 * sharp + 1e-4 * spread
        return total

    trained = train(Plan("vae", steps, lr=5e-4, ema=0.998, seed=seed), vae, loss, folder, device, tell)
    assert isinstance(trained, AutoencoderKL)
    rng = random.Random(f"{seed}/scale")
    sample = to_tensor([render(random_scene(rng), art, rng, "noto") for _ in range(256)]).to(device)
    with torch.no_grad():
        std = float(trained.encode(sample).latent_dist.mean.std())
    trained.register_to_config(scaling_factor=1.0 / std)
    return trained
