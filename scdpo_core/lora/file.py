"""A LoRA as a file: kohya's keys, metadata that every host reads, a sidecar and a preview beside it.

Runs inside old hosts: the standard library, torch, safetensors and Pillow, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..family_info import FAMILY_INFO
from ..io.files import atomic_path, name_for_safetensors, read_tensors, unshared, write_json
from ..io.safetensors_container import header, parted
from ..types import LoraFile, ScdpoError
from .dtypes import computable
from .formats.convert import ALPHAS, from_file, to_file
from .formats.keys import Dialect, addresses, split
from .formats.peft_settings import METADATA as PEFT_SETTINGS
from .formats.peft_settings import WEIGHTS, Found, find_settings, settings_file
from .formats.proportions import likely_transformers
from .identity import base_family, sidecar_version
from .metadata import OWN, as_metadata
from .weights import Parts, by_module, check, kind_of, rank_of

_NETWORK = {
    "lora": "networks.lora",
    "dora": "lycoris.kohya",
    "loha": "lycoris.kohya",
    "lokr": "lycoris.kohya",
}


def save_lora(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    family: str,
    rank: int,
    alpha: float,
    facts: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
    dialect: Dialect = "kohya",
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
        rank: the highest of any module.
        alpha: what the metadata says; the weights' own alphas are in `state`.
        facts: what else the file should say of itself: objective, cost model id and hash, dataset
            hash, evaluation. Text goes in as it is, anything else as JSON. Names get the prefix
            `scdpo_` unless they begin with ss_, sshs_ or modelspec. already.
        dtype: of the weights in the file; alphas stay float32.
        dialect: of the names, see `keys.DIALECTS`.
        title: for people; the stem when None.
        description: one or two sentences for the host's card.
        notes: anything longer, for the card.
        preferred_weight: the strength that hosts put into the prompt.
        date: when it was made, ISO 8601; left out when None, so that tests compare bytes.
        preview: the card's image.

    Raises:
        ScdpoError: the weights hold NaN or do not fit `dtype`, or the file cannot be written.
        ValueError: `family`, `rank`, `path`'s suffix or a name in `state` is a programming error.
    """
    if family not in FAMILY_INFO:
        raise ValueError(f"No metadata for family '{family}'; there is some for {', '.join(FAMILY_INFO)}.")
    if path.suffix != ".safetensors":
        raise ValueError(f"A LoRA's file name ends in .safetensors, unlike {path.name}.")
    highest = max(_ranks(by_module(state).values()), default=rank)
    if highest != rank:
        raise ValueError(f"The highest rank among the weights is {highest}, not {rank}.")
    kinds = sorted({kind_of(parts) for parts in by_module(state).values()})
    metadata = {
        **base_metadata(family),
        "ss_output_name": path.stem,
        "ss_network_module": _NETWORK[kinds[0]] if kinds else _NETWORK["lora"],
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "modelspec.title": title or path.stem,
    }
    if kinds not in ([], ["lora"]):
        metadata["ss_network_args"] = json.dumps({"algo": kinds[-1].replace("dora", "lora")})
    if description:
        metadata["modelspec.description"] = description
    if date is not None:
        metadata["modelspec.date"] = date
    metadata |= as_metadata(facts)

    card = {
        "description": description,
        "sd version": sidecar_version(family),
        "activation text": "",
        "preferred weight": preferred_weight,
        "notes": notes,
    }
    stored = {name: _stored(name, tensor, dtype) for name, tensor in state.items()}
    _check_finite(path, stored)
    with _writing(path):
        keys, metadata = _write(path, stored, dialect, family, metadata)
        write_json(path.with_suffix(".json"), card)
        if preview is not None:
            with atomic_path(path.with_suffix(".png")) as temporary:
                preview.convert("RGB").save(temporary, format="PNG")
    return LoraFile(path, family, rank, keys, metadata)


def base_metadata(family: str) -> dict[str, str]:
    """What a file says of its base model, for every host; nothing for an unknown family ('')."""
    if family not in FAMILY_INFO:
        return {}
    base = FAMILY_INFO[family]
    return {
        "ss_base_model_version": base.version,
        "ss_v2": str(family == "sd2"),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": base.architecture,
        "modelspec.implementation": "diffusers",
        f"{OWN}family": family,
    }


def write_lora(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    dialect: Dialect,
    family: str,
    metadata: Mapping[str, str],
) -> LoraFile:
    """Write weights, as they are, in any dialect; the same arguments give the same bytes.

    Args:
        path: ends in `.safetensors`; its folder is made when missing.
        state: canonical name -> weight on the CPU.
        dialect: of the keys.
        family: of the base model; '' if not known, which is enough for a UNet's 'kohya' and 'peft'.
        metadata: what the file says of itself; the hashes of the weights are added or made anew.

    Raises:
        ScdpoError: the weights hold NaN, or have no exact form in the dialect, or the file cannot be written.
        KeyNameError: the dialect has no name for a weight.
    """
    if path.suffix != ".safetensors":
        raise ScdpoError(f"A LoRA's file name ends in .safetensors, unlike {path.name}.")
    _check_finite(path, state)
    with _writing(path):
        keys, complete = _write(path, state, dialect, family, metadata)
    return LoraFile(path, family, max(_ranks(by_module(state).values()), default=0), keys, complete)


def load_lora(path: Path, modules: Iterable[str] | None = None) -> tuple[dict[str, Tensor], LoraFile]:
    """Read a LoRA in any dialect: its weights by canonical name, as stored, and what it says of itself.

    A missing alpha is taken from the settings that peft and diffusers keep beside the weights, else it is the
    rank; `LoraFile.notes` says so where that may be wrong.

    Args:
        path: a safetensors file, or peft's or diffusers' folder with one.
        modules: see `keys.addresses`.

    Raises:
        ScdpoError: no such file, damaged, a pickle, not a LoRA, or holding NaN. Its subclass
            KeyNameError: a weight with a name that is not understood.
    """
    path, tensors, metadata = _read(path, read_tensors)
    with _using(path):
        found = addresses(tensors, modules, likely_transformers(tensors, metadata))
        tensors, widened = computable(tensors)
        settings = _settings(path, metadata, tensors)
        weights = by_module(from_file(tensors, metadata, modules, settings.settings))
    if not weights:
        raise ScdpoError(f"{path} is empty: it holds no weights.")
    state: dict[str, Tensor] = {}
    for module, parts in weights.items():
        with _naming(path):
            check(module, parts)
        rank = rank_of(parts)
        if "alpha" not in parts and rank is not None:
            parts["alpha"] = torch.tensor(float(rank))
        state |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
    _check_finite(path, state)
    with _naming(path):
        family = base_family(found.values(), weights, metadata)
    highest = max(_ranks(weights.values()), default=0)
    return state, LoraFile(path, family, highest, len(tensors), metadata, (*widened, *settings.notes))


def read_lora_info(path: Path) -> LoraFile:
    """What a LoRA's file says of itself, without reading its weights.

    Raises:
        ScdpoError: as `load_lora`, but the weights are not looked at.
    """

    def header(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
        try:
            with name_for_safetensors(path) as name, safe_open(name, framework="pt", device="cpu") as handle:
                shapes = {key: handle.get_slice(key).get_shape() for key in handle.keys()}  # noqa: SIM118
                return (
                    {key: torch.empty(shape, device="meta") for key, shape in shapes.items()},
                    dict(handle.metadata() or {}),
                )
        except SafetensorError:
            return read_tensors(path)  # fails the same way, and words it

    path, tensors, metadata = _read(path, header)
    with _using(path):
        found = addresses(tensors, likely=likely_transformers(tensors, metadata))
        notes = _settings(path, metadata, tensors).notes
    if not found:
        raise ScdpoError(f"{path} is empty: it holds no weights.")
    weights: dict[str, dict[str, Tensor]] = {}
    for name, address in found.items():
        weights.setdefault(address.modules[0], {})[address.part] = tensors[name]
    complete = {module: parts for module, parts in weights.items() if _complete(module, parts)}
    with _naming(path):
        family = base_family(found.values(), complete, metadata)
    highest = max(_ranks(complete.values()), default=0)
    return LoraFile(path, family, highest, len(tensors), metadata, notes)


def changed_at(path: Path) -> int:
    """A number that is another one when a LoRA's file, or peft's settings beside it, has changed."""
    files = (path, settings_file(path))
    return hash(tuple(0 if file is None else file.stat().st_mtime_ns for file in files))


_Contents = tuple[dict[str, Tensor], dict[str, str]]
_NAMES = (WEIGHTS, "pytorch_lora_weights.safetensors")  # peft's and diffusers'


def _read(path: Path, reader: Callable[[Path], _Contents]) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    try:
        if path.is_dir():
            path = _inside(path)
        if not path.is_file():
            raise ScdpoError(f"There is no file {path}.")
        return path, *reader(path)
    except OSError as error:
        raise ScdpoError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ScdpoError(str(error)) from error


def _inside(folder: Path) -> Path:
    named = [folder / name for name in _NAMES if (folder / name).is_file()]
    files = named[:1] or sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ScdpoError(
            f"{folder} is a folder with {len(files)} .safetensors files. Give the LoRA's own file."
        )
    return files[0]


def _settings(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> Found:
    # What we wrote has its alphas in the weights.
    own = any(name.startswith(OWN) for name in metadata)
    return Found(None, ()) if own else find_settings(path, metadata, tensors)


@contextmanager
def _using(path: Path) -> Iterator[None]:
    try:
        yield
    except ScdpoError as error:
        raise type(error)(f"{path} cannot be used: {error}") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ScdpoError as error:
        raise type(error)(f"{path} {error}") from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ScdpoError(
            f"The LoRA could not be written to {path} ({error.strerror or error}). "
            "Make room on that disk or choose a folder you may write to."
        ) from error


def _complete(module: str, parts: Parts) -> bool:
    try:
        check(module, parts)
    except ScdpoError:
        return False
    return True


def _ranks(weights: Iterable[Parts]) -> list[int]:
    return [rank for parts in weights if (rank := rank_of(parts)) is not None]


def _stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", torch.float32 if split(name)[1] == "alpha" else dtype)


def _write(
    path: Path, state: Mapping[str, Tensor], dialect: Dialect, family: str, metadata: Mapping[str, str]
) -> tuple[int, dict[str, str]]:
    """Number of keys and complete metadata of the file that this writes."""
    tensors, beside = to_file(state, dialect, family)
    entries, _, body = parted(save(unshared(tensors)))
    digest = hashlib.sha256(body).hexdigest()
    hashes = {"sshs_model_hash": digest, "modelspec.hash_sha256": f"0x{digest}"}
    # What was true of another dialect's numbers is not of these.
    kept = {name: text for name, text in metadata.items() if name not in (ALPHAS, PEFT_SETTINGS)}
    complete = {**kept, **beside, **hashes}
    with atomic_path(path) as temporary:
        temporary.write_bytes(header(entries, complete) + body)
    return len(tensors), complete


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ScdpoError(
                f"{path}: the weight '{name}' holds numbers that are not finite, which draw black images. "
                "The training fell apart: train again with a lower learning rate, or use an earlier file."
            )
