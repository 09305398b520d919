"""`python -m tools.micro_model.build`: make the embedded model anew from the art.

Seeded, resumable (run it again after a stop), on a GPU when there is one; without one every part is trained
for a shorter time (`ON_PROCESSORS`), so that two cores need a few hours and not a day. The weights replace
those of the checkout only when everything is done.

Networks this small gain little from a second core. Two processes do more, each with OMP_NUM_THREADS=1:
`--only vae` in one; `--only towers`, `image` and `judge` in the other. A plain call goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import ResNetForImageClassification

from scdpo_core.io.files import write_json
from scdpo_core.micro.judge import Judge
from scdpo_core.micro.model import WEIGHTS

from . import art
from . import image_tower as image_stage
from . import judge as judge_stage
from . import text_finetune as meaning_stage
from . import towers as towers_stage
from . import unet as unet_stage
from . import vae as vae_stage
from .render import SIZE

LIMIT_MB = 24
PARTS = ("vae", "towers", "image", "judge")
"""What can be trained by itself; the image tower's second leg after the towers, the denoiser after these."""


@dataclass(frozen=True)
class Recipe:
    """How long each part is trained. The shipped weights were made with these lengths (docs/embedded-model.md
    says where they went another way)."""

    vae_steps: int = 8000
    tower_steps: int = 2500
    image_small_steps: int = 8500
    image_steps: int = 4000
    image_batch: int = 512
    unet_steps: int = 3500
    unet_images: int = 32_000
    meaning_steps: int = 500
    settle_steps: int = 400
    settle_images: int = 12_000
    judge_steps: int = 4000
    seed: int = 0

    @property
    def image_size(self) -> int:
        """Side of the image tower's last training images, pixels; it handles no other size well."""
        return image_stage.IMAGE_SIZE if self.image_steps else SIZE


ON_PROCESSORS = Recipe(
    vae_steps=3000,
    tower_steps=1500,
    image_small_steps=5000,
    image_steps=0,
    unet_steps=1800,
    unet_images=24_000,
    settle_steps=250,
    settle_images=8000,
    judge_steps=2000,
)
"""Lengths for two cores. What they take and what such a model is worth: docs/embedded-model.md.

The image tower gets no steps on larger images: the few that two cores have time for undo more than they
bring.
"""


def build(
    work: Path,
    target: Path,
    recipe: Recipe,
    device: torch.device,
    tell: Callable[[str], None],
    only: str | None = None,
) -> None:
    """Train every part that `work` does not hold yet and write the pipeline folder `target`.

    Args:
        work: folder for the art, checkpoints and the half-made model; kept for a later run.
        target: the folder that is replaced by the new weights at the end.
        recipe: lengths and the seed.
        device: where to train.
        tell: gets a line about progress now and then.
        only: one of `PARTS`: train that and stop; the target stays as it is.
    """
    sprites = art.fetch(work / "art", tell)
    state, model = work / "state", work / "model"
    seed = recipe.seed
    tokenizer = towers_stage.build_tokenizer(model / "tokenizer")

    def train_vae() -> AutoencoderKL:
        return vae_stage.build(sprites, state, device, tell, steps=recipe.vae_steps, seed=seed)

    def train_towers() -> towers_stage.Towers:
        steps = recipe.tower_steps
        return towers_stage.build(sprites, state, tokenizer, device, tell, steps=steps, seed=seed)

    def train_image() -> ResNetForImageClassification:
        return image_stage.build(
            sprites,
            state,
            train_towers(),
            device,
            tell,
            small_steps=recipe.image_small_steps,
            steps=recipe.image_steps,
            batch=recipe.image_batch,
            seed=seed,
        )

    def train_judge() -> Judge:
        # Another seed than every other stage: no image of the judge's is one of theirs.
        return judge_stage.build(sprites, state, device, tell, steps=recipe.judge_steps, seed=seed + 1)

    if only is not None:
        dict(zip(PARTS, (train_vae, train_towers, train_image, train_judge), strict=True))[only]()
        return
    vae, towers = train_vae(), train_towers()
    drawer = unet_stage.build(
        sprites,
        vae,
        towers,
        state,
        device,
        tell,
        steps=recipe.unet_steps,
        images=recipe.unet_images,
        seed=seed,
    )
    towers = meaning_stage.build(state, towers, device, tell, steps=recipe.meaning_steps, seed=seed)
    unet = unet_stage.settle(
        drawer,
        sprites,
        vae,
        towers,
        state,
        device,
        tell,
        steps=recipe.settle_steps,
        images=recipe.settle_images,
        seed=seed + 2,
    )
    image, judge = train_image(), train_judge()
    # Half precision on disk keeps the repository small; diffusers loads it in single precision.
    pipeline = StableDiffusionPipeline(
        vae=vae.cpu().half(),
        text_encoder=towers.text.cpu(),
        tokenizer=tokenizer,
        unet=unet.cpu().half(),
        scheduler=unet_stage.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(model, safe_serialization=True)
    image.cpu().half().save_pretrained(model / "image_encoder", safe_serialization=True)
    write_json(
        model / "image_encoder" / "preprocessor_config.json",
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": recipe.image_size},
    )
    judge.save(model / "judge" / "judge.safetensors")
    _publish(model, target, tell)


def _publish(model: Path, target: Path, tell: Callable[[str], None]) -> None:
    size = sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) / 1e6
    if size > LIMIT_MB:
        raise RuntimeError(f"The model takes {size:.1f} MB; the repository allows {LIMIT_MB} MB.")
    index = model / "model_index.json"
    facts = json.loads(index.read_text(encoding="utf-8"))
    write_json(index, {key: value for key, value in facts.items() if key != "_name_or_path"})
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    new_folder = target.with_name(target.name + ".new")
    shutil.rmtree(new_folder, ignore_errors=True)
    shutil.copytree(model, new_folder)
    if target.exists():
        target.rename(old)
    new_folder.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    tell(f"wrote {target} ({size:.1f} MB)")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and build."""
    on_gpu = torch.cuda.is_available()
    defaults = Recipe() if on_gpu else ON_PROCESSORS
    parser = argparse.ArgumentParser(prog="python -m tools.micro_model.build", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build"), help="folder for art and checkpoints")
    parser.add_argument("--target", type=Path, default=WEIGHTS, help="where the finished weights go")
    for name, value in vars(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"default: {value}")
    parser.add_argument("--only", choices=PARTS, help="train this part and stop")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    options = vars(parser.parse_args(arguments))
    work, target, device, only = (options.pop(name) for name in ("work", "target", "device", "only"))
    began = time.monotonic()

    def tell(line: str) -> None:
        sys.stderr.write(f"[{(time.monotonic() - began) / 60:6.1f} min] {line}\n")

    build(work.resolve(), target.resolve(), Recipe(**options), torch.device(device), tell, only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
