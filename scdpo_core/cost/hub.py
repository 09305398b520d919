"""Classifiers of the model hub, from a folder or the hub's cache. Nothing is ever downloaded from here."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..io.files import read_tensors, sha256_of
from ..types import CostScore
from .classifiers import Eva02, VisionTransformer
from .clip_encoders import CLIP_MEAN, CLIP_STD
from .hub_cache import cached_snapshot
from .open_nsfw import LEAST_CHANCE
from .protocol import HARM_CATEGORIES, ScorerError, in_batches, score_of

Colour = tuple[float, float, float]

_BATCH = 16
_HALF: Colour = (0.5, 0.5, 0.5)
_CLIP_SCALE = 100.0
"""CLIP's logit scale; turns the safety checker's margins into log-odds."""


@dataclass(frozen=True)
class LoadedClassifier:
    """A classifier and what it needs.

    Attributes:
        cost: log-odds of harm [N] of pixels [N, 3, size, size].
        module: what moves to the device.
        size: side of the square image, pixels.
    """

    cost: Callable[[Tensor], Tensor]
    module: nn.Module
    size: int


@dataclass(frozen=True)
class HubPreset:
    """A classifier of the hub.

    Attributes:
        repository: its name on the hub.
        licence: of its weights.
        megabytes: of its weights.
        about: what it knows, in a few words.
        load: loads it from its folder.
        mean: of each colour channel, 0..1.
        std: standard deviation of each colour channel.
    """

    repository: str
    licence: str
    megabytes: int
    about: str
    load: Callable[[Path], LoadedClassifier]
    mean: Colour = _HALF
    std: Colour = _HALF


class HubScorer:
    """A classifier of the hub as a scorer; it fills in `sexual` alone.

    The cost is the log-odds of the harmful classes together, zero at one half. Images are resized to
    the classifier's square, so that harm at the edge of a wide image is seen.

    Args:
        name: a name in `PRESETS`.
        folder: the model's folder; by default the hub's cache is searched.
        device: where to run.

    Raises:
        ScorerError: the model is not on this machine, or its files cannot be used.
    """

    categories = HARM_CATEGORIES

    def __init__(self, name: str, folder: Path | None = None, device: str = "cpu") -> None:
        """Load and hash the weights."""
        preset = PRESETS[name]
        directory = folder or _cached(name, preset)
        weights = directory / "model.safetensors"
        if not weights.is_file():
            raise ScorerError(f"{directory} has no model.safetensors. {_how_to_get(name, preset)}")
        try:
            loaded = preset.load(directory)
        except ScorerError:
            raise
        # A damaged file may raise nearly any exception, depending on the library that reads it.
        except Exception as error:
            raise ScorerError(
                f"The files in {directory} are not {preset.repository} ({error}). {_how_to_get(name, preset)}"
            ) from error
        self._cost, self._size = loaded.cost, loaded.size
        loaded.module.float().eval().requires_grad_(False).to(device)
        self._device = torch.device(device)
        self._mean, self._std = torch.tensor(preset.mean), torch.tensor(preset.std)
        self.id = preset.repository.split("/")[0].lower() + "-" + preset.repository.split("/")[1]
        self.hash = sha256_of(weights)[:12]

    def prepare(self, image: Image.Image) -> Tensor:
        """Prepare an image for the classifier: float32 [3, size, size]."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        square = rgb.resize((self._size, self._size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square, np.float32)).div_(255.0)
        return ((pixels - self._mean) / self._std).permute(2, 0, 1)

    @torch.no_grad()
    def score_prepared(self, prepared: Sequence[Tensor]) -> list[CostScore]:
        """Score what `prepare` returned, in its order."""
        bound = math.log((1 - LEAST_CHANCE) / LEAST_CHANCE)

        def costs(batch: Sequence[Tensor]) -> list[float]:
            values = self._cost(torch.stack([*batch]).to(self._device)).float().clamp(-bound, bound).cpu()
            if not bool(torch.isfinite(values).all()):
                raise ScorerError(f"The scorer '{self.id}' produced NaN or infinite values.")
            return [float(value) for value in values]

        return [score_of(self, "sexual", cost) for cost in in_batches(prepared, _BATCH, costs)]

    def score(self, images: Sequence[Image.Image]) -> list[CostScore]:
        """Score images of any size, in their order."""
        return in_batches(images, _BATCH, lambda batch: self.score_prepared([*map(self.prepare, batch)]))

    def differentiable(self, category: str | None) -> Callable[[Tensor], Tensor] | None:
        """Return the cost as a function of pixels, as `protocol.Differentiable`."""
        if category not in (None, "sexual"):
            raise ScorerError(f"The scorer '{self.id}' has no cost for '{category}'.")
        return lambda pixels: self._cost(pixels.to(self._device)).float().cpu()


def log_odds(logits: Tensor, harmful: Sequence[int]) -> Tensor:
    """Return the log-odds [N] of the harmful classes, from logits [N, K]."""
    safe = [k for k in range(logits.shape[-1]) if k not in harmful]
    return logits[:, list(harmful)].logsumexp(-1) - logits[:, safe].logsumexp(-1)


def _timm(build: Callable[[Mapping[str, Tensor]], nn.Module], harmful: Sequence[str]) -> Any:
    def load(folder: Path) -> LoadedClassifier:
        tensors, _ = read_tensors(folder / "model.safetensors")
        weights = {name.removeprefix("timm_model."): tensor.float() for name, tensor in tensors.items()}
        module: Any = build(weights)
        harmful_ids = _classes(folder, harmful)
        return LoadedClassifier(lambda pixels: log_odds(module(pixels), harmful_ids), module, module.size)

    return load


def _transformers_vit(folder: Path) -> LoadedClassifier:
    transformers = _transformers()
    module = transformers.ViTForImageClassification.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    )
    harmful_ids = _classes(folder, ("nsfw",))
    return LoadedClassifier(
        lambda pixels: log_odds(module(pixel_values=pixels).logits, harmful_ids),
        module,
        module.config.image_size,
    )


class _SafetyChecker(nn.Module):
    """CompVis' checker: CLIP's cosine to 17 hidden concepts, each with a threshold; 3 make it stricter."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        transformers = _transformers()
        config = transformers.CLIPConfig.from_pretrained(folder, local_files_only=True)
        tensors, _ = read_tensors(folder / "model.safetensors")
        self.tower = transformers.CLIPVisionModel(config.vision_config)
        expected = self.tower.state_dict()
        # Its checkpoints name the tower 'vision_model.vision_model.', or once, by the library's version.
        suffixes = {
            name.removeprefix("vision_model.").removeprefix("vision_model."): tensor
            for name, tensor in tensors.items()
        }
        self.tower.load_state_dict({name: suffixes[name.removeprefix("vision_model.")] for name in expected})
        self.projection = tensors["visual_projection.weight"].float()
        self.concepts = F.normalize(tensors["concept_embeds"].float(), dim=-1)
        self.special = F.normalize(tensors["special_care_embeds"].float(), dim=-1)
        self.thresholds = tensors["concept_embeds_weights"].float()
        self.special_thresholds = tensors["special_care_embeds_weights"].float()
        self.size = config.vision_config.image_size

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.tower(pixel_values=pixels).pooler_output.cpu()
        embedding = F.normalize(pooled @ self.projection.T, dim=-1)
        stricter = 0.01 * ((embedding @ self.special.T - self.special_thresholds) > 0).any(-1, keepdim=True)
        margins = embedding @ self.concepts.T - self.thresholds + stricter
        return _CLIP_SCALE * margins.amax(-1)


def _safety_checker(folder: Path) -> LoadedClassifier:
    checker = _SafetyChecker(folder)
    return LoadedClassifier(checker, checker, checker.size)


PRESETS: dict[str, HubPreset] = {
    "freepik": HubPreset(
        "Freepik/nsfw_image_detector",
        "MIT",
        173,
        "sexual content, drawings too; medium and high count as harmful",
        _timm(Eva02, ("medium", "high")),
        CLIP_MEAN,
        CLIP_STD,
    ),
    "marqo": HubPreset(
        "Marqo/nsfw-image-detection-384",
        "Apache-2.0",
        22,
        "sexual content, drawings too; small and fast",
        _timm(VisionTransformer, ("NSFW",)),
    ),
    "falconsai": HubPreset(
        "Falconsai/nsfw_image_detection",
        "Apache-2.0",
        343,
        "sexual content; weak on mild content",
        _transformers_vit,
    ),
    "compvis": HubPreset(
        "CompVis/stable-diffusion-safety-checker",
        "CreativeML Open RAIL-M",
        1216,
        "sexual content; Stable Diffusion's own checker, costs are 100 x its margins",
        _safety_checker,
        CLIP_MEAN,
        CLIP_STD,
    ),
}
"""Named classifiers of the hub. Sizes and licences as on their pages in 2026."""


def _classes(folder: Path, harmful: Sequence[str]) -> list[int]:
    """Return the indices of the harmful classes, by the names in config.json.

    Raises:
        ScorerError: config.json does not name all of them.
    """
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pretrained = settings.get("pretrained_cfg") or {}
    names = settings.get("label_names") or pretrained.get("label_names")
    if not names:
        by_number = settings.get("id2label") or {}
        names = [by_number[key] for key in sorted(by_number, key=int)]
    indices = [names.index(name) for name in harmful if name in names]
    if len(indices) < len(harmful):
        raise ScorerError(
            f"{folder / 'config.json'} names the classes {', '.join(map(str, names)) or '(none)'}; "
            f"expected {' and '.join(harmful)}. Download the model again."
        )
    return indices


def _cached(name: str, preset: HubPreset) -> Path:
    """Return the newest snapshot in the hub's cache.

    Raises:
        ScorerError: the model is not there; says licence, size and how to get it.
    """
    snapshot = cached_snapshot(preset.repository)
    if snapshot is not None:
        return snapshot
    raise ScorerError(f"{preset.repository} is not on this machine. {_how_to_get(name, preset)}")


def _how_to_get(name: str, preset: HubPreset) -> str:
    return (
        f"Get it with 'hf download {preset.repository}' ({preset.megabytes} MB, licence {preset.licence}), "
        f"or give its folder: '{name}=FOLDER'."
    )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ScorerError("This scorer needs the package 'transformers'; 'embedded' does not.") from error
    return transformers
