"""The denoiser of the embedded world, on cached latents and cached text states."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from scdpo_core.io.files import read_tensors, write_tensors
from scdpo_core.micro.judge import to_tensor
from scdpo_core.micro.world import Concept, Scene, concepts, random_scene, varied_caption

from .art import Art
from .render import render
from .towers import WIDTH, Towers, tokenize
from .training_loop import Plan, StepContext, Tell, autocast, train
from .vae import LATENT_CHANNELS

BATCH = 128
CAPTIONS_PER_IMAGE = 3


def scheduler() -> DDIMScheduler:
    """v-prediction on the squared-cosine schedule, which a toy world learns many times faster than
    noise prediction on Stable Diffusion's own."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )


@dataclass(frozen=True)
class Dataset:
    """latents [N, C, 8, 8] float16, scaled; ids [N, CAPTIONS_PER_IMAGE] rows of `states`;
    states [M, T, D] float16, one for each different caption; row 0 is the empty caption."""

    latents: torch.Tensor
    ids: torch.Tensor
    states: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """latents and noise [N, C, 8, 8]; states [N, T, D]; all float32 on the CPU."""

    latents: torch.Tensor
    noise: torch.Tensor
    states: torch.Tensor


def sample_batch(data: Dataset, size: int, generator: torch.Generator) -> Batch:
    """Draw random rows, one of each row's captions (the empty one a tenth of the time), and noise."""
    rows = torch.randint(len(data.latents), (size,), generator=generator)
    indices = torch.randint(CAPTIONS_PER_IMAGE, (size, 1), generator=generator)
    texts = data.ids[rows].gather(1, indices).squeeze(1)
    texts[torch.rand(size, generator=generator) < 0.1] = 0
    latents = data.latents[rows].float()
    noise = torch.randn(latents.shape, generator=generator)
    return Batch(latents, noise, data.states[texts].float())


def render_dataset(
    art: Art,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModel,
    folder: Path,
    device: torch.device,
    tell: Tell,
    size: int,
    plan: Plan,
) -> Dataset:
    """Render random scenes in the Noto style and encode them and their captions, or read them again.

    Args:
        art: the sprites; only Noto's are needed.
        vae: encodes the images.
        tokenizer: of the text tower.
        text: the text tower.
        folder: where the encoded images are kept, in a file named after the plan, the size and the seed.
        device: to encode on.
        tell: gets a line about progress now and then.
        size: number of images.
        plan: of the part that they are for.
    """
    path = folder / f"{plan.name}-data-{size}-{plan.seed}.safetensors"
    if path.exists():
        tensors, _ = read_tensors(path)
        return Dataset(tensors["latents"], tensors["ids"], tensors["states"])
    rng = random.Random(f"{plan.seed}/data")
    captions: dict[str, int] = {"": 0}
    latents, ids = [], []
    vae.to(device)
    # Every concept as often as every other, and about twice as often alone as in company.
    order: list[Concept] = []
    for first in range(0, size, 256):
        scenes: list[Scene] = []
        for _ in range(min(256, size - first)):
            if not order:
                order = rng.sample(concepts(), len(concepts()))
            scene = random_scene(rng, two=0.35, empty=0.02)
            if len(scene.subjects) == 1:
                scene = Scene((order.pop(),), scene.background)
            scenes.append(scene)
        pixels = to_tensor([render(scene, art, rng, "noto") for scene in scenes]).to(device)
        with torch.no_grad(), autocast(device):
            encoded = vae.encode(pixels).latent_dist.mean
        latents.append((encoded * vae.config.scaling_factor).half().cpu())
        for scene in scenes:
            rows = [varied_caption(scene, rng) for _ in range(CAPTIONS_PER_IMAGE)]
            ids.append([captions.setdefault(row, len(captions)) for row in rows])
        if first % 4096 == 0:
            tell(f"{plan.name}: encoded {first}/{size} images")
    texts, states = list(captions), []
    text.to(device)
    for first in range(0, len(texts), 512):
        tokens = tokenize(tokenizer, texts[first : first + 512]).to(device)
        with torch.no_grad():
            states.append(text(input_ids=tokens).last_hidden_state.half().cpu())
    data = Dataset(torch.cat(latents), torch.tensor(ids), torch.cat(states))
    write_tensors(path, {"latents": data.latents, "ids": data.ids, "states": data.states}, {})
    return data


def build(
    art: Art,
    vae: AutoencoderKL,
    towers: Towers,
    folder: Path,
    device: torch.device,
    tell: Tell,
    *,
    steps: int,
    images: int,
    seed: int,
) -> UNet2DConditionModel:
    """Train the denoiser on `images` renderings in the Noto style; captions are dropped one time in ten."""
    torch.manual_seed(seed)
    network = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        norm_num_groups=16,
    )
    plan = Plan("unet", steps, lr=1e-3, ema=0.9985, seed=seed)
    data = render_dataset(art, vae, towers.tokenizer, towers.text, folder, device, tell, images, plan)
    return _fit(network, plan, data, folder, device, tell)


def settle(
    network: UNet2DConditionModel,
    art: Art,
    vae: AutoencoderKL,
    towers: Towers,
    folder: Path,
    device: torch.device,
    tell: Tell,
    *,
    steps: int,
    images: int,
    seed: int,
) -> UNet2DConditionModel:
    """Train a copy of the denoiser on, on other renderings, until it is used to another text tower."""
    settled = copy.deepcopy(network).requires_grad_(True)
    plan = Plan("unet-settled", steps, lr=3e-4, ema=0.99, seed=seed)
    data = render_dataset(art, vae, towers.tokenizer, towers.text, folder, device, tell, images, plan)
    return _fit(settled, plan, data, folder, device, tell)


def _fit(
    network: UNet2DConditionModel, plan: Plan, data: Dataset, folder: Path, device: torch.device, tell: Tell
) -> UNet2DConditionModel:
    noising = scheduler()
    total = noising.config.num_train_timesteps

    def loss(context: StepContext) -> torch.Tensor:
        batch = sample_batch(data, BATCH, context.generator)
        timesteps = torch.randint(total, (BATCH,), generator=context.generator)
        noisy = noising.add_noise(batch.latents, batch.noise, timesteps).to(context.device)
        target = noising.get_velocity(batch.latents, batch.noise, timesteps).to(context.device)
        # In full precision: at this size a processor spends more time on changing formats than it saves.
        predicted = network(noisy, timesteps.to(context.device), batch.states.to(context.device)).sample
        error: torch.Tensor = (predicted - target).pow(2).mean()
        return error

    trained = train(plan, network, loss, folder, device, tell, checkpoint_every=250)
    assert isinstance(trained, UNet2DConditionModel)
    return trained
