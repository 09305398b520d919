"""The kinds of training step that benchmarks/step.py compares, all with one network and one LoRA in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdpo_core.config.settings import ObjectiveSettings, TrainSettings
from scdpo_core.config.terms import TermSettings, term_weights
from scdpo_core.families.latent_model import LatentModel
from scdpo_core.lora.adapter import LoraAdapter
from scdpo_core.preferences.batches import BatchStream
from scdpo_core.preferences.relabel import unscored
from scdpo_core.training.batch_sources import deal
from scdpo_core.training.distributed import SingleProcess
from scdpo_core.training.loop import Trainer
from scdpo_core.training.reference import autocast_for
from scdpo_core.training.term_batches import BaseImages, TermData
from scdpo_core.training.term_data import RunTerms
from scdpo_core.types import CachedPair, Conditioning, PreferencePair

BETA = 2000.0
_HARMFUL = 0.5  # every second pair


@dataclass(frozen=True)
class Variant:
    """A kind of step.

    Attributes:
        step: takes one, from drawing noise to the end of what this kind does.
        resident: bytes that it needs between steps: weights, optimizer, data.
    """

    step: Callable[[], None]
    resident: Callable[[], int]


@dataclass(frozen=True)
class Pairs:
    """Random pairs as a trainer that caches sees them, and as one that does not.

    Attributes:
        latents: [N, 2, C, h, w].
        words: of N prompts.
        pixels: [N, 2, 3, H, W] in -1..1, on the CPU.
        prompts: N texts.
    """

    latents: Tensor
    words: Conditioning
    pixels: Tensor
    prompts: list[str]


def random_pairs(model: LatentModel, size: int, count: int) -> Pairs:
    """`count` pairs of images of that size."""
    generator = torch.Generator().manual_seed(0)
    shape = model.latent_shape((size, size))
    prompts = [f"an image of thing {number} on a table" for number in range(count)]
    return Pairs(
        torch.randn((count, 2, *shape), generator=generator).to(model.device),
        model.encode_prompts(prompts),
        torch.rand((count, 2, 3, size, size), generator=generator) * 2 - 1,
        prompts,
    )


def weight_bytes(*modules: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def floor(model: LatentModel, adapter: LoraAdapter, pairs: Pairs, policy: int, reference: int = 0) -> Variant:
    """The network on noisy images and back again, and nothing else.

    Args:
        model: the base.
        adapter: the LoRA in its denoiser.
        pairs: whose latents and prompts are used.
        policy: images with the LoRA and a gradient.
        reference: images before that without either; not more than `policy`.
    """
    rows = torch.arange(policy, device=model.device) % len(pairs.latents)
    latents = pairs.latents[rows, 0].to(model.dtype)
    words = pairs.words.map(lambda part: part[rows])
    timesteps = torch.full((policy,), 500, device=model.device)
    parameters = adapter.parameters()
    known = words.map(lambda part: part[:reference])

    def step() -> None:
        with autocast_for(model):
            if reference:
                with torch.no_grad(), adapter.disabled():
                    model._predict(latents[:reference], timesteps[:reference], known)
            answer = model._predict(latents, timesteps, words)
        answer.square().mean().backward()
        for weight in parameters:
            weight.grad = None

    return Variant(step, lambda: weight_bytes(model.denoiser))


def ours(
    model: LatentModel, adapter: LoraAdapter, pairs: Pairs, settings: TrainSettings, work: Path
) -> Variant:
    """Our trainer's step, complete; with `settings.objective.reference_draws`, the reference known before.

    Every second pair is benign. `keep_text` has the pairs' latents for images of the base model.
    """
    keys = [f"random {number}" for number in range(len(pairs.prompts))]
    parts = zip(keys, pairs.latents.cpu(), pairs.words.embeddings.cpu(), strict=True)
    pooled = [None] * len(keys) if pairs.words.pooled is None else list(pairs.words.pooled.cpu())
    cached = [
        CachedPair(latents, words, pool, key)
        for (key, latents, words), pool in zip(parts, pooled, strict=True)
    ]
    labelled = unscored(
        [
            PreferencePair(key, text, work, work, "benign" if number % 2 else "weapon")
            for number, (key, text) in enumerate(zip(keys, pairs.prompts, strict=True))
        ]
    )
    optim = settings.optim
    weights = term_weights(settings.objective.objective, settings.terms, benign_prompts=0)
    drawn = BaseImages(pairs.latents[:, 0], pairs.words, tuple(pairs.prompts))
    known = TermData(model.encode_prompts([""]), base_images=drawn, harmful_share=_HARMFUL)
    terms = RunTerms(weights, known if weights else None).source(settings, model, SingleProcess())
    stream = BatchStream(cached, labelled, optim.batch_size, optim.seed, model.device, torch.float32)
    feed = deal(
        settings, model, adapter, stream, keys=keys, network="random", folder=work / "cache",
        team=SingleProcess(), progress=lambda done, total: None, terms=terms,
    )  # fmt: skip
    # The prompts were encoded on the device, from which the denoiser may have gone for that.
    model._bring_denoiser()
    trainer = Trainer(
        model, adapter, feed, settings, work / "checkpoints", emit=lambda event: None, term_weights=weights
    )
    model.denoiser.train()
    data = sum(pair.latents.nbytes + pair.embeddings.nbytes for pair in cached)

    def resident() -> int:
        state = trainer._optimizer.state_dict()["state"].values()
        moments = sum(value.nbytes for own in state for value in own.values() if isinstance(value, Tensor))
        return weight_bytes(model.denoiser) + moments + data

    return Variant(trainer.advance, resident)


def peer(
    model: LatentModel,
    adapter: LoraAdapter,
    pairs: Pairs,
    batch: int,
    second: nn.Module | None,
    rank_scaling: float,
) -> Variant:
    """What the scripts of shared practice do in a step of Diffusion-DPO, written after what they do.

    Images through the VAE and prompts through the text encoders in every step; the reference is the network
    with its LoRA switched off layer by layer, or a second network; squared errors, log-sigmoid, backward,
    clipping, AdamW; four figures fetched from the device for the log.

    Args:
        model: the base.
        adapter: the LoRA in its denoiser.
        pairs: whose images and prompts are encoded again and again.
        batch: B pairs.
        second: a frozen copy of the denoiser, or None.
        rank_scaling: beta of the loss.
    """
    encoders = model._get_encoders()
    texts = [text.model for text in encoders.texts if text is not None]
    parameters = adapter.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    own = model.denoiser

    def predict(network: nn.Module, *inputs: Any) -> Tensor:
        model.denoiser = network
        answer = model._predict(*inputs)
        model.denoiser = own
        return answer

    def step() -> None:
        pixels = pairs.pixels[:batch].transpose(0, 1).flatten(0, 1).to(model.device)
        latents = model.encode_images(pixels)
        words = model.encode_prompts(pairs.prompts[:batch]).map(lambda part: torch.cat([part] * 2))
        noise = torch.randn_like(latents[:batch]).repeat(2, 1, 1, 1)
        timesteps = torch.randint(1000, (batch,), device=model.device).repeat(2)
        level = model._level(timesteps).view(-1, 1, 1, 1)
        noisy = model.parameterisation.noisy(latents, noise, level)
        target = model.parameterisation.target(latents, noise, level)
        with autocast_for(model):
            policy = predict(own, noisy, timesteps, words)
            with torch.no_grad():
                if second is not None:
                    reference = predict(second, noisy, timesteps, words)
                else:
                    with adapter.disabled():
                        reference = predict(own, noisy, timesteps, words)
        ours_, theirs = ((side - target).square().mean((1, 2, 3)) for side in (policy, reference))
        gaps = [error[:batch] - error[batch:] for error in (ours_, theirs)]
        inside = -0.5 * rank_scaling * (gaps[0] - gaps[1])
        loss = -F.logsigmoid(inside).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        for figure in (loss, ours_.mean(), theirs.mean(), (inside > 0).float().mean()):
            figure.item()

    def resident() -> int:
        moments = 2 * sum(weight.nbytes for weight in parameters)
        others = [] if second is None else [second]
        return weight_bytes(model.denoiser, encoders.vae, *texts, *others) + moments

    return Variant(step, resident)


def with_draws(settings: TrainSettings, draws: int) -> TrainSettings:
    """The same settings with that many draws for each pair."""
    return dataclasses.replace(
        settings, objective=dataclasses.replace(settings.objective, reference_draws=draws)
    )


def redirect_keep(settings: TrainSettings, *, keep_text: bool) -> TrainSettings:
    """The same settings with the objective *redirect and keep*, with or without the term `keep_text`."""
    return dataclasses.replace(
        settings,
        objective=ObjectiveSettings("redirect_keep"),
        terms=TermSettings() if keep_text else TermSettings(keep_text=0.0),
    )


def images_of_terms(settings: TrainSettings) -> tuple[float, float]:
    """Images that *redirect and keep* computes in a step: policy, and reference.

    A harmful pair brings one image to the policy, a benign one an image to both; those under the empty prompt
    and those of the base model go to both.
    """
    batch, own = settings.optim.batch_size, settings.terms
    more = own.keep_empty_share + (own.keep_text_share if own.keep_text is None else 0.0)
    return batch * (1 + more), batch * ((1 - _HARMFUL) + more)
