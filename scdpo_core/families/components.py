"""The components of a base model, read one by one and without any network.

A folder in diffusers' form is read by diffusers and transformers. A single file is read here, tensors of one
component at a time; its configurations ship with us, and diffusers renames its tensors.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..devices import is_out_of_memory
from ..io.files import name_for_safetensors
from ..io.safetensors_header import Header, read_header
from ..types import ScdpoError
from .base import LoadOptions
from .component_layout import DENOISER_PREFIX, VAE_PREFIXES, ComponentLayout, TextEncoderSpec
from .detect import read_config
from .source import vae_beside
from .text_encoders import CONFIGS, AnyTextEncoder, text_of_file, text_of_folder, text_outside
from .weight_formats import check_folder, read_tensors


@dataclass(frozen=True)
class Encoders:
    """What turns prompts and images into tensors.

    Attributes:
        texts: one for each part of the layout; None for an optional one that is not there.
        vae: an AutoencoderKL.
    """

    texts: tuple[AnyTextEncoder | None, ...]
    vae: Any


class Reader(ABC):
    """A base model on the disk.

    Attributes:
        header: of a single file; None of a folder.
    """

    header: Header | None = None

    @abstractmethod
    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The denoiser, on the CPU."""

    @abstractmethod
    def vae(self) -> Any:
        """The VAE, in float32 on the CPU."""

    @abstractmethod
    def text(self, part: TextEncoderSpec, dtype: torch.dtype, tokens: int) -> AnyTextEncoder | None:
        """A text encoder on the CPU for prompts of `tokens` tokens (0: its own); None if it is not there."""

    @abstractmethod
    def scheduler(self) -> dict[str, Any]:
        """The settings of its noise schedule, as diffusers' schedulers have them."""

    @abstractmethod
    def spread(self, name: str) -> float | None:
        """The standard deviation of one of a single file's tensors; None if there is no such thing."""


class FolderReader(Reader):
    """A folder in diffusers' form; see `Reader`."""

    def __init__(self, folder: Path, layout: ComponentLayout, options: LoadOptions) -> None:
        self._folder, self._layout = folder, layout
        self._texts = options.text_encoders
        self._configs = options.configs or CONFIGS / layout.configs

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """See `Reader.denoiser`."""
        import diffusers

        cls = getattr(diffusers, self._layout.denoiser_class)
        return cast(nn.Module, _from_diffusers(cls, self._folder / self._layout.denoiser, dtype))

    def vae(self) -> Any:
        """See `Reader.vae`."""
        import diffusers

        cls = getattr(diffusers, self._layout.vae_class)
        return _from_diffusers(cls, self._folder / "vae", torch.float32)

    def text(self, part: TextEncoderSpec, dtype: torch.dtype, tokens: int) -> AnyTextEncoder | None:
        """See `Reader.text`."""
        home, words = self._folder / part.folder, self._folder / part.tokenizer
        if not home.is_dir():
            return text_outside(self._texts, part, self._configs, dtype, tokens)
        return text_of_folder(part, home, words, dtype, tokens)

    def scheduler(self) -> dict[str, Any]:
        """See `Reader.scheduler`."""
        return read_config(self._folder / "scheduler" / "scheduler_config.json")

    def spread(self, name: str) -> float | None:
        """See `Reader.spread`."""
        return None


class FileReader(Reader):
    """A single file in the original layout; see `Reader`. Other text encoders may be in a folder."""

    def __init__(self, path: Path, layout: ComponentLayout, options: LoadOptions) -> None:
        self._path, self._layout, self._options = path, layout, options
        self._texts = options.text_encoders
        self._configs = options.configs or CONFIGS / layout.configs
        self._header = read_header(path)
        self.header = self._header

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """See `Reader.denoiser`."""
        import diffusers

        cls = getattr(diffusers, self._layout.denoiser_class)
        whole = self._header.begins(DENOISER_PREFIX)
        tensors = read_tensors(self._path, DENOISER_PREFIX if whole else "", dtype)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        prefix = "" if self._layout.diffusers_names else DENOISER_PREFIX
        named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        changes = self._layout.adapt(shapes)
        config = self._configs / self._layout.denoiser
        return cast(nn.Module, from_original(cls, named, config, dtype, changes))

    def vae(self) -> Any:
        """See `Reader.vae`."""
        beside = vae_beside(self._texts)
        if beside is not None and not self._header.begins(*VAE_PREFIXES):
            return vae_from(beside, self._layout, self._options)
        return vae_of_file(self._path, self._configs / "vae", self._layout)

    def text(self, part: TextEncoderSpec, dtype: torch.dtype, tokens: int) -> AnyTextEncoder | None:
        """See `Reader.text`."""
        if not part.prefix or not self._header.begins(part.prefix):
            return text_outside(self._texts, part, self._configs, dtype, tokens)
        return text_of_file(part, self._path, part.prefix, self._texts, self._configs, dtype, tokens)

    def scheduler(self) -> dict[str, Any]:
        """See `Reader.scheduler`."""
        return read_config(self._configs / "scheduler" / "scheduler_config.json")

    def spread(self, name: str) -> float | None:
        """See `Reader.spread`."""
        if name not in self._header.shapes:
            return None
        with name_for_safetensors(self._path) as opened, safe_open(opened, framework="pt") as handle:
            return float(handle.get_tensor(name).float().std(correction=0))


def vae_from(place: Path, layout: ComponentLayout, options: LoadOptions) -> Any:
    """A VAE that replaces a model's own: a diffusers folder (or one that has it in vae/), or a file."""
    import diffusers

    if place.is_dir():
        home = place / "vae" if (place / "vae").is_dir() else place
        return _from_diffusers(getattr(diffusers, layout.vae_class), home, torch.float32)
    return vae_of_file(place, (options.configs or CONFIGS / layout.configs) / "vae", layout)


def vae_of_file(path: Path, config: Path, layout: ComponentLayout) -> Any:
    """The VAE in a whole model's file, or in one of its own, in float32.

    Raises:
        ScdpoError: weights are missing.
    """
    import diffusers
    from diffusers.loaders import single_file_utils

    cls = getattr(diffusers, layout.vae_class)
    header = read_header(path)
    prefix = next((prefix for prefix in VAE_PREFIXES if header.begins(prefix)), "")
    tensors = read_tensors(path, prefix, torch.float32)
    if not layout.vae_names:
        return from_original(cls, tensors, config, torch.float32, {})
    vae = cls.from_config(cls.load_config(str(config)))
    named = getattr(single_file_utils, layout.vae_names)(tensors)
    missing, _ = vae.load_state_dict(named, strict=False)
    if missing:
        raise ScdpoError(f"the VAE lacks {missing[0]}: the file is incomplete, or another kind of VAE")
    return vae


def from_original(
    cls: Any, tensors: Mapping[str, Tensor], config: Path, dtype: torch.dtype, changes: Mapping[str, Any]
) -> Any:
    """A model of diffusers from tensors with their original names.

    Args:
        cls: of diffusers.
        tensors: the component's.
        config: folder with its config.json.
        dtype: of its weights.
        changes: to that configuration.

    Raises:
        ScdpoError: weights are missing.
    """
    try:
        return cls.from_single_file(
            dict(tensors), config=str(config), local_files_only=True, torch_dtype=dtype, **changes
        )
    except NotImplementedError as error:
        # What no tensor filled has no memory, and the last step of loading trips over it.
        raise ScdpoError(
            f"weights of the {config.name} are missing: the file is incomplete, or another kind of model"
        ) from error


def _from_diffusers(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    check_folder(folder)
    names = [file.name for file in folder.glob("diffusion_pytorch_model*.safetensors")]
    variant = "fp16" if names and all(".fp16" in name for name in names) else None
    return cls.from_pretrained(
        str(folder), local_files_only=True, use_safetensors=True, torch_dtype=dtype, variant=variant
    )


@contextmanager
def in_a_sentence(path: Path) -> Iterator[None]:
    """Turn what loading libraries raise into a sentence, and keep their bars and advice off the screen.

    Raises:
        ScdpoError: whatever went wrong inside.
    """
    try:
        with quiet():
            yield
    except (OSError, ValueError, LookupError, RuntimeError, SafetensorError, ScdpoError) as error:
        if is_out_of_memory(error):
            raise  # Nothing is wrong with the model; what helps is known above.
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise ScdpoError(f"The base model {path} could not be loaded: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the loading libraries' bars and advice off the artist's screen while the block runs."""
    from diffusers.utils import logging as diffusers_log
    from transformers.utils import logging as transformers_log

    logs = (diffusers_log, transformers_log)
    before = [log.get_verbosity() for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.set_verbosity(level)
            log.enable_progress_bar()
