"""Tiny image towers, made-up embeddings and image folders for the cost model's tests."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scdpo_core.cost.features import FeatureSet

DIM = 16


class ColourEncoder:
    """Stands in for an image encoder: a fixed random projection of an image's mean colour."""

    id, hash, size, dim = "colour", "c0" * 32, 8, DIM

    def prepare(self, image: Image.Image) -> Tensor:
        return torch.tensor(image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))).float()

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        projection = torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))
        return F.normalize(pixels @ projection + 0.1, dim=-1)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        means = [self.prepare(image) for image in images]
        return self.encode_prepared(torch.stack(means)) if means else torch.empty(0, DIM)


def tiny_tower(folder: Path, *, whole: bool = False, seed: int = 0) -> Path:
    """A random CLIP image tower with ViT-L/14's patches; `whole`: as a part of a complete CLIP model."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(seed)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": DIM,
    }
    vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape))
    if not whole:
        vision.save_pretrained(folder)
        return folder
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=shape, projection_dim=DIM))
    model.vision_model.load_state_dict(vision.vision_model.state_dict())
    model.visual_projection.load_state_dict(vision.visual_projection.state_dict())
    model.save_pretrained(folder)
    return folder


def normalisation(folder: Path, value: object) -> None:
    settings = {"image_mean": value, "image_std": value}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def made_up(
    unsafe: int = 60,
    safe: int = 60,
    *,
    gap: float = 3.0,
    views: int = 2,
    categories: dict[str, int] | None = None,
    seed: int = 0,
) -> FeatureSet:
    """Embeddings that lie `gap` standard deviations apart along one axis, more along a category's own."""
    generator = torch.Generator().manual_seed(seed)
    count = unsafe + safe
    centres = torch.randn(count, 1, DIM, generator=generator)
    centres[:unsafe, :, 0] += gap
    names = tuple(categories or {})
    labels = torch.zeros(count, len(names))
    start = 0
    for k, number in enumerate((categories or {}).values()):
        labels[start : start + number, k] = 1
        centres[start : start + number, :, 1 + k] += gap
        start += number
    noise = 0.1 * torch.randn(count, views, DIM, generator=generator)
    return FeatureSet(
        embeddings=F.normalize(centres + noise, dim=-1),
        unsafe=torch.arange(count) < unsafe,
        categories=names,
        labels=labels,
        twins=torch.full((count,), -1),
        groups=[str(number) for number in range(count)],
        encoder_id="made-up",
        encoder_hash="0" * 64,
        training_set="1" * 64,
    )


def colour_folder(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    """Small images of nearly one colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        shade = tuple(max(0, min(255, channel + rng.randint(-30, 30))) for channel in colour)
        Image.new("RGB", (24, 16), shade).save(folder / f"p{number:03}.png")
