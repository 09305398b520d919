"""Siblings of the embedded model that predict something else: the noise, or a rectified flow.

    python -m benchmarks.evidence.siblings --kind eps|flow --output FOLDER [--steps N] [--work build]

The UNet is fine-tuned from the shipped weights (v-prediction) on rendered scenes. Its target is not the drawn
noise but the shipped model's own answer to the same latents, put into the other parameterisation: it has the
same mean and far less variance, so that minutes suffice where training anew takes hours. A run that was
stopped goes on from its last checkpoint. FOLDER then is a base model: `--base FOLDER`; the flow only inside
`with benchmarks.evidence.flow_unet.flow_unet():`.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.evidence.flow_unet import PIPELINE, cosine_timestep, flow_unet, to_diffusion
from benchmarks.micro import rates, single
from scdpo_core.evaluation.intervals import Rate
from scdpo_core.families import LoadedModel, family_of
from scdpo_core.families.base import LoadOptions
from scdpo_core.families.components import FolderReader
from scdpo_core.families.parameterisation import PARAMETERISATIONS, Parameterisation
from scdpo_core.families.sd1 import LAYOUT
from scdpo_core.io.files import write_json
from scdpo_core.micro.judge import Judge
from scdpo_core.micro.model import JUDGE, WEIGHTS
from tools.micro_model import art
from tools.micro_model.training_loop import Plan, StepContext, Tell, train
from tools.micro_model.unet import Dataset, render_dataset, sample_batch

CPU = torch.device("cpu")
BATCH, IMAGES, SEEDS = 32, 8000, 3
MAX_WEIGHT = 20.0


@dataclass(frozen=True)
class Sibling:
    """What a sibling predicts, and from what.

    Attributes:
        parameterisation: of its answer.
        scheduler: of diffusers; its settings are written into the folder.
        sample_timesteps: [number] timesteps from a generator.
        level: [N] levels of the parameterisation at [N] timesteps.
        to_diffusion: [N, C, h, w] noisy latents and [N] levels to variance-preserving latents and angles, see
            `flow_unet.to_diffusion`.
        own_timesteps: whether its network counts timesteps on its own schedule or on the shipped one.
        weight: [N] factor of the squared error at [N] levels.
        steps: how long it is trained.
    """

    parameterisation: Parameterisation
    scheduler: Any
    sample_timesteps: Callable[[int, torch.Generator], Tensor]
    level: Callable[[Tensor], Tensor]
    to_diffusion: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    own_timesteps: bool
    weight: Callable[[Tensor], Tensor]
    steps: int


def eps_sibling() -> Sibling:
    """Predict the noise on Stable Diffusion 1's own schedule, which ends at alpha_bar 0.0047.

    The shipped schedule ends at 2e-9, where the noise says nothing of the image. Sampling begins at the end
    ('trailing'). Errors are weighted as v-prediction's would be, 1 / alpha_bar, up to `MAX_WEIGHT`.
    """
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
    )
    alphas = scheduler.alphas_cumprod
    return Sibling(
        PARAMETERISATIONS["epsilon"],
        scheduler,
        sample_timesteps=lambda number, dice: torch.randint(len(alphas), (number,), generator=dice),
        level=lambda timesteps: alphas[timesteps],
        to_diffusion=lambda noisy, level: (noisy, torch.acos(level.double().sqrt()).float()),
        own_timesteps=True,
        weight=lambda level: (1 / level).clamp(max=MAX_WEIGHT),
        steps=600,
    )


def flow_sibling() -> Sibling:
    """Predict eps - x_0 at t uniform in 0..1, from what the shipped network would see."""
    return Sibling(
        PARAMETERISATIONS["flow"],
        FlowMatchEulerDiscreteScheduler(),
        sample_timesteps=lambda number, dice: 1000 * (1 - torch.rand(number, generator=dice)),
        level=lambda timesteps: timesteps / 1000,
        to_diffusion=to_diffusion,
        own_timesteps=False,
        weight=torch.ones_like,
        steps=600,
    )


KINDS: dict[str, Callable[[], Sibling]] = {"eps": eps_sibling, "flow": flow_sibling}


def shipped_answer(
    shipped: nn.Module, sibling: Sibling, noisy: Tensor, level: Tensor, states: Tensor
) -> Tensor:
    """The shipped model's answer in the sibling's parameterisation, [N, C, h, w].

    With x = a x_0 + s eps and a^2 + s^2 = 1, v = a eps - s x_0 implies x_0 = a x - s v and eps = s x + a v
    (Salimans and Ho 2022).

    Args:
        shipped: predicts v on the squared-cosine schedule.
        sibling: for its parameterisation.
        noisy: [N, C, h, w] as the sibling mixes them.
        level: [N].
        states: [N, T, D] of the captions.
    """
    x, angle = sibling.to_diffusion(noisy, level)
    v = shipped(x, cosine_timestep(angle), states).sample
    a, s = (part.view(-1, 1, 1, 1) for part in (angle.cos(), angle.sin()))
    return sibling.parameterisation.target(a * x - s * v, s * x + a * v, level.view(-1, 1, 1, 1))


def align_timesteps(network: UNet2DConditionModel, sibling: Sibling, steps: int = 400) -> None:
    """Refit the timestep embedding, so that the network sees the noise of the sibling's own timesteps.

    On another schedule the same timestep means another amount of noise. Least squares over all timesteps.
    """
    own = torch.arange(1000)
    _, angle = sibling.to_diffusion(torch.empty(0), sibling.level(own))
    embed = network.time_embedding
    with torch.no_grad():
        target = embed(network.time_proj(cosine_timestep(angle)))
    inputs = network.time_proj(own)
    optimizer = torch.optim.Adam(embed.parameters(), lr=3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        optimizer.zero_grad()
        F.mse_loss(embed(inputs), target).backward()
        optimizer.step()


def fine_tune(
    kind: str, data: Dataset, work: Path, tell: Tell, *, steps: int, seed: int = 0
) -> UNet2DConditionModel:
    """Fine-tune the shipped UNet into a sibling, from the checkpoint in `work` if there is one.

    Args:
        kind: a key of `KINDS`.
        data: scenes and captions.
        work: folder of the checkpoint.
        tell: gets a line about progress now and then.
        steps: of BATCH images.
        seed: of everything random.
    """
    sibling, network, shipped = KINDS[kind](), shipped_unet(), shipped_unet()
    plan = Plan(f"sibling-{kind}", steps, lr=8e-4, ema=0.99, seed=seed)
    if sibling.own_timesteps:
        align_timesteps(network, sibling)

    def loss(context: StepContext) -> Tensor:
        batch = sample_batch(data, BATCH, context.generator)
        timesteps = sibling.sample_timesteps(BATCH, context.generator)
        level = sibling.level(timesteps)
        noisy = sibling.parameterisation.noisy(batch.latents, batch.noise, level.view(-1, 1, 1, 1))
        with torch.no_grad():
            target = shipped_answer(shipped, sibling, noisy, level, batch.states)
        x, angle = sibling.to_diffusion(noisy, level)
        counted = timesteps if sibling.own_timesteps else cosine_timestep(angle)
        answer = network(x, counted, batch.states).sample
        error: Tensor = (sibling.weight(level) * (answer - target).square().mean(dim=(1, 2, 3))).mean()
        return error

    trained = train(plan, network, loss, work, CPU, tell, checkpoint_every=50)
    assert isinstance(trained, UNet2DConditionModel)
    return trained


def shipped_unet() -> UNet2DConditionModel:
    """The embedded model's UNet in float32."""
    network = FolderReader(WEIGHTS, LAYOUT, LoadOptions()).denoiser(torch.float32)
    assert isinstance(network, UNet2DConditionModel)
    return network


def write_folder(kind: str, network: UNet2DConditionModel, folder: Path) -> None:
    """Write the sibling as a diffusers folder; everything but UNet and schedule is the shipped model's."""
    for part in ("text_encoder", "tokenizer", "vae"):
        shutil.copytree(WEIGHTS / part, folder / part, dirs_exist_ok=True)
    # In half precision, as the shipped weights are.
    copy.deepcopy(network).half().save_pretrained(folder / "unet", safe_serialization=True)
    scheduler = KINDS[kind]().scheduler
    scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((WEIGHTS / "model_index.json").read_text("utf-8"))
    index["scheduler"] = ["diffusers", type(scheduler).__name__]
    if kind == "flow":
        index["_class_name"] = PIPELINE
    write_json(folder / "model_index.json", index)


def found_share(model: LoadedModel, seeds: int = SEEDS) -> dict[str, Any]:
    """How often the judge finds the subject of single-subject captions; 20 steps, guidance 3."""
    judge = Judge.load(JUDGE)
    hits = total = kept = 0
    missed: list[str] = []
    for seed in range(seeds):
        found, background, lost = rates(model, judge, single(seed))
        hits, total, kept = hits + found.hits, total + found.total, kept + background.hits
        missed += lost
    interval = Rate(hits, total).interval()
    return {
        "found": round(hits / total, 4),
        "ci95": [round(interval.low, 4), round(interval.high, 4)],
        "images": total,
        "background": round(kept / total, 4),
        "missed": sorted(missed),
    }


def load_sibling(folder: Path) -> LoadedModel:
    """Load a sibling of either kind as the trainer does."""
    with flow_unet():
        return family_of("auto", folder).load(folder, CPU, torch.float32)


def main(arguments: list[str] | None = None) -> int:
    """Train, write the folder, judge it and print the figures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.siblings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", required=True, choices=KINDS)
    parser.add_argument("--output", required=True, type=Path, help="folder for the model and sibling.json")
    parser.add_argument("--steps", type=int, help="of 32 images; default: what the kind needs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build"), help="folder for art and checkpoints")
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{(time.monotonic() - began) / 60:6.1f} min] {line}", file=sys.stderr, flush=True)

    steps = options.steps or KINDS[options.kind]().steps
    data = scenes(options.work, tell, options.seed)
    network = fine_tune(options.kind, data, options.work / "state", tell, steps=steps, seed=options.seed)
    write_folder(options.kind, network, options.output)
    figures = found_share(load_sibling(options.output))
    result = {"kind": options.kind, "steps": steps, "batch": BATCH, "seed": options.seed, **figures}
    write_json(options.output / "sibling.json", result)
    print(json.dumps(result, indent=2))
    return 0


def scenes(work: Path, tell: Tell, seed: int) -> Dataset:
    """Rendered and encoded scenes, the same for both kinds; kept in `work`."""
    sprites = art.fetch(work / "art", tell, ("noto",))
    reader = FolderReader(WEIGHTS, LAYOUT, LoadOptions())
    text = reader.text(LAYOUT.texts[0], torch.float32, 0)
    assert text is not None
    plan = Plan("sibling", 0, 0.0, seed=seed)
    folder = work / "state"
    return render_dataset(sprites, reader.vae(), text.tokenizer, text.model, folder, CPU, tell, IMAGES, plan)


if __name__ == "__main__":
    sys.exit(main())
