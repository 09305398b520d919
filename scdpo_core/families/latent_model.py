"""What all latent models share: sizes, VAE, cached prompts, errors, sampling in portions, fingerprints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..types import ScdpoError
from .base import LoadOptions
from .block_offload import start_offload
from .component_layout import ComponentLayout, TextEncoderSpec
from .components import Encoders, Reader, in_a_sentence, vae_from
from .fingerprint import encoders_fingerprint, weights_fingerprint
from .offload import DENOISER, TEXTS, VAE, OffloadManager, Result
from .prompt_encoding import PromptModel, models_of
from .quantization import quantize
from .residuals import ResidualModel
from .sampling import Denoiser, ProgressFn, Start, at_once, in_groups, with_progress
from .text_encoders import AnyTextEncoder
from .timesteps import Timesteps
from .vaes import latent_space


class LatentModel(PromptModel, ResidualModel):
    """A loaded model; see `LoadedModel`. Families add how prompts are encoded and how the denoiser is called.

    The VAE stays in float32: it runs once, the denoiser often.
    """

    family: str
    timesteps: Timesteps
    zero_snr = False

    def __init__(
        self,
        name: str,
        path: Path,
        reader: Reader,
        layout: ComponentLayout,
        device: torch.device,
        dtype: torch.dtype,
        options: LoadOptions,
    ) -> None:
        """Read the denoiser and the encoders.

        Args:
            name: what the artist calls it.
            path: for messages.
            reader: of its files.
            layout: of its family.
            device: to compute on.
            dtype: of the denoiser.
            options: of the artist.

        Raises:
            ScdpoError: the files do not fit together.
        """
        self.name, self.dtype, self.device = name, dtype, device
        self._path, self._reader, self._layout, self._options = path, reader, layout, options
        with in_a_sentence(path):
            self._schedule = self._scheduler(reader)
            denoiser = reader.denoiser(dtype).to(dtype).requires_grad_(False).eval()
            if options.on_read is not None:
                options.on_read("", denoiser)
            # Before it moves: a small GPU never holds the whole network in full size.
            quantize(denoiser, options.quantize)
            self.denoiser: nn.Module = denoiser
            self._offload = OffloadManager(device, one_at_a_time=options.offload_blocks != 0)
            self._offload.register(DENOISER, [start_offload(denoiser, device, options.offload_blocks)])
            if options.denoiser_spread:
                self._offload.pin(DENOISER)
            else:
                self._offload.load(DENOISER)
        self._live = None
        self._encoders: Encoders | None = self._read_encoders()
        vae = self._encoders.vae
        self._space = latent_space(vae.config, getattr(vae, "bn", None))
        self.vae_scale = self._space.scale
        self._check_channels()
        self.default_size = self._own_size()
        lengths = [self._text_tokens(index) for index in range(len(layout.texts))]
        tiled = "-tiled" if options.vae_tiling else ""
        self.encoder_id = f"{self.family}-{encoders_fingerprint(self._encoders, lengths)}{tiled}"

    @abstractmethod
    def _scheduler(self, reader: Reader) -> dict[str, Any]:
        """Settings of the noise schedule; sets `parameterisation`, `timesteps` and `zero_snr`."""

    @abstractmethod
    def _own_size(self) -> tuple[int, int]:
        """(width, height) that the model was made for."""

    @abstractmethod
    def _cells(self) -> int:
        """Height and width of latents are multiples of this."""

    @abstractmethod
    def _denoise(self, noise: Tensor, predict: Denoiser, steps: int, start: Start | None) -> Tensor:
        """Scaled latents of images, from noise, or from `start`, whose images are latents."""

    def _check_channels(self) -> None:
        takes = int(self.denoiser.config.in_channels)  # type: ignore[union-attr,arg-type]
        # FLUX sees squares of 2x2 cells as channels.
        if takes not in (self._space.channels, 4 * self._space.channels):
            raise ScdpoError(
                f"The VAE makes latents of {self._space.channels} channels and {self._path} takes {takes}: "
                "it is the VAE of another family. Leave --vae out, or give the right one."
            )

    def _text_dtype(self, index: int) -> torch.dtype:
        """Number format of a text encoder; CLIP is small."""
        return torch.float32

    @property
    def prediction(self) -> str:
        """See `LoadedModel.prediction`."""
        return self.parameterisation.name

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """See `LoadedModel.latent_shape`."""
        width, height = size or self.default_size
        step = self.vae_scale * self._cells()
        if width % step or height % step or min(width, height) < step:
            raise ScdpoError(f"Images of {width}x{height} do not fit this model: use multiples of {step}.")
        return self._space.channels, height // self.vae_scale, width // self.vae_scale

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """See `LoadedModel.encode_images`."""

        def encode(vae: Any) -> Tensor:
            parts = images.split(at_once(images.shape[3], images.shape[2]))
            return torch.cat([self._space.encode(vae, part.to(self.device, torch.float32)) for part in parts])

        return self._space.scaled(self._with_vae(encode))

    def _with_vae(self, compute: Callable[[Any], Result]) -> Result:
        return self._offload.run(VAE, partial(compute, self._get_encoders().vae))

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        size: tuple[int, int] | None = None,
        progress: ProgressFn | None = None,
        start: Start | None = None,
    ) -> list[Image.Image]:
        """See `LoadedModel.sample`. Without added noise, whatever scheduler the model came with."""
        shape = self.latent_shape(size)
        groups = in_groups(len(prompts), at_once(shape[2] * self.vae_scale, shape[1] * self.vae_scale))
        # All words, then all latents, then all images: on a small GPU each has its turn once.
        told = [self._guided(list(prompts[some]), guidance) for some in groups]
        if progress is not None:
            told = [
                with_progress(predict, progress, some.start, some.stop - some.start, len(prompts), steps)
                for some, predict in zip(groups, told, strict=True)
            ]
        starts = [start and start.encoded(some, self.encode_images, shape) for some in groups]
        latents = [
            self._offload.run(DENOISER, partial(self._drawn, shape, seeds[some], predict, steps, begun))
            for some, predict, begun in zip(groups, told, starts, strict=True)
        ]
        return [image for part in latents for image in self._with_vae(partial(self._decode, part))]

    def _drawn(
        self, shape: tuple[int, ...], seeds: Sequence[int], predict: Denoiser, steps: int, start: Start | None
    ) -> Tensor:
        dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in dice])
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._denoise(noise.to(self.device), predict, steps, start)

    def _guided(self, prompts: list[str], guidance: float) -> Denoiser:
        """The answer to prompts, pushed away from the answer to no words (Ho and Salimans 2022)."""
        guided = guidance > 1
        words = self.encode_prompts([*prompts, *([""] * len(prompts) if guided else [])])

        def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
            if not guided:
                return self._predict(latents, timesteps, words)
            twice = self._predict(torch.cat([latents] * 2), torch.cat([timesteps] * 2), words)
            asked, empty = twice.chunk(2)
            return self._pushed(asked, empty, guidance)

        return predict

    def _pushed(self, asked: Tensor, empty: Tensor, guidance: float) -> Tensor:
        """The answer to prompts, pushed away from the answer to no words; both [N, C, h, w]."""
        return empty + guidance * (asked - empty)

    def _decode(self, latents: Tensor, vae: Any) -> list[Image.Image]:
        pixels = self._space.decode(vae, self._space.unscaled(latents))
        colours = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(image) for image in colours.permute(0, 2, 3, 1).cpu().numpy()]

    def enable_gradient_checkpointing(self) -> None:
        """See `LoadedModel.enable_gradient_checkpointing`."""
        self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    def denoiser_id(self) -> str:
        """See `LoadedModel.denoiser_id`."""
        # What begins with an underscore says which version of diffusers wrote it.
        schedule = {key: value for key, value in self._schedule.items() if not key.startswith("_")}
        own = [self.prediction, self.zero_snr, self._options.guidance, schedule]
        return f"{self.family}-{weights_fingerprint(self.denoiser, own)}"

    def release_encoders(self) -> None:
        """See `LoadedModel.release_encoders`."""
        self._encoders = None
        self._offload.drop(TEXTS)
        self._offload.drop(VAE)
        self._offload.load(DENOISER)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _bring_denoiser(self) -> None:
        self._offload.load(DENOISER)

    def _get_encoders(self) -> Encoders:
        if self._encoders is None:
            self._encoders = self._read_encoders()
        return self._encoders

    def _read_encoders(self) -> Encoders:
        own, reader = self._options, self._reader
        with in_a_sentence(self._path):
            live = self._live or (None,) * len(self._layout.texts)
            texts = tuple(
                text or self._read_text(part, index)
                for index, (part, text) in enumerate(zip(self._layout.texts, live, strict=True))
            )
            vae = reader.vae() if own.vae is None else vae_from(own.vae, self._layout, own)
        if own.vae_tiling:
            vae.enable_slicing()
            vae.enable_tiling()
        # What trains stays as it is.
        frozen = models_of(text for text, trains in zip(texts, live, strict=True) if trains is None)
        for module in (*frozen, vae):
            module.requires_grad_(False).eval()
        self._offload.register(TEXTS, frozen)
        self._offload.register(VAE, [vae])
        return Encoders(texts, vae)

    def _read_text(self, part: TextEncoderSpec, index: int) -> AnyTextEncoder | None:
        text = self._reader.text(part, self._text_dtype(index), self._text_tokens(index))
        if text is not None and self._options.on_read is not None:
            self._options.on_read(f"{part.folder}.", text.model)
        return text
