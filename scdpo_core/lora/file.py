"""A LoRA as a file: kohya's keys, metadata that every host reads, a sidecar and a preview beside it.

Runs inside old hosts: the standard library, torch, safetensors and Pillow, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..files import atomic_path, read_tensors, write_json
from ..types import LoraFile, ScdpoError
from .keys import TEXT_ENCODERS, KeyNameError, canonical_names, split, to_kohya


class _Base(NamedTuple):
    version: str
    architecture: str
    sidecar: str


_BASES = {
    # The embedded model has SD 1's modules in other sizes, so no SD 1 checkpoint takes its LoRAs.
    "micro": _Base("sd_v1", "stable-diffusion-v1/lora", "Unknown"),
    "sd1": _Base("sd_v1", "stable-diffusion-v1/lora", "SD1"),
}
_FAMILY_OF_VERSION = {"sd_v1": "sd1"}
_OWN = "scdpo_"
_PASSED_ON = ("ss_", "sshs_", "modelspec.")


def save_lora(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    family: str,
    rank: int,
    alpha: float,
    facts: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    title: str | None = None,
    description: str = "",
    notes: str = "",
    preferred_weight: float = 1.0,
    date: str | None = None,
    preview: Image.Image | None = None,
) -> LoraFile:
    """Write `<stem>.safetensors` and `<stem>.json`, and `<stem>.png` when there is a preview.

    Each is written atomically, and the same arguments give the same bytes on every run.

    Args:
        path: ends in `.safetensors`; its folder is made when missing.
        state: canonical name -> weight, of `LoraAdapter.state`.
        family: of the base model, a name in `families.FAMILIES`.
        rank: of every module.
        alpha: what the metadata says; the weights' own alphas are in `state`.
        facts: what else the file should say of itself: objective, cost model id and hash, dataset
            hash, evaluation. Text goes in as it is, anything else as JSON. Names get the prefix
            `scdpo_` unless they begin with ss_, sshs_ or modelspec. already.
        dtype: of the weights in the file; alphas stay float32.
        title: for people; the stem when None.
        description: one or two sentences for the host's card.
        notes: anything longer, for the card.
        preferred_weight: the strength that hosts put into the prompt.
        date: when it was made, ISO 8601; left out when None, so that tests compare bytes.
        preview: the card's picture.

    Raises:
        ScdpoError: the weights hold NaN or do not fit `dtype`, or the file cannot be written.
        ValueError: `family`, `rank`, `path`'s suffix or a name in `state` is a programming error.
    """
    if family not in _BASES:
        raise ValueError(f"No metadata for family '{family}'; there is some for {', '.join(_BASES)}.")
    if path.suffix != ".safetensors":
        raise ValueError(f"A LoRA's file name ends in .safetensors, unlike {path.name}.")
    base = _BASES[family]
    tensors = _for_file(path, state, rank, dtype)
    entries, body = _serialised(tensors)
    digest = hashlib.sha256(body).hexdigest()
    metadata = {
        "ss_output_name": path.stem,
        "ss_base_model_version": base.version,
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "sshs_model_hash": digest,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": title or path.stem,
        "modelspec.hash_sha256": f"0x{digest}",
        f"{_OWN}family": family,
    }
    if description:
        metadata["modelspec.description"] = description
    if date is not None:
        metadata["modelspec.date"] = date
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        metadata[name if name.startswith((*_PASSED_ON, _OWN)) else _OWN + name] = text

    card = {
        "description": description,
        "sd version": base.sidecar,
        "preferred weight": preferred_weight,
        "notes": notes,
    }
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(_header(entries, metadata) + body)
        write_json(path.with_suffix(".json"), card)
        if preview is not None:
            with atomic_path(path.with_suffix(".png")) as temporary:
                preview.convert("RGB").save(temporary, format="PNG")
    except OSError as error:
        raise ScdpoError(
            f"The LoRA could not be written to {path} ({error.strerror or error}). "
            "Make room on that disk or choose a folder you may write to."
        ) from error
    return LoraFile(path, family, rank, len(tensors), metadata)


def load_lora(path: Path, modules: Iterable[str] | None = None) -> tuple[dict[str, Tensor], LoraFile]:
    """Read a LoRA in any dialect: its weights by canonical name, as stored, and what it says of itself.

    A missing alpha is taken from peft's metadata, else it is the rank.

    Args:
        path: a safetensors file.
        modules: see `keys.canonical_names`.

    Raises:
        ScdpoError: no such file, damaged, a pickle, not a LoRA, or holding NaN. Its subclass
            KeyNameError: a weight with a name that is not understood.
    """
    tensors, metadata = _read(path, read_tensors)
    names = _named(path, tensors, modules)
    state = {names[key]: tensor for key, tensor in tensors.items()}
    stored_alpha = _peft_alpha(metadata)
    for module in sorted({split(name)[0] for name in state}):
        down, up = state.get(f"{module}.down"), state.get(f"{module}.up")
        if down is None or up is None:
            raise ScdpoError(
                f"{path} is incomplete: '{module}' has no {'down' if down is None else 'up'} weight."
            )
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise ScdpoError(f"{path} is damaged: the two weights of '{module}' do not fit each other.")
        alpha = state.get(f"{module}.alpha")
        number = torch.tensor(stored_alpha or float(down.shape[0])) if alpha is None else alpha
        state[f"{module}.alpha"] = number.float().reshape(())
    _check_finite(path, state)
    return state, _described(path, len(tensors), _ranks(state), metadata)


def read_lora_info(path: Path) -> LoraFile:
    """What a LoRA's file says of itself, without reading its weights.

    Raises:
        ScdpoError: as `load_lora`, but the weights are not looked at.
    """

    def header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with safe_open(str(path), framework="pt", device="cpu") as handle:
                shapes = {key: handle.get_slice(key).get_shape() for key in handle.keys()}  # noqa: SIM118
                return (
                    {key: torch.empty(shape, device="meta") for key, shape in shapes.items()},
                    dict(handle.metadata() or {}),
                )
        except SafetensorError:
            return read_tensors(path)  # fails the same way, and words it

    tensors, metadata = _read(path, header)
    names = _named(path, tensors, None)
    state = {names[key]: tensor for key, tensor in tensors.items()}
    return _described(path, len(tensors), _ranks(state), metadata)


_Contents = tuple[dict[str, Tensor], dict[str, str]]


def _read(path: Path, reader: Callable[[Path], _Contents]) -> _Contents:
    if not path.is_file():
        raise ScdpoError(f"There is no file {path}.")
    try:
        return reader(path)
    except OSError as error:
        raise ScdpoError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ScdpoError(str(error)) from error


def _named(path: Path, keys: Iterable[str], modules: Iterable[str] | None) -> dict[str, str]:
    try:
        names = canonical_names(keys, modules)
    except KeyNameError as error:
        raise KeyNameError(f"{path} cannot be used: {error}") from error
    if not names:
        raise ScdpoError(f"{path} is empty: it holds no weights.")
    return names


def _ranks(state: Mapping[str, Tensor]) -> list[int]:
    return [tensor.shape[0] for name, tensor in state.items() if split(name)[1] == "down"]


def _described(path: Path, keys: int, ranks: list[int], metadata: dict[str, str]) -> LoraFile:
    guess = _FAMILY_OF_VERSION.get(metadata.get("ss_base_model_version", ""), "")
    return LoraFile(path, metadata.get(f"{_OWN}family", guess), max(ranks, default=0), keys, metadata)


def _peft_alpha(metadata: Mapping[str, str]) -> float | None:
    """The alpha in the JSON that diffusers and peft leave in the header, if it is there."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        alpha = settings.get("unet.lora_alpha", settings.get("lora_alpha"))
        return None if alpha is None else float(alpha)
    except (ValueError, AttributeError, TypeError):
        return None


def _for_file(path: Path, state: Mapping[str, Tensor], rank: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Kohya name -> contiguous tensor on the CPU in the file's dtype."""
    two = any(name.startswith(TEXT_ENCODERS[1]) for name in state)
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part = split(name)[1]
        if part == "down" and tensor.shape[0] != rank:
            raise ValueError(f"'{name}' has rank {tensor.shape[0]}, not {rank}.")
        stored = tensor.detach().to("cpu", torch.float32 if part == "alpha" else dtype)
        tensors[to_kohya(name, two_text_encoders=two)] = stored.contiguous()
    _check_finite(path, tensors)
    return tensors


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ScdpoError(
                f"{path}: the weight '{name}' holds numbers that are not finite, which draw black pictures. "
                "The training fell apart: train again with a lower learning rate, or use an earlier file."
            )


def _serialised(tensors: dict[str, Tensor]) -> tuple[dict[str, Any], bytes]:
    """The header's entries and the body of a safetensors file."""
    whole = save(tensors)
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def _header(entries: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    # safetensors writes metadata in the order of a hash map, another one on every run.
    ordered = {"__metadata__": dict(sorted(metadata.items())), **entries}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
