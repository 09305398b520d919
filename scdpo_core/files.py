"""Files that are never half-written: atomic writes, and trees of tensors as safetensors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

_TREE = "scdpo_tree"
# Asked once: it can only be asked by changing it for a moment, for every thread of a host.
_UMASK = os.umask(0o077)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that replaces it when the block ends well.

    The temporary file keeps the suffix, so that writers which look at it (Pillow) choose the right
    format. On any error it is removed and `path` stays as it was.

    Raises:
        OSError: the folder cannot be written to, or the disk is full; the message names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # Windows flushes only what may be written to.
        with temporary.open("r+b") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes private files; what we publish is as readable as any other new file.
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content atomically; a target that is there is replaced."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented UTF-8 JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically. Tensors are made contiguous and moved to the CPU.

    Raises:
        OSError: as `atomic_path`.
    """
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(ready, str(temporary), metadata=metadata)
        except SafetensorError as error:
            # It wraps the operating system's error into text; Windows counts its errors in its own way.
            full = any(f"os error {number})" in str(error) for number in (errno.ENOSPC, 112))
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path)) from error


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors on the CPU and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no safetensors file, or is damaged; says so with its name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(str(path), framework="pt", device="cpu") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - the handle is no dict
            return tensors, dict(handle.metadata() or {})
    except SafetensorError as error:
        if is_pickle(path):
            raise ValueError(
                f"{path} is a pickle file (.ckpt or .pt), which can run code when it is opened. "
                "Use the .safetensors version of this model, or convert it with a tool you trust."
            ) from error
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error}). Download or copy it again."
        ) from error


def is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles do, alone or in the archive that torch.save makes."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return head == b"PK" or head[:1] == b"\x80"


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts and lists of tensors and plain values (an optimizer's state, say).

    Tensors go into the safetensors body, everything else into its JSON header, so reading it
    never runs code. Dict keys may be strings or integers.
    """
    tensors: dict[str, torch.Tensor] = {}

    def pack(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"t{len(tensors)}"
            # Shared storage is legal in a tree but not in safetensors.
            tensors[name] = value.detach().cpu().clone()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, pack(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {"list": [pack(item) for item in value]}
        return {"value": value}

    header = json.dumps(pack(tree))
    write_tensors(path, tensors, {_TREE: header})


def load_tree(path: Path) -> Any:
    """Read what `save_tree` wrote. Tuples come back as lists.

    Raises:
        FileNotFoundError, ValueError: as `read_tensors`; also when the file is not such a tree.
    """
    tensors, metadata = read_tensors(path)
    if _TREE not in metadata:
        raise ValueError(f"{path} is not a checkpoint written by this trainer.")

    def unpack(node: dict[str, Any]) -> Any:
        if "tensor" in node:
            return tensors[node["tensor"]]
        if "dict" in node:
            return {key: unpack(item) for key, item in node["dict"]}
        if "list" in node:
            return [unpack(item) for item in node["list"]]
        return node["value"]

    return unpack(json.loads(metadata[_TREE]))


def sha256_of(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; `progress` is told how many bytes were read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk))
    return digest.hexdigest()
