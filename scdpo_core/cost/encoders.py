"""Frozen image encoders: pictures in, one L2-normalised vector each out.

Only calling an encoder imports `transformers`, so that a host can import this module without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..micro.model import IMAGE_ENCODER
from ..types import ScdpoError
from .open_nsfw import OpenNsfwEncoder

_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH = 32


class EncoderError(ScdpoError):
    """An image encoder that cannot be loaded or used."""


class Encoder(Protocol):
    """Anything that turns pictures into embeddings."""

    @property
    def id(self) -> str:
        """A readable name of the weights."""

    @property
    def hash(self) -> str:
        """Hexadecimal hash of weights and preprocessing; equal hashes, equal embeddings."""

    @property
    def size(self) -> int:
        """Side of the square picture it looks at, pixels."""

    @property
    def dim(self) -> int:
        """Length D of an embedding."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """What it sees of a picture of any size, as `encode_prepared` takes it; safe to do in a thread."""

    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed a stack of N prepared pictures: float32 [N, D] on the CPU, rows of length 1."""

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embed N pictures of any size: float32 [N, D] on the CPU, rows of length 1."""


class TowerEncoder:
    """A frozen image tower from a local folder in the Hugging Face layout.

    A CLIP one with its projection, which `CLIPVisionModelWithProjection` or `CLIPModel` saved (CLIP
    ViT-L/14, say), a SigLIP, DINOv2 or plain ViT one, a `ResNetModel`, or a
    `ResNetForImageClassification` of many tags a picture, as the embedded one is, whose tags are the
    embedding. Size, mean and standard deviation come from `config.json` and `preprocessor_config.json`;
    CLIP's own mean and deviation are taken where there are none.

    Args:
        folder: the folder with `config.json` and safetensors weights.
        device: where to run.
        name: the id; by default told from the folder's name.

    Raises:
        EncoderError: the folder is missing, damaged or of another kind; says which and what to do.
    """

    def __init__(self, folder: Path, device: str | torch.device = "cpu", name: str | None = None) -> None:
        """Load the tower and hash it."""
        self.id = name or _readable_name(folder)
        self._device = torch.device(device)
        self._tower, self._read = _load_tower(folder)
        self._tower.to(self._device)
        preprocessing = _Preprocessing.read(folder)
        self._mean, self._std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.size = int(getattr(self._tower.config, "image_size", preprocessing.size))
        self.dim = self.embed(torch.zeros(1, 3, self.size, self.size)).shape[1]
        self.hash = _hash(self._tower, (self.size, preprocessing.mean, preprocessing.std))

    def prepare(self, picture: Image.Image) -> Tensor:
        """What the tower sees of a picture: float32 [3, size, size].

        Pictures are squeezed to a square. CLIP's own preprocessing crops the middle instead, and harm
        at the edge of a wide picture would cost nothing.
        """
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
        if rgb.size != (self.size, self.size):
            rgb = rgb.resize((self.size, self.size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(rgb, np.float32)).div_(255.0)
        return ((pixels - self._mean) / self._std).permute(2, 0, 1)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed [N, 3, size, size] from any device: [N, D] of length 1, with gradient if `pixels` has one."""
        return F.normalize(self._read(self._tower, pixels.to(self._device)).float(), dim=-1)

    @torch.no_grad()
    def encode_prepared(self, pixels: Tensor) -> Tensor:
        """Embed N prepared pictures [N, 3, size, size]: float32 [N, D] on the CPU, rows of length 1.

        Raises:
            EncoderError: an embedding is not finite.
        """
        embeddings = self.embed(pixels).cpu()
        if not bool(torch.isfinite(embeddings).all()):
            raise EncoderError(f"The image encoder '{self.id}' gave numbers that are not finite.")
        return embeddings

    def encode(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Embed N pictures of any size: float32 [N, D] on the CPU, rows of length 1.

        Raises:
            EncoderError: an embedding is not finite.
        """
        parts = [torch.empty(0, self.dim)]
        for start in range(0, len(pictures), _BATCH):
            parts.append(
                self.encode_prepared(torch.stack([self.prepare(p) for p in pictures[start : start + _BATCH]]))
            )
        return torch.cat(parts)


def _micro(device: str | torch.device) -> Encoder:
    return TowerEncoder(IMAGE_ENCODER, device, "micro")


def _embedded(device: str | torch.device) -> Encoder:
    return OpenNsfwEncoder(str(device))


ENCODERS: dict[str, Callable[[str | torch.device], Encoder]] = {"micro": _micro, "embedded": _embedded}
"""Every encoder that has a name, and what loads it onto a device; all others are folders."""


def load_encoder(spec: str | Path, device: str | torch.device = "cpu") -> Encoder:
    """Load the encoder that `spec` names: one of `ENCODERS`, or a folder.

    Raises:
        EncoderError: as `TowerEncoder`.
        ScorerError: the embedded scorer's package is missing.
    """
    if str(spec) in ENCODERS:
        return ENCODERS[str(spec)](device)
    return TowerEncoder(Path(spec).expanduser(), device)


_Read = Callable[[Any, Tensor], Tensor]
"""Runs a tower on pixels [N, 3, size, size] and takes the embedding [N, D] from its answer."""


def _projected(tower: Any, pixels: Tensor) -> Tensor:
    seen: Tensor = tower(pixel_values=pixels).image_embeds
    return seen


def _pooled(tower: Any, pixels: Tensor) -> Tensor:
    seen: Tensor = tower(pixel_values=pixels).pooler_output
    return seen.flatten(1)


def _tagged(tower: Any, pixels: Tensor) -> Tensor:
    """How likely each tag is, told at the surest place: in a mean what fills only a corner would drown.

    The logarithms of the odds are halved and moved, so that a tag counts that is likely or nearly so, and
    how very unlikely the many others are does not. A constant stands beside the tags: without it, the few
    faint ones of a picture that shows nothing would fill the whole embedding once its length is made 1.
    """
    maps: Tensor = tower.resnet(pixel_values=pixels).last_hidden_state
    odds = tower.classifier[-1](maps.flatten(2).transpose(1, 2)).amax(dim=1)
    return F.pad(torch.sigmoid(odds / 2 + 1), (0, 1), value=0.5)


# Kinds of model, by the name in config.json: class, and how to read it.
_TOWERS: dict[str, tuple[str, _Read]] = {
    "clip": ("CLIPVisionModelWithProjection", _projected),
    "clip_vision_model": ("CLIPVisionModelWithProjection", _projected),
    "siglip": ("SiglipVisionModel", _pooled),
    "siglip_vision_model": ("SiglipVisionModel", _pooled),
    "dinov2": ("Dinov2Model", _pooled),
    "vit": ("ViTModel", _pooled),
    "resnet": ("ResNetModel", _pooled),
}
_RESNET_TAGGER: tuple[str, _Read] = ("ResNetForImageClassification", _tagged)


def _load_tower(folder: Path) -> tuple[nn.Module, _Read]:
    """The frozen tower, and how to read it."""
    if not (folder / "config.json").is_file():
        raise EncoderError(
            f"{folder} is no image encoder: it holds no config.json. Give a folder with a CLIP model in "
            f"the Hugging Face layout, or {' or '.join(map(repr, ENCODERS))}."
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise EncoderError(f"{folder / 'config.json'} is damaged. Download the folder again.") from error
    if kind not in _TOWERS:
        raise EncoderError(
            f"{folder} holds a model of the kind '{kind}'; the cost model needs one of these kinds: "
            f"{', '.join(sorted(_TOWERS))}."
        )
    name, read = _TOWERS[kind]
    if kind == "resnet" and config.get("problem_type") == "multi_label_classification":
        name, read = _RESNET_TAGGER
    if not any(folder.glob("*.safetensors")):
        raise EncoderError(
            f"{folder} holds no .safetensors weights. Pickle files (.bin, .pt) can run code when they are "
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
    except Exception as error:  # any of a dozen kinds, by version of transformers and way of breaking
        raise EncoderError(
            f"The image encoder in {folder} could not be loaded ({error}). Download the folder again."
        ) from error
    # transformers fills what is missing with random numbers and goes on.
    missing = [key for key in report["missing_keys"] if not key.endswith("position_ids")]
    if missing or report.get("mismatched_keys"):
        raise EncoderError(
            f"The weights in {folder} lack parts of the image tower ({len(missing)} tensors missing, "
            f"such as '{next(iter(missing), '')}'). Download the folder again."
        )
    frozen: nn.Module = tower.float().eval().requires_grad_(False)
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


@dataclass(frozen=True)
class _Preprocessing:
    """What `preprocessor_config.json` says; CLIP's own numbers where there is none.

    Attributes:
        mean: of each colour channel, 0..1.
        std: standard deviation of each colour channel.
        size: side of the square picture, pixels; only towers whose own configuration is silent need it.
    """

    mean: tuple[float, ...] = _CLIP_MEAN
    std: tuple[float, ...] = _CLIP_STD
    size: int = 224

    @classmethod
    def read(cls, folder: Path) -> _Preprocessing:
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            return cls()
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            mean = tuple(float(value) for value in settings.get("image_mean", _CLIP_MEAN))
            std = tuple(float(value) for value in settings.get("image_std", _CLIP_STD))
            if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
                raise ValueError("three numbers are wanted")
            size = settings.get("size", cls.size)
            if isinstance(size, dict):
                size = size.get("shortest_edge") or size.get("height")
            return cls(mean, std, int(size))
        except (ValueError, TypeError, AttributeError) as error:
            raise EncoderError(f"{path} is damaged. Download the folder again.") from error


def _hash(tower: nn.Module, preprocessing: object) -> str:
    """Hash the numbers themselves: the same tower gives the same hash from any file layout.

    Names are left out, for they differ between versions of transformers, and so are whole numbers, which
    some of those versions keep for the positions.
    """

    def digest(tensor: Tensor) -> bytes:
        values = tensor.detach().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(str(tuple(tensor.shape)).encode() + values).digest()

    running = (buffer for buffer in tower.buffers() if buffer.is_floating_point())
    digests = sorted(map(digest, [*tower.parameters(), *running]))
    return hashlib.sha256(b"".join(digests) + repr(preprocessing).encode()).hexdigest()


def _readable_name(folder: Path) -> str:
    """The folder's name; for a snapshot in the Hugging Face cache, 'owner/model'."""
    full = folder.resolve() if folder.exists() else folder
    if full.parent.name == "snapshots" and full.parent.parent.name.startswith("models--"):
        return full.parent.parent.name.removeprefix("models--").replace("--", "/")
    return full.name
