"""What the trainer asks of a model, whatever its architecture and its parameterisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..types import Conditioning, EncodedPrompt, Problem
from .block_offload import OffloadBlocks
from .parameterisation import Weighting
from .quantization import Quantize
from .sampling import ProgressFn, Start
from .timesteps import Timesteps

Prediction = Literal["auto", "epsilon", "v_prediction"]
"""What the network predicts; 'auto' believes what the model's files say."""

Switch = Literal["auto", "on", "off"]
"""'auto' believes what the model's files say."""


@dataclass(frozen=True)
class LoadOptions:
    """What an artist may say about a base model beside where it is.

    Attributes:
        prediction: what the network predicts; only diffusion models leave a choice.
        zero_snr: whether the noise schedule ends in noise without any image left.
        vae: file or folder of a VAE that replaces the model's own.
        text_encoders: folder with the text encoders that the base lacks: subfolders as diffusers has them, or
            clip_l, clip_g and t5xxl .safetensors files with a T5 tokenizer beside them.
        t5_tokens: length of T5's prompts; 0 is the family's own.
        prompt_chunks: of 75 tokens, that CLIP reads of a prompt at most; hosts read all there are.
        guidance: that FLUX.1 dev's guidance embedding is told while training, policy and reference alike.
        configs: folder of component configurations for a single file; None are those that ship with us.
        quantize: format of the denoiser's frozen matrices.
        vae_tiling: whether images go through the VAE one at a time and, where they are large, in tiles.
        denoiser_spread: whether the denoiser will be spread over several GPUs; it waits in main memory.
        on_read: changes the denoiser and the text encoders right after they are read, in main memory. It gets
            the prefix of a component's canonical module names: '' for the denoiser, 'text_encoder.'.
        offload_blocks: how many of the denoiser's blocks wait in main memory, see `block_offload`.
    """

    prediction: Prediction = "auto"
    zero_snr: Switch = "auto"
    vae: Path | None = None
    text_encoders: Path | None = None
    t5_tokens: int = 0
    prompt_chunks: int = 8
    guidance: float = 1.0
    configs: Path | None = None
    quantize: Quantize = "off"
    vae_tiling: bool = False
    denoiser_spread: bool = False
    on_read: Callable[[str, nn.Module], None] | None = None
    offload_blocks: OffloadBlocks = 0


DEFAULTS = LoadOptions()
"""What holds where an artist says nothing."""


class LoadedModel(Protocol):
    """A text-to-image model in memory.

    Sizes are (width, height) in pixels, as Pillow has them; tensors are [N, C, height, width].

    Attributes:
        name: what the artist calls it: 'micro', or the stem of its file or folder.
        family: its name in `FAMILIES`.
        denoiser: the network that a LoRA is attached to; frozen.
        dtype: of the denoiser's weights.
        device: where the denoiser is and where tensors are expected.
        encoder_id: changes whenever prompts or images would be encoded differently.
        vae_scale: pixels per latent cell, along either axis.
        default_size: the size it was made for.
        timesteps: that it knows.
        zero_snr: whether its schedule ends in pure noise.
    """

    name: str
    family: str
    denoiser: nn.Module
    dtype: torch.dtype
    device: torch.device
    encoder_id: str
    vae_scale: int
    default_size: tuple[int, int]
    timesteps: Timesteps
    zero_snr: bool

    @property
    def prediction(self) -> str:
        """What it predicts: 'epsilon', 'v_prediction' or 'flow'."""
        ...

    def latent_shape(self, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of that size, `default_size` if None.

        Raises:
            ScdpoError: the size does not fit this model; says what does.
        """
        ...

    def encode_prompts(self, prompts: list[str]) -> Conditioning:
        """Embeddings [N, T, D] in float32 on `device`, all of one length.

        Prompts beyond CLIP's length are read in chunks, as hosts do; what `unread` names is cut off. A
        language model's prompts have their own lengths, which a mask tells.
        """
        ...

    def prompt_chunks(self, prompt: str) -> int:
        """How many chunks of a prompt are read; 1 where the family knows no chunks."""
        ...

    def level_prompts(self, prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
        """Single prompts of several lengths, brought to one length: by more chunks, or by masked padding."""
        ...

    def unread(self, prompt: str) -> dict[str, str]:
        """The ends of a prompt that text encoders do not read, by what they do read; empty if none is cut."""
        ...

    def live_prompts(self, prompts: list[str], known: Conditioning) -> Conditioning:
        """As `encode_prompts` after `train_texts`, with gradients to whatever trains in the text encoders.

        Args:
            prompts: N of them.
            known: what `encode_prompts` said of them before anything trained; T5's part of it still holds.
        """
        ...

    def train_texts(self) -> dict[str, tuple[nn.Module, int]]:
        """The CLIP text encoders, which stay in memory from now on, for a LoRA to be attached to.

        By the name of their folder in a diffusers model, each with how many of its last layers have no effect
        on what the denoiser sees.
        """
        ...

    def live_texts(self) -> list[nn.Module]:
        """The text encoders that stay in memory, without T5; none before `train_texts`."""
        ...

    def encode_images(self, images: Tensor) -> Tensor:
        """Scaled latents [N, C, h, w] in float32 on `device`, of images [N, 3, H, W] in -1..1.

        It is the mean of the encoder's distribution, so the same image gives the same latents.
        """
        ...

    def residuals(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        weighting: Weighting,
    ) -> Tensor:
        """Prediction minus target, [N, C, h, w] in float32; its mean square is `errors`.

        Args:
            latents: [N, C, h, w] scaled.
            noise: [N, C, h, w] standard normal.
            timesteps: [N] as `Timesteps` draws them.
            conditioning: of N prompts.
            weighting: see `Weighting`.
        """
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser sees, [N, C, h, w], of scaled latents and standard normal noise of that shape."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's own answer, [N, C, h, w] in float32, to what `add_noise` made under N prompts."""
        ...

    def error_residuals(
        self, prediction: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, weighting: Weighting
    ) -> Tensor:
        """An answer minus what a perfect network would answer, [N, C, h, w]; arguments as of `residuals`."""
        ...

    def image_residuals(
        self, prediction: Tensor, noisy: Tensor, image: Tensor, timesteps: Tensor, weighting: Weighting
    ) -> Tensor:
        """The image that an answer implies minus another one, [N, C, h, w], bounded at every timestep.

        Args:
            prediction: [N, C, h, w] of `predict`.
            noisy: [N, C, h, w] that it answered to.
            image: [N, C, h, w] scaled latents that are to be behind the noise.
            timesteps: [N].
            weighting: `MinSnr` or anything else, see `parameterisation.image_scale`.
        """
        ...

    def errors(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        weighting: Weighting,
    ) -> Tensor:
        """Mean squared error [N] of the prediction over C, h and w; arguments as `residuals`."""
        ...

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
        """One image for each prompt, from noise that its own seed alone decides.

        Loads the encoders again if they were released. `progress` is told before every step of the denoiser
        how many images of how many are drawn, and may raise to end the work. With `start` each prompt has
        an image that drawing begins from, under that noise; with a mask in it only that part is redrawn.

        Raises:
            ValueError: the start images have another size.
        """
        ...

    def enable_gradient_checkpointing(self) -> None:
        """Let the denoiser keep only the inputs of its blocks and recompute the rest backwards."""
        ...

    def denoiser_id(self) -> str:
        """Changes whenever the frozen network would answer differently or be asked differently.

        To be called before a LoRA is attached; reads every weight once.
        """
        ...

    def release_encoders(self) -> None:
        """Give the memory of text encoders and VAE back; the next call that needs them reloads them.

        The denoiser is on its device afterwards, wherever it waited while the others were at work.
        """
        ...


class Family(Protocol):
    """An architecture: how its models are found, checked and loaded.

    A base is 'micro', a diffusers folder, a .safetensors file or the id of a model on the hub.

    Attributes:
        name: its key in `FAMILIES`.
        title: what people call it.
    """

    name: str
    title: str

    def check(self, base: str | Path, options: LoadOptions = ...) -> list[Problem]:
        """What is wrong with the files of a base model, without loading it; empty when all is well."""
        ...

    def load(
        self, base: str | Path, device: torch.device, dtype: torch.dtype, options: LoadOptions = ...
    ) -> LoadedModel:
        """Load a base model.

        Raises:
            ScdpoError: it is not there, is damaged, or is of another kind; says which and what to do.
        """
        ...
