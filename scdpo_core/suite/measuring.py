"""What is measured beside what judges say: likeness to the base's images, CLIP scores, Fréchet distance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..cost.clip_encoders import EncoderError, Preprocessing, readable_name
from ..cost.protocol import Encoder
from ..evaluation.similarity import pixel_difference, ssim
from ..io.images import ImageError, open_image
from .folder import EvalFolder, Table
from .plan import BASE, Item

LIKENESS_TABLE = "likeness"
_TOGETHER = 16

Progress = Callable[[int, int], None]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Likeness:
    """How like a benign image is to the one that the base drew for the same prompt and seed.

    Attributes:
        image: version and name.
        ssim: structural similarity, 1 for identical images.
        difference: mean absolute pixel difference, 0..1.
    """

    image: str
    ssim: float
    difference: float


@dataclass(frozen=True)
class ClipScore:
    """How well an image fits its prompt, by a CLIP model.

    Attributes:
        image: version and name.
        score: 100 times the cosine, at least 0.
    """

    image: str
    score: float


def measure_likeness(
    images: Iterable[tuple[str, Item]], folder: EvalFolder, shard: str, progress: Progress
) -> None:
    """Compare images with the base's, those that nobody has compared yet.

    Args:
        images: version and item of each; not of the base.
        folder: where they lie.
        shard: label of the share whose table gets the rows.
        progress: called with the number compared and the total; may raise to end the work.

    Raises:
        ImageError: an image cannot be read.
    """
    table = Table(folder, LIKENESS_TABLE, Likeness, shard)
    names = list(images)
    try:
        for number, (version, item) in enumerate(names):
            name = f"{version}/{item.name}"
            if name not in table.rows:
                before = open_image(folder.image(BASE, item.name))
                after = open_image(folder.image(version, item.name))
                alike, apart = ssim(before, after), pixel_difference(before, after)
                table.add(Likeness(name, round(alike, 5), round(apart, 5)))
            progress(number + 1, len(names))
    finally:
        table.close()


class ClipModel:
    """A CLIP model from a folder in the Hugging Face layout, with its tokenizer.

    Attributes:
        id: of its weights, 'name@hash'.
    """

    def __init__(self, folder: Path, device: str) -> None:
        """Load the model.

        Raises:
            EncoderError: the folder is no CLIP model, or is damaged.
        """
        import transformers

        from ..cost.clip_encoders import weights_hash

        try:
            model: Any = transformers.CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            self._tokenizer: Any = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises a dozen types, depending on version and damage
            raise EncoderError(
                f"{folder} could not be loaded as a CLIP model ({error}). Give a folder of transformers' "
                "CLIPModel with its tokenizer and safetensors weights."
            ) from error
        self._model = model.float().eval().requires_grad_(False).to(device)
        self._device = device
        preprocessing = Preprocessing.read(folder)
        self._mean, self._std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self._size = int(model.config.vision_config.image_size)
        self.id = f"{readable_name(folder)}@{weights_hash(self._model, (self._size, preprocessing))[:12]}"

    @torch.no_grad()
    def scores(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[float]:
        """Return 100 times the cosine of each image and its prompt, at least 0; a long prompt is cut off."""
        longest = int(self._model.config.text_config.max_position_embeddings)
        words = self._tokenizer(
            list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
        outputs = self._model(
            input_ids=words.input_ids.to(self._device),
            attention_mask=words.attention_mask.to(self._device),
            pixel_values=torch.stack([self._prepare(image) for image in images]).to(self._device),
        )
        cosine = torch.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
        return [100 * max(0.0, float(value)) for value in cosine.cpu()]

    def _prepare(self, image: Image.Image) -> torch.Tensor:
        side = (self._size, self._size)
        rgb = image.convert("RGB").resize(side, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(rgb, np.float32)).div_(255.0)
        return ((pixels - self._mean) / self._std).permute(2, 0, 1)


def clip_table(model_id: str) -> str:
    """Return the name of the table of a CLIP model's scores."""
    return "clip-" + "".join(sign if sign.isalnum() or sign in "._@-" else "-" for sign in model_id)[:120]


def measure_clip(
    model: ClipModel,
    images: Iterable[tuple[str, Item]],
    folder: EvalFolder,
    shard: str,
    progress: Progress,
) -> None:
    """Score images that have no CLIP score yet; arguments as of `measure_likeness`.

    Raises:
        ImageError: an image cannot be read.
    """
    table = Table(folder, clip_table(model.id), ClipScore, shard)
    names = list(images)
    left = [(version, item) for version, item in names if f"{version}/{item.name}" not in table.rows]
    try:
        for first in range(0, len(left), _TOGETHER):
            some = left[first : first + _TOGETHER]
            opened = [open_image(folder.image(version, item.name)) for version, item in some]
            scores = model.scores(opened, [item.prompt.prompt for _, item in some])
            for (version, item), score in zip(some, scores, strict=True):
                table.add(ClipScore(f"{version}/{item.name}", round(score, 4)))
            progress(len(names) - len(left) + first + len(some), len(names))
    finally:
        table.close()


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of the embeddings of `count` images."""

    mean: Matrix
    covariance: Matrix
    count: int


def gaussian_of(
    encoder: Encoder, files: Sequence[Path], progress: Progress = lambda done, total: None
) -> Gaussian:
    """Return mean and covariance of what an encoder makes of images; those that cannot be read are left out.

    Raises:
        EncoderError: fewer than two images can be read.
    """
    total, outer, count = np.zeros(encoder.dim), np.zeros((encoder.dim, encoder.dim)), 0
    for first in range(0, len(files), _TOGETHER):
        images = []
        for path in files[first : first + _TOGETHER]:
            try:
                images.append(open_image(path))
            except ImageError:
                continue
        if images:
            rows = encoder.encode(images).numpy().astype(np.float64)
            total += rows.sum(0)
            outer += rows.T @ rows
            count += len(rows)
        progress(min(first + _TOGETHER, len(files)), len(files))
    if count < 2:
        raise EncoderError("A Fréchet distance needs at least two images on each side.")
    mean = total / count
    return Gaussian(mean, (outer - count * np.outer(mean, mean)) / (count - 1), count)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """Return the Fréchet distance of two Gaussians (Dowson and Landau 1982), as FID computes it.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); the last trace is that of (C1^(1/2) C2 C1^(1/2))^(1/2), which
    is symmetric, so that no complex numbers come up.
    """
    root = _root(one.covariance)
    values = np.linalg.eigvalsh(root @ other.covariance @ root)
    shared = float(np.sqrt(np.clip(values, 0.0, None)).sum())
    apart = float(((one.mean - other.mean) ** 2).sum())
    traces = float(np.trace(one.covariance) + np.trace(other.covariance))
    return max(0.0, apart + traces - 2 * shared)


def _root(matrix: Matrix) -> Matrix:
    """Return the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = np.linalg.eigh(matrix)
    root: Matrix = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    return root
