"""Image towers of transformers, from a folder or the hub's cache: loading, checking and hashing them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..types import ScdpoError
from .hub_cache import cached_snapshot, is_hub_name

NAMED = "'micro' or 'embedded'"
"""Encoders that need no folder."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class EncoderError(ScdpoError):
    """An image encoder that cannot be loaded or used."""


def find_tower(spec: str | Path) -> Path | None:
    """Find a tower's folder: `spec` itself, or the hub's cache for 'owner/name'; None for neither."""
    folder = Path(spec).expanduser()
    if folder.exists():
        return folder
    return cached_snapshot(str(spec)) if is_hub_name(str(spec)) else None


def require_tower(spec: str | Path) -> Path:
    """Find a tower's folder as `find_tower` does, or fail.

    Raises:
        EncoderError: the tower is on this machine neither as a folder nor in the hub's cache.
    """
    folder = find_tower(spec)
    if folder is not None:
        return folder
    if is_hub_name(str(spec)):
        raise EncoderError(
            f"{spec} is not on this machine, neither as a folder nor in the hub's cache. Get it with "
            f"'hf download {spec}', or give {NAMED}, which need no download."
        )
    raise EncoderError(f"There is no image encoder {spec}. Give a folder, a name on the hub, or {NAMED}.")


Read = Callable[[Any, Tensor], Tensor]
"""Runs a tower on pixels [N, 3, size, size] and takes the embedding [N, D] from its answer."""


def _projected(tower: Any, pixels: Tensor) -> Tensor:
    embedding: Tensor = tower(pixel_values=pixels).image_embeds
    return embedding


def _pooled(tower: Any, pixels: Tensor) -> Tensor:
    embedding: Tensor = tower(pixel_values=pixels).pooler_output
    return embedding.flatten(1)


def _tagged(tower: Any, pixels: Tensor) -> Tensor:
    """Return how likely each tag is at its most likely position; a mean would dilute small things.

    Log-odds are halved and shifted, so that a likely or nearly likely tag counts and the degree of
    unlikeliness of all others does not. A constant is appended: without it, the few faint tags of an
    empty image would fill the whole embedding once it is normalised to length 1.
    """
    maps: Tensor = tower.resnet(pixel_values=pixels).last_hidden_state
    odds = tower.classifier[-1](maps.flatten(2).transpose(1, 2)).amax(dim=1)
    return F.pad(torch.sigmoid(odds / 2 + 1), (0, 1), value=0.5)


# Model types, by `model_type` in config.json: class, and how to read its embedding.
_TOWERS: dict[str, tuple[str, Read]] = {
    "clip": ("CLIPVisionModelWithProjection", _projected),
    "clip_vision_model": ("CLIPVisionModelWithProjection", _projected),
    "siglip": ("SiglipVisionModel", _pooled),
    "siglip_vision_model": ("SiglipVisionModel", _pooled),
    "dinov2": ("Dinov2Model", _pooled),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", _pooled),
    "dinov3_vit": ("DINOv3ViTModel", _pooled),
    "vit": ("ViTModel", _pooled),
    "beit": ("BeitModel", _pooled),
    "swin": ("SwinModel", _pooled),
    "convnext": ("ConvNextModel", _pooled),
    "convnextv2": ("ConvNextV2Model", _pooled),
    "resnet": ("ResNetModel", _pooled),
}
_RESNET_TAGGER: tuple[str, Read] = ("ResNetForImageClassification", _tagged)


def load_tower(folder: Path) -> tuple[nn.Module, Read]:
    """Load the frozen tower and the function that reads its embedding.

    Raises:
        EncoderError: the folder is missing, damaged or of another model type; says which and what to do.
    """
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder} is not an image encoder: it has no config.json. Give a folder with a CLIP model in "
            f"the Hugging Face layout, or {NAMED}."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise EncoderError(f"{folder / 'config.json'} is damaged. Download the folder again.") from error
    if model_type not in _TOWERS:
        raise EncoderError(
            f"{folder} holds a model of type '{model_type}'; the cost model needs one of these types: "
            f"{', '.join(sorted(_TOWERS))}."
        )
    name, read = _TOWERS[model_type]
    if model_type == "resnet" and config.get("problem_type") == "multi_label_classification":
        name, read = _RESNET_TAGGER
    if not any(folder.glob("*.safetensors")):
        raise EncoderError(
            f"{folder} has no .safetensors weights. Pickle files (.bin, .pt) can run code when they are "
            "opened and are never loaded; get the safetensors version of this model."
        )
    try:
        import transformers
    except ImportError as error:
        raise EncoderError("The cost model's image encoder needs the package 'transformers'.") from error
    try:
        with _quiet(transformers):
            loaded: Any = getattr(transformers, name).from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            tower, report = loaded
    except Exception as error:  # transformers raises a dozen types, depending on version and damage
        raise EncoderError(
            f"The image encoder in {folder} could not be loaded ({error}). Download the folder again."
        ) from error
    # transformers initialises missing tensors at random and continues.
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if missing or report.get("mismatched_keys"):
        raise EncoderError(
            f"The weights in {folder} are incomplete: the image tower lacks {len(missing)} tensors ("
            f"such as '{next(iter(missing), '')}'). Download the folder again."
        )
    frozen: nn.Module = tower.float().eval().requires_grad_(False)
    if model_type == "resnet":
        # Small convolutions take a quarter less time on a CPU with the channels last.
        frozen = frozen.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return frozen, read


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers from printing: the core never prints, its doors do."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), getattr(logging, "is_progress_bar_enabled", lambda: False)()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def eager(tower: Any) -> Iterator[None]:
    """Switch to eager attention inside the block; fused kernels never hold the attention matrix."""
    before = getattr(tower.config, "_attn_implementation", None)
    choose = getattr(tower, "set_attn_implementation", None)
    if choose is None or before == "eager":
        yield
        return
    choose("eager")
    try:
        yield
    finally:
        choose(before)


@dataclass(frozen=True)
class Preprocessing:
    """Mean, deviation and size from `preprocessor_config.json`; CLIP's where there is none.

    Attributes:
        mean: of each colour channel, 0..1.
        std: standard deviation of each colour channel.
        size: side of the square image, pixels; only towers whose own configuration is silent need it.
    """

    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    size: int = 224

    @classmethod
    def read(cls, folder: Path) -> Preprocessing:
        """Read the folder's `preprocessor_config.json`.

        Raises:
            EncoderError: the file is damaged.
        """
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            return cls()
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            mean = tuple(float(value) for value in settings.get("image_mean", CLIP_MEAN))
            std = tuple(float(value) for value in settings.get("image_std", CLIP_STD))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError("mean and std need three numbers each")
            size = settings.get("size", cls.size)
            if isinstance(size, dict):
                size = size.get("shortest_edge") or size.get("height")
            return cls(mean, std, int(size))
        except (ValueError, TypeError, AttributeError) as error:
            raise EncoderError(f"{path} is damaged. Download the folder again.") from error


def weights_hash(tower: nn.Module, preprocessing: object) -> str:
    """Hash the weights themselves: the same tower gives the same hash from any file layout.

    Tensor names are left out, because they differ between versions of transformers, and so are integer
    buffers, which some versions keep for the positions.
    """

    def digest(tensor: Tensor) -> bytes:
        values = tensor.detach().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(str(tuple(tensor.shape)).encode() + values).digest()

    running = (buffer for buffer in tower.buffers() if buffer.is_floating_point())
    digests = sorted(map(digest, [*tower.parameters(), *running]))
    return hashlib.sha256(b"".join(digests) + repr(preprocessing).encode()).hexdigest()


def readable_name(folder: Path) -> str:
    """Return the folder's name; for a snapshot in the Hugging Face cache, 'owner/model'."""
    full = folder.resolve() if folder.exists() else folder
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        return full.parent.parent.name.removeprefix("models--").replace("--", "/")
    return full.name
